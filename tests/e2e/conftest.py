"""Real processes, the real model, real libp2p on loopback."""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import trio

from mycelia.node.client.local import fetch_state
from mycelia.node.local_swarm.processes import COMMAND, LocalNode, LocalSwarm, open_local_swarm
from mycelia.node.views.frames import AnsweredView, FrameView, RouteView, TextView
from mycelia.node.views.state import PeerRow

DEADLINE_S = 120.0
"""For every wait of a test: long, because the machine may be busy."""


@dataclass
class Finished:
    returncode: int
    stdout: str
    stderr: str


@dataclass
class Answer:
    """The output of ``mycelia ask --json``."""

    route: RouteView
    text: str
    answered: AnsweredView


async def run_mycelia(*arguments: str, stdin: bytes = b"") -> Finished:
    with trio.fail_after(DEADLINE_S):
        done = await trio.run_process(
            [*COMMAND, *arguments], stdin=stdin, capture_stdout=True, capture_stderr=True, check=False
        )
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


async def ask(node: LocalNode, prompt: str, *options: str) -> Answer:
    """Ask through ``node``, with prefixes open to all nodes, and require an answer."""
    here = ["--data-dir", str(node.data_dir), "--cache-salt", "public"]
    done = await run_mycelia("ask", "--json", *here, *options, "-", stdin=prompt.encode())
    assert done.returncode == 0, done.stderr
    return parse_answer(done.stdout)


def parse_answer(stdout: str) -> Answer:
    frames = [msgspec.json.decode(line, type=FrameView) for line in stdout.splitlines()]
    route, last = frames[0], frames[-1]
    assert isinstance(route, RouteView) and isinstance(last, AnsweredView)
    return Answer(route, "".join(f.text for f in frames if isinstance(f, TextView)), last)


async def peers_of(node: LocalNode) -> list[PeerRow]:
    done = await run_mycelia("peers", "--json", "--data-dir", str(node.data_dir))
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=list[PeerRow])


@pytest.fixture
async def swarm(tmp_path: Path) -> AsyncIterator[LocalSwarm]:
    async with open_local_swarm(tmp_path) as local_swarm:
        yield local_swarm


def process_ids(nodes: list[LocalNode]) -> list[int]:
    """The nodes, and every engine that they started."""
    engines = [
        int(str(event["pid"])) for node in nodes for event in node.events if event.get("event") == "engine_ready"
    ]
    assert len(engines) >= len(nodes)
    return [node.process.pid for node in nodes] + engines


async def wait_gone(pid: int) -> None:
    """Waits until the process has ended, also if another process is its parent."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with trio.fail_after(DEADLINE_S):
            await trio.lowlevel.wait_readable(handle)
    finally:
        os.close(handle)


async def becomes_idle(node: LocalNode) -> None:
    """Waits until the node's engine has nothing to do. It looks at each line of the node's log, and a second after the
    last one: a request's end may be logged before the engine reports it."""
    info = await node.wait_ready()
    while (await fetch_state(info)).active_requests:
        with trio.move_on_after(1):
            await node.wait_next_event()
