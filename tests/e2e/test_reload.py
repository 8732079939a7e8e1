"""A real node reads its configuration again, for ``mycelia config reload`` and for SIGHUP."""

import json
import signal
from pathlib import Path

import pytest
import trio

from mycelia.node.local_swarm.processes import COMMAND, LocalSwarm
from tests.e2e.conftest import DEADLINE_S, run_mycelia

pytestmark = pytest.mark.e2e


async def test_a_new_key_and_a_signal(swarm: LocalSwarm, tmp_path: Path) -> None:
    file = tmp_path / "mycelia.toml"
    file.write_text("")
    command = (*COMMAND[: COMMAND.index("--isolated")], "--config", str(file))
    node = await swarm.start("node", options=["--model", "fake"], command=command)
    here = ["--data-dir", str(node.data_dir)]
    with trio.fail_after(DEADLINE_S):
        await node.wait_ready()
        made = await trio.run_process([*command, "key", "add", "alice"], capture_stdout=True, capture_stderr=True)
        assert b"config reload" in made.stderr
        reload = [*command, "config", "reload", "--json", *here]
        told = await trio.run_process(reload, capture_stdout=True)
        assert json.loads(told.stdout) == {"changed": ["key"], "needs_restart": []}
        assert (await run_mycelia("status", *here)).returncode == 0  # (with the key in the new run file)

        file.write_text("[node]\ndrain = 7.0\n")
        node.process.send_signal(signal.SIGHUP)
        event = await node.wait_event(lambda event: event.get("changed") == ["drain", "key"])
        assert event["event"] == "config_reloaded"
        file.write_text("[node]\ndrian = 7.0\n")
        node.process.send_signal(signal.SIGHUP)
        refused = await node.wait_event(lambda event: event.get("event") == "config_not_reloaded")
        assert "did you mean drain" in str(refused["reason"])
        wrong = await trio.run_process(reload, check=False, capture_stdout=True, capture_stderr=True)
        assert wrong.returncode == 2 and b"did you mean drain" in wrong.stderr
        assert (await run_mycelia("leave", *here)).returncode == 0
