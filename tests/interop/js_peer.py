"""A peer on js-libp2p, in a process of its own: ``js/peer.js`` does what a test tells it over its standard input."""

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

FOLDER = Path(__file__).parent / "js"
POLL_S = 0.05


def missing() -> str:
    """Why no such peer can run here; empty if it can."""
    if shutil.which("node") is None:
        return "no Node.js"
    return "" if (FOLDER / "node_modules" / "libp2p").is_dir() else "js-libp2p is not installed: make interop"


class JsError(Exception):
    """What the peer threw."""


class JsPeer:
    """A running peer. Each command waits for its result."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._turn = trio.Lock()
        self._buffer = b""
        self.id = ""

    async def do(self, command: str, argument: object = None) -> Any:
        """Raises JsError."""
        assert self._process.stdin is not None and self._process.stdout is not None
        async with self._turn:
            await self._process.stdin.send_all(json.dumps([command, argument]).encode() + b"\n")
            while b"\n" not in self._buffer:
                data = await self._process.stdout.receive_some()
                if not data:
                    raise JsError("the peer's process ended")
                self._buffer += data
            line, self._buffer = self._buffer.split(b"\n", 1)
        result = json.loads(line)
        if "error" in result:
            raise JsError(result["error"])
        return result["value"]

    async def until(self, command: str, holds: Callable[[Any], object]) -> Any:
        """Repeats ``command`` until ``holds`` of its result, which is returned."""
        while not holds(result := await self.do(command)):  # noqa: ASYNC110
            await trio.sleep(POLL_S)
        return result

    async def address(self) -> str:
        """Its first address, with its id."""
        address: str = (await self.do("addresses"))[0]
        return address


@asynccontextmanager
async def js_peer(namespace: str = "", **options: object) -> AsyncIterator[JsPeer]:
    """namespace: the network namespace to run in. options: those of ``start`` in ``js/peer.js``."""
    within = ["ip", "netns", "exec", namespace] if namespace else []
    process = await trio.lowlevel.open_process(
        [*within, "node", "peer.js"], cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        peer = JsPeer(process)
        peer.id = await peer.do("start", options)
        yield peer
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
