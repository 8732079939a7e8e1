"""A swarm of real nodes, several to a process, as ``bench/hundred/host.py`` runs them."""

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import psutil
import trio

from mycelia.bench.asking import in_time
from mycelia.bench.hundred.host import Look, Place
from mycelia.node.local_swarm.processes import LocalNode, LocalSwarm, open_local_swarm

COMMAND = (sys.executable, "-P", "-m", "mycelia.bench.hundred.host")
START_DEADLINE_S, SETTLE_DEADLINE_S, LOOK_DEADLINE_S = 600.0, 180.0, 60.0


@dataclass
class Host:
    """A process of several nodes."""

    process: LocalNode
    places: list[Place]
    num_looks: int = 0


class Hosts:
    """The whole swarm. Made by ``open_hosts``."""

    def __init__(self, swarm: LocalSwarm) -> None:
        self._swarm = swarm
        self.hosts: list[Host] = []

    @property
    def places(self) -> list[Place]:
        """The nodes that run."""
        return [place for host in self.hosts for place in host.places]

    async def start(self, num_nodes: int, num_per_process: int) -> None:
        """Starts all nodes, one process after the other. Those of a process know only one node of the process before.

        (A node gives at most 96 of its places for connections to one address, and here all have the same.)"""
        bootstrap: list[str] = []
        for number, begun in enumerate(range(0, num_nodes, num_per_process), start=1):
            host = await self._start_host(number, min(num_per_process, num_nodes - begun), bootstrap)
            bootstrap = [await host.process.address()]

    async def look(self, peers: Sequence[str]) -> list[Look]:
        """What each running node knows of ``peers``, which may contain the node itself."""
        looks: dict[int, list[Look]] = {}

        async def ask(number: int, host: Host) -> None:
            looks[number] = await _looked(host, peers)

        with in_time(LOOK_DEADLINE_S, "the nodes did not say in time what they know"):
            async with trio.open_nursery() as nursery:
                for number, host in enumerate(self.hosts):
                    nursery.start_soon(ask, number, host)
        return [one for number in range(len(self.hosts)) for one in looks[number]]

    def kill(self, count: int) -> list[Place]:
        """Sends SIGKILL to ``count`` processes, the last ones, and returns their nodes."""
        killed = self.hosts[-count:]
        del self.hosts[-count:]
        for host in killed:
            host.process.kill()
        return [place for host in killed for place in host.places]

    async def wait_settled(self) -> None:
        """Returns when every node has made its early, frequent lookups, at the latest after SETTLE_DEADLINE_S."""
        with trio.move_on_after(SETTLE_DEADLINE_S):
            for host in self.hosts:
                for number in range(len(host.places)):
                    await host.process.wait_event(partial(_is_settled, f"{host.process.name}/{number + 1}"))

    @property
    def pids(self) -> list[int]:
        return [host.process.process.pid for host in self.hosts]

    def cpu_s(self) -> float:
        """Processor time of all processes so far."""
        times = [psutil.Process(pid).cpu_times() for pid in self.pids]
        return float(sum(one.user + one.system for one in times))

    def pss_bytes(self) -> float:
        """Memory of all processes. Pages that several processes share count once."""
        return float(sum(psutil.Process(pid).memory_full_info().pss for pid in self.pids))

    async def _start_host(self, number: int, count: int, bootstrap: Sequence[str]) -> Host:
        name = f"host-{number}"
        process = await self._swarm.start(name, bootstrap, ["--nodes", str(count)], COMMAND)
        event = await process.wait_event(lambda event: event.get("event") == "hosted")
        host = Host(process, msgspec.convert(event["places"], list[Place]))
        self.hosts.append(host)
        return host


@asynccontextmanager
async def open_hosts(num_nodes: int, num_per_process: int) -> AsyncIterator[Hosts]:
    """Nodes that are ready, and ended when the block is left. Raises LocalError when they do not start in time."""
    with TemporaryDirectory(prefix="mycelia-bench-", ignore_cleanup_errors=True) as root:
        async with open_local_swarm(Path(root)) as swarm:
            hosts = Hosts(swarm)
            with in_time(START_DEADLINE_S, "the swarm did not come up in time"):
                await hosts.start(num_nodes, num_per_process)
            yield hosts


def _is_settled(node: str, event: dict[str, object]) -> bool:
    return event.get("event") == "discovery_settled" and event.get("node") == node


async def _looked(host: Host, peers: Sequence[str]) -> list[Look]:
    assert host.process.process.stdin is not None
    host.num_looks += 1
    await host.process.process.stdin.send_all(msgspec.json.encode([host.num_looks, peers]) + b"\n")
    number = host.num_looks
    event = await host.process.wait_event(lambda event: event.get("event") == "looked" and event["number"] == number)
    return msgspec.convert(event["looks"], list[Look])
