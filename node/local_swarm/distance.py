"""Real nodes on this machine with simulated distance between them.

Each node announces only the address of a proxy in front of it, which delays every byte by half of the round trip in
each direction. Nodes dial each other at the announced addresses, so each connection crosses exactly one proxy."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import psutil
import trio

from mycelia.node.local_swarm.delay_proxy import DelayProxy, open_delay_proxy
from mycelia.node.local_swarm.processes import LocalNode, LocalSwarm
from mycelia.proto.wire.errors import LocalError

START_DEADLINE_S = 180.0


@dataclass(frozen=True)
class SwarmSettings:
    """The nodes to start."""

    num_nodes: int
    rtt_s: float
    options: tuple[str, ...]
    """The options of ``mycelia node`` for every node."""


@asynccontextmanager
async def open_at_a_distance(swarm: LocalSwarm, settings: SwarmSettings) -> AsyncIterator[list[LocalNode]]:
    async with open_behind_proxies(swarm, settings) as (nodes, _):
        yield nodes


@asynccontextmanager
async def open_behind_proxies(
    swarm: LocalSwarm, settings: SwarmSettings
) -> AsyncIterator[tuple[list[LocalNode], list[DelayProxy]]]:
    """Starts nodes, each behind its proxy, and waits until all know each other. All but the first get only the first
    node's address. Raises LocalError when they do not start in time."""
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(open_delay_proxy(settings.rtt_s / 2)) for _ in range(settings.num_nodes)
        ]
        try:
            with trio.fail_after(START_DEADLINE_S):
                nodes = await _start(swarm, settings, proxies)
        except trio.TooSlowError as exc:
            raise LocalError("the swarm did not come up in time; is the machine busy with something else?") from exc
        yield nodes, proxies


def part(nodes: Sequence[LocalNode], proxies: Sequence[DelayProxy], sides: Sequence[int]) -> None:
    """Cuts every line between nodes of different ``sides`` (a number for each of ``nodes``), also for new connections,
    until every proxy's ``DelayProxy.heal`` is called. The caller may replace elements of ``nodes`` meanwhile."""

    def side_of(port: int) -> int | None:
        for node, side in zip(nodes, sides, strict=True):
            with suppress(psutil.Error):  # (the node may just have been killed)
                if any(one.laddr.port == port for one in psutil.Process(node.process.pid).net_connections("tcp")):
                    return side
        return None

    for proxy, own_side in zip(proxies, sides, strict=True):
        proxy.cut(lambda port, own_side=own_side: side_of(port) not in (own_side, None))  # type: ignore[misc]


async def _start(swarm: LocalSwarm, settings: SwarmSettings, proxies: Sequence[DelayProxy]) -> list[LocalNode]:
    nodes: list[LocalNode] = []
    for number, proxy in enumerate(proxies, start=1):
        announced = ("--announce", f"/ip4/127.0.0.1/tcp/{proxy.port}")
        bootstrap = [await nodes[0].address()] if nodes else []
        node = await swarm.start(f"node-{number}", bootstrap, [*announced, *settings.options])
        nodes.append(node)
        if number == 1:
            proxy.forward_to(await node.bound_port())
    for node, proxy in zip(nodes, proxies, strict=True):
        proxy.forward_to(await node.bound_port())
    for node in nodes:
        await node.wait_ready()
        await node.wait_peers(settings.num_nodes - 1)
    return nodes
