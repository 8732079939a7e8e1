"""Real nodes on fixed ports of this machine, and their faults.

- ``kill``: SIGKILL, and a new start.
- ``freeze``: SIGSTOP for longer than peers wait for a sign of life.
- ``engine``: SIGKILL of the engine process.
- ``sleep``: SIGSTOP of the node and its engines, for longer than peers keep a silent node; then they go on at once.
- ``storm``: all nodes but one are killed at once, and start again at once.
- ``flap``: a node is killed again each time it has just come back, some times.
- ``full-disk``: for a while every write of a node and its engine to a file fails, by a limit of file sizes.
- ``slow-disk``: for a while each call of a node and its engine that opens, syncs, moves or removes a file takes a
  quarter of a second longer. Needs strace, and the right to trace.
- ``clock``: a running node's clock jumps by an hour and back. Needs libfaketime.
- ``delay``, ``loss``: for a while messages to a node take longer, or are lost at first and sent again.
- ``partition``: for a while nothing passes between two parts of the nodes.

For the last three each node is behind a proxy (``delay_proxy.py``).
"""

import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import cache, partial
from pathlib import Path

import psutil
import trio

from mycelia.bench.asking import in_time
from mycelia.bench.plans import (
    CLOCK,
    DELAY,
    ENGINE,
    FLAP,
    FREEZE,
    FULL_DISK,
    KILL,
    LOSS,
    PARTITION,
    SLEEP,
    SLOW_DISK,
    STORM,
)
from mycelia.node.local_swarm.delay_proxy import DelayProxy, Quality, open_delay_proxy
from mycelia.node.local_swarm.distance import part
from mycelia.node.local_swarm.processes import COMMAND, LocalNode, LocalSwarm, open_local_swarm
from mycelia.proto.wire.errors import LocalError

FROZEN_S = 12.0
SLEPT_S = 45.0
FULL_S = 12.0
SLOW_S, SLOWED_S = 0.25, 12.0
"""Added time of a slow disk's calls, and the length of the fault."""
FLAPS = 3
JUMPS_S = (-3_600, 3_600)
JUMPED_S = 6.0
"""Time between a jump and the jump back."""
ADDED_S, LOST, BAD_S = 0.5, 0.3, 12.0
"""Added delay, share of lost data, and length of the fault."""
PARTED_S = 15.0
"""Longer than nodes wait for a sign of life of each other."""
START_DEADLINE_S = 120.0
_FAKETIME = "libfaketimeMT.so.1"
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib")
_CLOCK_FILE = "clock"
_FILE_CALLS = ",".join(  # (not every machine knows all of them)
    f"?{name}"
    for name in (
        *("openat", "pread64", "pwrite64", "fsync", "fdatasync", "ftruncate", "rename", "renameat", "renameat2"),
        *("unlink", "unlinkat", "mkdir", "mkdirat", "statfs"),
    )
)
_ATTACHED_S = 0.5
"""Longer than strace takes to report that it may not trace."""


class Nodes:
    """Node processes by number. Each restarts at its old address. Made by ``open_nodes``."""

    def __init__(
        self,
        swarm: LocalSwarm,
        options: Sequence[str],
        ports: Sequence[int],
        clocks: Sequence[Path],
        proxies: Sequence[DelayProxy],
        other_version: Path | None = None,
    ) -> None:
        """clocks: a file for each node that moves its clock; empty: clocks are true. proxies: one in front of each
        node; empty: nodes announce their own ports. other_version: the packages that every second node runs."""
        self._swarm = swarm
        self._options = options
        self._ports = ports
        self._clocks = clocks
        self._other_version = other_version
        self.proxies = proxies
        for proxy, port in zip(proxies, ports, strict=bool(proxies)):
            proxy.forward_to(port)
        self.nodes: list[LocalNode] = []
        self.addresses: list[str] = []

    async def start(self, number: int, bootstrap: Sequence[str]) -> LocalNode:
        """For the first time, or again. Returns at once."""
        listen = f"/ip4/127.0.0.1/tcp/{self._ports[number]}"
        command = (*_with_clock(self._clocks[number]), *COMMAND) if self._clocks else COMMAND
        if self._other_version and number % 2:
            command = (*of_version(self._other_version), *command)
        options = [*self._options, "--listen", listen]
        if self.proxies:
            options += ["--announce", f"/ip4/127.0.0.1/tcp/{self.proxies[number].port}"]
        return await self._swarm.start(f"node-{number + 1}", bootstrap, options, command)

    async def restart(self, number: int) -> None:
        """SIGKILL, and start again. Returns when it serves."""
        node = self.nodes[number]
        node.kill()
        await node.process.wait()
        others = [address for place, address in enumerate(self.addresses) if place != number]
        node = self.nodes[number] = await self.start(number, others)
        await node.wait_ready()

    def move_clock(self, number: int, seconds: int) -> None:
        """Sets how far the clock is off from now on."""
        self._clocks[number].write_text(f"{seconds:+d}")


@asynccontextmanager
async def open_nodes(
    count: int,
    options: Sequence[str],
    root: Path,
    faults: Collection[str] = (),
    other_version: Path | None = None,
) -> AsyncIterator[Nodes]:
    """``count`` nodes that know each other; leaving ends them. options: for ``mycelia node``, the same for all. faults:
    to be injected later. other_version: see ``Nodes``. Raises LocalError when nodes do not start in time, or a fault
    needs a missing program."""
    await trio.Path(root).mkdir(exist_ok=True)
    clocks = [root / f"{_CLOCK_FILE}-{number}" for number in range(count)] if CLOCK in faults else []
    if clocks and not can_move_clocks():
        raise LocalError("moving a node's clock needs libfaketime: sudo apt-get install faketime")
    if SLOW_DISK in faults and not can_slow_disks():
        raise LocalError(
            "slowing a node's disk needs strace, and the right to trace: sudo apt-get install strace, and run this as"
            " root or after: sudo sysctl kernel.yama.ptrace_scope=0"
        )
    num_proxies = count if {DELAY, LOSS, PARTITION} & set(faults) else 0
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(open_delay_proxy(0.0)) for _ in range(num_proxies)]
        swarm = await stack.enter_async_context(open_local_swarm(root))
        made = Nodes(swarm, options, _free_ports(count), clocks, proxies, other_version)
        for number in range(len(clocks)):
            made.move_clock(number, 0)
        with in_time(START_DEADLINE_S, "the swarm did not come up in time"):
            for number in range(count):
                made.nodes.append(await made.start(number, made.addresses[:1]))
                if not made.addresses:
                    made.addresses.append(await made.nodes[0].address())
            for node in made.nodes:
                await node.wait_ready()
                await node.wait_peers(count - 1)
            made.addresses = [await node.address() for node in made.nodes]
        yield made


def can_move_clocks() -> bool:
    return _faketime() is not None


@cache
def can_slow_disks() -> bool:
    """Whether ``slow-disk`` is possible here. Blocks for half a second to find out."""
    if shutil.which("strace") is None:
        return False
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        try:
            tracer = ["strace", "--output=/dev/null", f"--attach={stranger.pid}"]
            subprocess.run(tracer, stderr=subprocess.DEVNULL, timeout=_ATTACHED_S, check=False)
        except subprocess.TimeoutExpired:
            return True
        finally:
            stranger.kill()
    return False


@cache
def _faketime() -> Path | None:
    places = [found for folder in _LIBRARIES for found in Path(folder).glob(f"**/faketime/{_FAKETIME}")]
    return min(places, default=None)


def of_version(folder: Path) -> tuple[str, ...]:
    """The start of a command that runs the packages in ``folder`` instead of this version's."""
    return ("env", f"PYTHONPATH={folder.absolute()}")


def _with_clock(file: Path) -> tuple[str, ...]:
    """The start of a command whose clock follows that file. Monotonic time stays true."""
    return (
        "env",
        f"LD_PRELOAD={_faketime()}",
        f"FAKETIME_TIMESTAMP_FILE={file}",
        "FAKETIME_NO_CACHE=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
    )


def _free_ports(count: int) -> list[int]:
    """Ports that no process listens on now. They are fixed, so that peers find a restarted node."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


class FaultInjector:
    """Injects one fault after another into running nodes. At least one node is left alone at any time."""

    def __init__(
        self, nodes: Nodes, faults: Sequence[str], every_s: float, rng: random.Random, spared: Sequence[int] = ()
    ) -> None:
        """spared: numbers of nodes without any fault."""
        self._nodes = nodes
        self._faults = faults
        self._every_s = every_s
        self._rng = rng
        self._up = set(range(len(nodes.nodes))) - set(spared)
        self._least_up = 0 if spared else 1
        self._stopped = trio.Event()
        self.num_faults = 0

    def stop(self) -> None:
        """Inject no more faults: ``run`` returns when all nodes serve again."""
        self._stopped.set()

    async def run(self) -> None:
        """Inject faults until ``stop`` is called or this is cancelled. May be run again."""
        self._stopped = trio.Event()
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(self._every_s):
                    await self._stopped.wait()
                if self._stopped.is_set():
                    break
                fault = self._rng.choice(self._faults)
                order = self._rng.sample(sorted(self._up), len(self._up))
                num_struck = len(self._up) - self._least_up
                for number in order[: num_struck if fault == STORM else min(num_struck, 1)]:
                    self._up.remove(number)
                    nursery.start_soon(self._strike, fault, number)

    async def _strike(self, fault: str, number: int) -> None:
        """Returns when the node serves again."""
        self.num_faults += 1
        strikes: dict[str, Callable[[int], Awaitable[None]]] = {
            KILL: self._nodes.restart,
            STORM: self._nodes.restart,
            FREEZE: self._freeze,
            SLEEP: self._sleep,
            ENGINE: self._kill_engine,
            FLAP: self._flap,
            FULL_DISK: self._fill_disk,
            SLOW_DISK: self._slow_disk,
            CLOCK: self._move_clock,
            DELAY: partial(self._spoil_line, Quality(ADDED_S)),
            LOSS: partial(self._spoil_line, Quality(0.0, LOST, self._rng)),
            PARTITION: self._part,
        }
        await strikes[fault](number)
        self._up.add(number)

    async def _freeze(self, number: int) -> None:
        process = self._nodes.nodes[number].process
        process.send_signal(signal.SIGSTOP)
        try:
            await trio.sleep(FROZEN_S)
        finally:
            process.send_signal(signal.SIGCONT)

    async def _sleep(self, number: int) -> None:
        node = psutil.Process(self._nodes.nodes[number].process.pid)
        stopped = (node, *node.children())
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        try:
            await trio.sleep(SLEPT_S)
        finally:
            for process in stopped:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    async def _kill_engine(self, number: int) -> None:
        node = self._nodes.nodes[number]
        for child in psutil.Process(node.process.pid).children():
            child.kill()
        await node.wait_event(lambda event: event.get("event") == "engine_lost")

    async def _flap(self, number: int) -> None:
        for _ in range(FLAPS):
            await self._nodes.restart(number)

    async def _fill_disk(self, number: int) -> None:
        node = psutil.Process(self._nodes.nodes[number].process.pid)
        limits = {process: process.rlimit(psutil.RLIMIT_FSIZE) for process in (node, *node.children())}
        for process, (_, most) in limits.items():
            process.rlimit(psutil.RLIMIT_FSIZE, (0, most))
        await trio.sleep(FULL_S)
        for process, limit in limits.items():
            with suppress(psutil.NoSuchProcess):
                process.rlimit(psutil.RLIMIT_FSIZE, limit)

    async def _slow_disk(self, number: int) -> None:
        node = psutil.Process(self._nodes.nodes[number].process.pid)
        pids = [f"--attach={process.pid}" for process in (node, *node.children())]
        inject = f"--inject={_FILE_CALLS}:delay_enter={round(SLOW_S * 1e6)}"
        command = ["strace", "--follow-forks", "--quiet=all", "--output=/dev/null", inject, *pids]
        strace = await trio.lowlevel.open_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with trio.move_on_after(SLOWED_S):
                await strace.wait()
                raise LocalError(f"strace ended with exit code {strace.returncode}: the disk was not slow")
        finally:
            strace.terminate()  # (this detaches it)
            with trio.CancelScope(shield=True):
                await strace.wait()

    async def _move_clock(self, number: int) -> None:
        self._nodes.move_clock(number, self._rng.choice(JUMPS_S))
        await trio.sleep(JUMPED_S)
        self._nodes.move_clock(number, 0)

    async def _spoil_line(self, quality: Quality, number: int) -> None:
        self._nodes.proxies[number].spoil(quality)
        await trio.sleep(BAD_S)
        self._nodes.proxies[number].mend()

    async def _part(self, number: int) -> None:
        """Separates the node and half of the others from the rest."""
        count = len(self._nodes.nodes)
        others = self._rng.sample([one for one in range(count) if one != number], count // 2 - 1)
        part(self._nodes.nodes, self._nodes.proxies, [int(one == number or one in others) for one in range(count)])
        await trio.sleep(PARTED_S)
        for proxy in self._nodes.proxies:
            proxy.heal()
