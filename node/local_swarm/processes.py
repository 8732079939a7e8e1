"""A swarm of real node processes on this machine: for trying Mycelia, for demos and for end-to-end tests.

Each node has its own process, data directory, identity and ports. Nodes run in sessions of their own, so that Ctrl-C
reaches only their owner, which then ends them in order; and they hold a pipe to their owner, so that they leave by
themselves when it is killed.
"""

import json
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from mycelia.node.storage.rundir import RunInfo
from mycelia.proto.wire.errors import LocalError

STOP_DEADLINE_S = 10.0
"""From SIGTERM to SIGKILL. A node leaves within a second or two; a busy machine may take longer."""
COMMAND = (sys.executable, "-P", "-m", "mycelia.node", "--isolated")
"""How programs run ``mycelia``: what a user has configured is not meant for them."""
_MAX_LOG_LINES = 2_000


@dataclass
class LocalNode:
    """One node process. ``events`` are its log lines, parsed, newest last."""

    name: str
    data_dir: Path
    process: trio.Process
    events: deque[dict[str, object]] = field(default_factory=lambda: deque(maxlen=_MAX_LOG_LINES))
    num_events: int = 0
    """Ever; the oldest are forgotten."""
    counts: Counter[str] = field(default_factory=Counter)
    """The same by name."""
    _ready: dict[str, object] | None = None
    _changed: trio.Event = field(default_factory=trio.Event)
    is_drained: bool = False

    async def wait_event(self, matches: Callable[[dict[str, object]], bool]) -> dict[str, object]:
        """The first log line, past or to come, that ``matches``. Raises LocalError when the node ends without it."""
        seen = 0
        while True:
            num_new = min(self.num_events - seen, len(self.events))
            for event in list(self.events)[len(self.events) - num_new :]:
                if matches(event):
                    return event
            seen = self.num_events
            await self.wait_next_event()

    async def wait_next_event(self) -> None:
        """Until the node logs something more. Raises LocalError when it has ended."""
        if self.process.returncode is not None and self.is_drained:
            raise LocalError(f"{self.name} ended with exit code {self.process.returncode}: {self._last_words()}")
        await self._changed.wait()

    async def wait_ready(self) -> RunInfo:
        """Where the node is, once it serves."""
        event = await self._wait_ready()
        return RunInfo(self.process.pid, str(event["api"]), str(event["peer"]))

    async def address(self) -> str:
        """A full multiaddr for other nodes' --bootstrap."""
        listen = (await self._wait_ready())["listen"]
        assert isinstance(listen, list)
        return str(listen[0])

    async def _wait_ready(self) -> dict[str, object]:
        """Also when that line has been forgotten."""
        return self._ready or await self.wait_event(lambda e: e.get("event") == "ready")

    async def wait_peers(self, count: int) -> None:
        """Until at least ``count`` other nodes have joined, as this one sees it."""
        joined: set[object] = set()

        def is_enough(event: dict[str, object]) -> bool:
            if event.get("event") == "node_joined":
                joined.add(event["peer"])
            return len(joined) >= count

        await self.wait_event(is_enough)

    def note(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            event = {"event": line.decode(errors="replace").rstrip()}
        if not isinstance(event, dict):
            event = {"event": event}
        name = str(event.get("event", ""))
        if name == "ready":
            self._ready = event
        if name in self.counts or len(self.counts) < _MAX_LOG_LINES:
            self.counts[name] += 1
        self.events.append(event)
        self.num_events += 1
        self.wake()

    def wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _last_words(self) -> str:
        return str(self.events[-1].get("event", "")) if self.events else "it said nothing"

    async def stop(self) -> None:
        """See ``end``."""
        await end(self.process)

    def kill(self) -> None:
        """SIGKILL, as a crash or a power cut would end it."""
        self.process.send_signal(signal.SIGKILL)


async def end(process: trio.Process) -> None:
    """The end of its standard input, or SIGTERM if that is not ours; SIGKILL if it takes too long.

    Returns when the process is gone, also in a cancelled task."""
    with trio.CancelScope(shield=True):
        if process.returncode is None:
            if process.stdin is None:
                process.terminate()
            else:  # (a node with --exit-with-parent: it leaves at once, and a signal would have it finish its answers)
                await process.stdin.aclose()
            with trio.move_on_after(STOP_DEADLINE_S):
                await process.wait()
        if process.returncode is None:
            process.kill()
        await process.wait()


class LocalSwarm:
    """Node processes under one directory. Made by ``open_local_swarm``."""

    def __init__(self, root: Path, nursery: trio.Nursery) -> None:
        self._root = root
        self._nursery = nursery
        self.nodes: list[LocalNode] = []

    async def start(
        self,
        name: str,
        bootstrap: Sequence[str] = (),
        options: Sequence[str] = (),
        command: Sequence[str] = COMMAND,
    ) -> LocalNode:
        """Start a node (again) with the data directory ``root/name``, on free ports unless ``options`` say otherwise.
        command: runs ``mycelia``.

        Returns at once; see ``LocalNode.wait_ready``.
        """
        data_dir = self._root / name
        data_dir.mkdir(parents=True, exist_ok=True)
        nobody = self._root / "no-bootstrap.txt"
        nobody.touch()
        arguments = ["node", "--data-dir", str(data_dir), "--exit-with-parent"]
        for address in bootstrap or [str(nobody)]:
            arguments += ["--bootstrap", address]
        if "--listen" not in options:
            arguments += ["--listen", "/ip4/127.0.0.1/tcp/0"]
        if "--api-port" not in options:
            arguments += ["--api-port", "0"]
        process = await trio.lowlevel.open_process(
            [*command, *arguments, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        node = LocalNode(name, data_dir, process)
        self.nodes.append(node)
        self._nursery.start_soon(self._follow, node)
        return node

    async def start_many(self, count: int, options: Sequence[str] = ()) -> list[LocalNode]:
        """``count`` nodes that all find each other; all but the first know only the first one's address."""
        first = await self.start("node-1", options=options)
        address = await first.address()
        others = [await self.start(f"node-{number}", [address], options) for number in range(2, count + 1)]
        nodes = [first, *others]
        for node in nodes:
            await node.wait_ready()
        for node in nodes:
            await node.wait_peers(count - 1)
        return nodes

    async def _follow(self, node: LocalNode) -> None:
        """Read the node's log until it ends, into ``events`` and a file."""
        assert node.process.stderr is not None
        rest = b""
        with (node.data_dir / "mycelia.node.log").open("ab") as file:
            async for chunk in node.process.stderr:
                file.write(chunk)
                file.flush()
                *lines, rest = (rest + bytes(chunk)).split(b"\n")
                for line in lines:
                    node.note(line)
        await node.process.wait()
        node.is_drained = True
        node.wake()


@asynccontextmanager
async def open_local_swarm(root: Path) -> AsyncIterator[LocalSwarm]:
    """A swarm under ``root``; leaving ends every process of it, also on Ctrl-C or an error."""
    async with trio.open_nursery() as nursery:
        swarm = LocalSwarm(root, nursery)
        try:
            yield swarm
        finally:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as stopping:
                    for node in swarm.nodes:
                        stopping.start_soon(node.stop)
