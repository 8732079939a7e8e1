"""A node as systemd runs it, limited by its owner, and what is left when a part of it crashes."""

import json
import os
import signal
import socket
import tarfile
from pathlib import Path

import msgspec
import pytest
import trio

from mycelia.node.local_swarm.processes import COMMAND, LocalSwarm
from mycelia.node.views.history import DayRow
from tests.e2e.conftest import DEADLINE_S, ask, run_mycelia

pytestmark = pytest.mark.e2e

KEY = "0123456789abcdef0123456789abcdef"


class Heard:
    """A service manager's socket."""

    def __init__(self, path: Path) -> None:
        self._socket = trio.socket.from_stdlib_socket(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._path = path
        self.lines: list[str] = []

    async def __aenter__(self) -> "Heard":
        await self._socket.bind(str(self._path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()

    async def until(self, line: str) -> None:
        while line not in self.lines:
            self.lines += (await self._socket.recv(4_096)).decode().splitlines()


async def test_a_node_under_systemd_is_limited_and_its_crashes_are_reported(
    swarm: LocalSwarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    with trio.fail_after(2 * DEADLINE_S):
        async with Heard(tmp_path / "notify") as heard:
            keys = tmp_path / "keys"
            keys.write_text(f"{KEY}\n")
            always = ["--hours", "00:00-12:00", "--hours", "12:00-24:00"]
            options = ["--model", "fake", *always, "--memory", "1", "--api-key-file", str(keys)]
            node = await swarm.start("alone", options=options)
            info = await node.wait_ready()
            await heard.until("READY=1")
            await heard.until("STATUS=serves fake")
            await heard.until("WATCHDOG=1")
            here = ["--data-dir", str(node.data_dir)]

            paused = await run_mycelia("pause", "--for", "2h", *here)
            assert paused.returncode == 0 and "paused by its owner until" in paused.stdout, paused.stderr
            await heard.until(f"STATUS=takes no prompts of others: {paused.stdout.strip().partition(': ')[2]}")
            assert "takes no prompts of others: paused by its owner" in (await run_mycelia("status", *here)).stdout
            assert (await ask(node, "a prompt of its own", "--max-tokens", "2")).text
            assert "taken again" in (await run_mycelia("resume", *here)).stdout

            engine = await node.wait_event(lambda event: event.get("event") == "engine_ready")
            os.kill(int(str(engine["pid"])), signal.SIGKILL)
            lost = await node.wait_event(lambda event: event.get("event") == "engine_lost")
            report = await trio.Path(str(lost["report"])).read_text()
            assert "Mycelia crash report: engine" in report and "exit code -9" in report
            assert "request_answered" in report, "a line of the log"

            archive = tmp_path / "report.tar.gz"
            done = await run_mycelia("diagnostics", str(archive), *here)
            assert done.returncode == 0, done.stderr
            with tarfile.open(archive) as packed:
                texts = {entry.name.partition("/")[2]: packed.extractfile(entry) for entry in packed.getmembers()}
                read = {name: file.read().decode() for name, file in texts.items() if file is not None}
            assert {"about.txt", "doctor.json", "config.toml", "node.log", "metrics.txt", "state.json"} <= read.keys()
            assert any(name.startswith("crashes/") for name in read) and "mycelia_peers" in read["metrics.txt"]
            assert json.loads(read["state.json"])["peer"] == info.peer and "ready" in read["node.log"]
            everything = "".join(read.values())
            assert KEY not in everything and str(Path.home()) + "/" not in everything and "of its own" not in everything
            run_file = json.loads((node.data_dir / "node.json").read_text())
            assert run_file["api_key"] and run_file["api_key"] not in everything

            days = await run_mycelia("stats", "--since", "1d", "--json", *here)
            assert msgspec.json.decode(days.stdout, type=list[DayRow]) == [], "nothing was given or received"
            node.process.send_signal(signal.SIGTERM)
            await heard.until("STOPPING=1")
            assert await node.process.wait() == 0


async def test_set_up_ends_with_a_first_answer(tmp_path: Path) -> None:
    file = tmp_path / "mycelia.toml"
    file.write_text('bootstrap = []\n[node]\napi_port = 0\nlisten = ["/ip4/127.0.0.1/tcp/0"]\nmdns = false\n')
    command = [*COMMAND[: COMMAND.index("--isolated")], "--config", str(file), "setup", "--yes", "--no-boot"]
    options = ["--model", "fake", "--give", "all", "--data-dir", str(tmp_path / "data")]
    with trio.fail_after(DEADLINE_S):
        done = await trio.run_process([*command, *options], capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    shown = done.stdout.decode()
    answer = shown.partition("sentence.\n")[2].partition("\nAll is set up.")[0]
    assert answer.strip() and f"with: mycelia --config {file} up --data-dir {tmp_path / 'data'}\n" in shown
    assert not (tmp_path / "data" / "node.json").exists(), "the node was started for the answer only"
