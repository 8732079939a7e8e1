"""Real nodes on fixed ports of this machine, and what happens to them: they are killed and started again, frozen, or
robbed of their engine process."""

import random
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import trio

from node.swarm import LocalNode, LocalSwarm, open_local_swarm
from proto.errors import LocalError

KILL, FREEZE, ENGINE = "kill", "freeze", "engine"
FROZEN_S = 12.0
"""Longer than peers wait for a sign of life."""
START_DEADLINE_S = 120.0


class Nodes:
    """Node processes by number, each restarted where it was found before. Made by ``open_nodes``."""

    def __init__(self, swarm: LocalSwarm, options: Sequence[str], ports: Sequence[int]) -> None:
        self._swarm = swarm
        self._options = options
        self._ports = ports
        self.nodes: list[LocalNode] = []
        self.addresses: list[str] = []
        """Full multiaddrs."""

    async def start(self, number: int, bootstrap: Sequence[str]) -> LocalNode:
        """For the first time, or again. Returns at once."""
        listen = f"/ip4/127.0.0.1/tcp/{self._ports[number]}"
        return await self._swarm.start(f"node-{number + 1}", bootstrap, [*self._options, "--listen", listen])

    async def restart(self, number: int) -> None:
        """SIGKILL, and start again. Returns when it serves."""
        node = self.nodes[number]
        node.kill()
        await node.process.wait()
        others = [address for place, address in enumerate(self.addresses) if place != number]
        node = self.nodes[number] = await self.start(number, others)
        await node.wait_ready()


@asynccontextmanager
async def open_nodes(count: int, options: Sequence[str], root: Path) -> AsyncIterator[Nodes]:
    """``count`` nodes that know each other; leaving ends them. options: of ``mycelia node``, for all. Raises LocalError
    when they do not come up in time."""
    await trio.Path(root).mkdir(exist_ok=True)
    async with open_local_swarm(root) as swarm:
        made = Nodes(swarm, options, _free_ports(count))
        try:
            with trio.fail_after(START_DEADLINE_S):
                for number in range(count):
                    made.nodes.append(await made.start(number, made.addresses[:1]))
                    if not made.addresses:
                        made.addresses.append(await made.nodes[0].address())
                for node in made.nodes:
                    await node.wait_ready()
                    await node.wait_peers(count - 1)
                made.addresses = [await node.address() for node in made.nodes]
        except trio.TooSlowError as exc:
            raise LocalError("the swarm did not come up in time; is the machine busy with something else?") from exc
        yield made


def _free_ports(count: int) -> list[int]:
    """That nobody listens on now: a node that is started again must be found where it was."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Trouble:
    """Does one thing after the other to nodes that are up. At least one is left alone at any time."""

    def __init__(
        self, nodes: Nodes, faults: Sequence[str], every_s: float, rng: random.Random, spared: Sequence[int] = ()
    ) -> None:
        """spared: numbers of nodes to which nothing is ever done."""
        self._nodes = nodes
        self._faults = faults
        self._every_s = every_s
        self._rng = rng
        self._up = set(range(len(nodes.nodes))) - set(spared)
        self._least_up = 0 if spared else 1
        self._stopped = trio.Event()
        self.num_faults = 0

    def stop(self) -> None:
        """Do nothing more: ``run`` returns when all nodes serve again."""
        self._stopped.set()

    async def run(self) -> None:
        """Until ``stop`` or cancelled. May be run again."""
        self._stopped = trio.Event()
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(self._every_s):
                    await self._stopped.wait()
                if self._stopped.is_set():
                    break
                fault = self._rng.choice(self._faults)
                if len(self._up) > self._least_up:
                    number = self._rng.choice(sorted(self._up))
                    self._up.remove(number)
                    nursery.start_soon(self._strike, fault, number)

    async def _strike(self, fault: str, number: int) -> None:
        """Returns when the node serves again."""
        node = self._nodes.nodes[number]
        self.num_faults += 1
        if fault == KILL:
            await self._nodes.restart(number)
        elif fault == FREEZE:
            node.process.send_signal(signal.SIGSTOP)
            try:
                await trio.sleep(FROZEN_S)
            finally:
                node.process.send_signal(signal.SIGCONT)
        else:
            for child in psutil.Process(node.process.pid).children():
                child.kill()
            await node.wait_event(lambda event: event.get("event") == "engine_lost")
        self._up.add(number)
