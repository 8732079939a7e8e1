"""A swarm of real node processes on this machine: for trying Mycelia, for demos and for end-to-end tests.

Each node has its own process, data directory, identity and ports. Each process has its own session, so Ctrl-C reaches
only the process that started the nodes, which then ends them. A pipe between them makes nodes leave when it is killed.
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

from mycelia.node.signals import Signal
from mycelia.node.storage.rundir import RunInfo
from mycelia.proto.wire.errors import LocalError

STOP_DEADLINE_S = 10.0
"""Time from SIGTERM to SIGKILL. A node leaves within one or two seconds, on a busy machine later."""
COMMAND = (sys.executable, "-P", "-m", "mycelia.node", "--isolated")
"""The command with which programs run ``mycelia``, without the user's configuration."""
_MAX_LOG_LINES = 2_000


@dataclass
class LocalNode:
    """One node process. ``events`` are its log lines, parsed, newest last."""

    name: str
    data_dir: Path
    process: trio.Process
    options: tuple[str, ...] = ()
    """The options it was started with."""
    events: deque[dict[str, object]] = field(default_factory=lambda: deque(maxlen=_MAX_LOG_LINES))
    num_events: int = 0
    """The number of events since the start, including those no longer in ``events``."""
    counts: Counter[str] = field(default_factory=Counter)
    """Event name -> its number since the start."""
    _places: dict[str, dict[str, object]] = field(default_factory=dict)
    """The events that say where the node is, by name; ``events`` drops them."""
    _changed: Signal = field(default_factory=Signal)
    is_drained: bool = False

    async def wait_event(self, matches: Callable[[dict[str, object]], bool]) -> dict[str, object]:
        """The first past or future log line that ``matches``. Raises LocalError when the node ends without it."""
        seen = 0
        while True:
            num_new = min(self.num_events - seen, len(self.events))
            for event in list(self.events)[len(self.events) - num_new :]:
                if matches(event):
                    return event
            seen = self.num_events
            await self.wait_next_event()

    async def wait_next_event(self) -> None:
        """Returns after the next log line. Raises LocalError when the node has ended."""
        if self.process.returncode is not None and self.is_drained:
            raise LocalError(f"{self.name} {self._how_it_ended()}")
        await self._changed.wait()

    async def wait_ended(self) -> str:
        """Returns when the node has ended, and how that happened: the rest of a sentence about it."""
        while self.process.returncode is None or not self.is_drained:
            await self._changed.wait()
        return self._how_it_ended()

    async def wait_ready(self) -> RunInfo:
        """Waits until the node serves, and returns its addresses."""
        event = await self._wait_place("ready")
        return RunInfo(self.process.pid, str(event["api"]), str(event["peer"]))

    async def address(self) -> str:
        """A full multiaddr for the option --bootstrap of other nodes."""
        return _first_listening(await self._wait_place("ready"))

    async def bound_port(self) -> int:
        """The port on which a node listens that announces another address, as soon as it listens."""
        return int(_first_listening(await self._wait_place("listening")).rpartition("/tcp/")[2])

    async def _wait_place(self, name: str) -> dict[str, object]:
        return self._places.get(name) or await self.wait_event(lambda event: event.get("event") == name)

    async def wait_peers(self, count: int) -> None:
        """Returns when this node has logged that at least ``count`` other nodes joined."""
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
        if name in ("ready", "listening"):
            self._places.setdefault(name, event)
        if name in self.counts or len(self.counts) < _MAX_LOG_LINES:
            self.counts[name] += 1
        self.events.append(event)
        self.num_events += 1
        self.wake()

    def wake(self) -> None:
        self._changed.notify()

    def _how_it_ended(self) -> str:
        code = self.process.returncode or 0
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        last_words = str(self.events[-1].get("event", "")) if self.events else "it said nothing"
        return f"ended with exit code {code}: {last_words}"

    async def stop(self) -> None:
        await end(self.process)

    def kill(self) -> None:
        """Sends SIGKILL, which ends the node as a crash or a power cut would."""
        self.process.send_signal(signal.SIGKILL)


def _first_listening(event: dict[str, object]) -> str:
    listen = event["listen"]
    assert isinstance(listen, list)
    return str(listen[0])


async def end(process: trio.Process) -> None:
    """Ends a process by closing its standard input or, without a pipe to that, by SIGTERM. Sends SIGKILL if that takes
    too long. Returns when the process is gone, also in a cancelled task."""
    with trio.CancelScope(shield=True):
        if process.returncode is None:
            if process.stdin is None:
                process.terminate()
            else:  # (a node with --exit-with-parent leaves at once; after a signal it would finish its answers first)
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
        """Starts a node (again) with the data directory ``root/name``, on free ports unless ``options`` name others.
        command: runs ``mycelia``. Returns at once; see ``LocalNode.wait_ready``."""
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
        node = LocalNode(name, data_dir, process, tuple(options))
        self.nodes.append(node)
        self._nursery.start_soon(follow, node)
        return node

    async def start_again(self, node: LocalNode, bootstrap: Sequence[str]) -> LocalNode:
        """Starts a node that has ended with the same options and ports. Returns at once. The node has been ready
        before, or was started by this method."""
        options = list(node.options)
        if "--listen" not in options:
            port = await node.bound_port() if "--announce" in options else (await node.address()).split("/")[4]
            options += ["--listen", f"/ip4/127.0.0.1/tcp/{port}"]
        if "--api-port" not in options:
            options += ["--api-port", (await node.wait_ready()).api_url.rpartition(":")[2]]
        self.nodes.remove(node)
        return await self.start(node.name, bootstrap, options)

    async def start_many(self, count: int, options: Sequence[str] = ()) -> list[LocalNode]:
        """Starts ``count`` nodes and waits until all know each other. The others get only the first one's address."""
        first = await self.start("node-1", options=options)
        address = await first.address()
        others = [await self.start(f"node-{number}", [address], options) for number in range(2, count + 1)]
        nodes = [first, *others]
        for node in nodes:
            await node.wait_ready()
        for node in nodes:
            await node.wait_peers(count - 1)
        return nodes


async def follow(node: LocalNode) -> None:
    """Copies the node's log into ``events`` and a file until the node ends."""
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
    if node.process.stdin is not None:
        await node.process.stdin.aclose()
    node.is_drained = True
    node.wake()


@asynccontextmanager
async def open_local_swarm(root: Path) -> AsyncIterator[LocalSwarm]:
    """A swarm with its files under ``root``. Leaving ends all its processes, also after Ctrl-C or an error."""
    async with trio.open_nursery() as nursery:
        swarm = LocalSwarm(root, nursery)
        try:
            yield swarm
        finally:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as stopping:
                    for node in swarm.nodes:
                        stopping.start_soon(node.stop)
