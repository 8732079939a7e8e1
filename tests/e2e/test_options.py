"""Options on the command line reach the engine, and a restarted node begins warm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from mycelia.node.client.local import fetch_state, running_node
from mycelia.node.local_swarm.processes import COMMAND, LocalNode, LocalSwarm
from tests.e2e.conftest import DEADLINE_S, ask, becomes_idle, run_mycelia

pytestmark = pytest.mark.e2e

LONG = (
    "Summarise this in one word. "
    + "The ship left the harbour at dawn and the crew sang until the coast was gone. " * 20
)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
}


async def test_files_in_the_users_folder_are_not_taken_for_modules(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('not the library')")
    done = await trio.run_process([*COMMAND, "--version"], cwd=tmp_path, capture_stdout=True, check=False)
    assert done.returncode == 0 and b"version" in done.stdout


async def test_a_node_heeds_its_file_the_environment_and_flags(tmp_path: Path) -> None:
    file = tmp_path / "mycelia.toml"
    file.write_text(
        'data_dir = "node"\nbootstrap = []\n'
        '[node]\nmodel = "fake"\napi_port = 0\nlisten = ["/ip4/127.0.0.1/tcp/0"]\nslots = 2\ncells = 1024\n'
    )
    environment = os.environ | {"MYCELIA_NODE_SLOTS": "3", "MYCELIA_NODE_CELLS": "2048"}
    with trio.fail_after(DEADLINE_S):
        process = await trio.lowlevel.open_process(
            [
                sys.executable,
                "-m",
                "mycelia.node",
                "--config",
                str(file),
                "node",
                "--cells",
                "512",
                "--exit-with-parent",
            ],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        assert process.stdin is not None and process.stderr is not None
        seen = b""
        while b'"event": "ready"' not in seen:
            piece = await process.stderr.receive_some()
            assert piece, seen.decode()
            seen += bytes(piece)
        state = await fetch_state(running_node(tmp_path / "node"))
        assert (state.model, state.slots, state.cells) == ("fake", 3, 512)
        asked = await run_mycelia_with("--config", str(file), "ask", "hello", "--max-tokens", "2")
        assert asked.returncode == 0, asked.stderr.decode()
        await process.stdin.aclose()
        assert await process.wait() == 0


async def run_mycelia_with(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Like a user's call, with the user's configuration."""
    command = [sys.executable, "-m", "mycelia.node", *arguments]
    return await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)


async def as_light_client(node: LocalNode, tmp_path: Path) -> tuple[str, ...]:
    return "--data-dir", str(tmp_path / "light"), "--bootstrap", await node.address()


async def test_a_restarted_node_begins_warm_and_sampling_options_arrive(swarm: LocalSwarm, tmp_path: Path) -> None:
    options = ["--threads", "1", "--debug", "--cache-dir", str(tmp_path / "cache")]
    with trio.fail_after(2 * DEADLINE_S):
        node = await swarm.start("one", options=options)
        await node.wait_ready()
        cold = await ask(node, LONG, "--max-tokens", "2")
        assert cold.answered.cached_tokens < cold.answered.prompt_tokens / 10
        await node.stop()
        assert node.process.returncode == 0

        node = await swarm.start("one", options=options)
        await node.wait_ready()
        warm = await ask(node, LONG, "--max-tokens", "2")
        assert warm.answered.cached_tokens > warm.answered.prompt_tokens * 0.9

        schema = tmp_path / "schema.json"
        schema.write_text(json.dumps(SCHEMA))
        person = await ask(node, "Invent a person.", "--max-tokens", "100", "--json-schema", str(schema))
        assert json.loads(person.text).keys() == {"name", "age"}

        everything = await ask(node, "Count to five.", "--max-tokens", "12", "--temperature", "0.8", "--seed", "5")
        letter = everything.text[len(everything.text) // 2]
        stopped = await ask(
            node, "Count to five.", "--max-tokens", "12", "--temperature", "0.8", "--seed", "5", "--stop", letter
        )
        assert letter not in stopped.text

        story = ("--max-tokens", "1500", "--timeout", "1", "Tell me a very long story.")
        for way in (("--data-dir", str(node.data_dir)), await as_light_client(node, tmp_path)):
            done = await run_mycelia("ask", *way, *story)
            assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
            assert "not finished in the time it was given" in done.stderr
            await becomes_idle(node)

        grammar = tmp_path / "broken.gbnf"
        grammar.write_text("root ::= nothing-of-this-name")
        done = await run_mycelia("ask", "--data-dir", str(node.data_dir), "--grammar", str(grammar), "hello")
        assert done.returncode == 1 and "grammar" in done.stderr and done.stderr.count("\n") == 1
