"""Three real nodes on loopback, and strangers that send them digest versions of owners that do not exist."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from mycelia.bench.attacks.inventors import make_owners_up
from mycelia.node.app import Node
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p.network import open_network
from mycelia.node.network.network import NetworkSettings
from tests.node.network.libp2p.network_helpers import LOOPBACK, eventually

ATTACK_S = 8.0
QUESTION_BYTES = 160


@asynccontextmanager
async def three_nodes() -> AsyncIterator[list[Node]]:
    """Three nodes that all know each other."""
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        nursery = await stack.enter_async_context(trio.open_nursery())
        addresses: list[str] = []
        for _ in range(3):
            identity = new_identity()
            settings = NetworkSettings(identity=identity, listen=LOOPBACK, bootstrap=tuple(addresses))
            network = await stack.enter_async_context(open_network(settings))
            node = Node(identity, FakeEngine(), network, 1)
            await nursery.start(node.run)
            addresses += network.addresses()
            nodes.append(node)
        await eventually(lambda: all(len(node.state().peers) == 2 for node in nodes))
        yield nodes
        nursery.cancel_scope.cancel()


def num_asked(node: Node) -> int:
    """The number of repair requests that ``node`` received."""
    return node.state().traffic.received_kinds.get("RepairRequest", 0) // QUESTION_BYTES


@pytest.mark.parametrize("says_hello", [False, True])
async def test_owners_that_strangers_invent_part_no_honest_nodes(says_hello: bool) -> None:
    with trio.fail_after(120):
        async with three_nodes() as nodes:
            namespace = bytes.fromhex(nodes[0].state().namespace)
            (address,) = nodes[0].state().addresses
            honest = {node.state().peer for node in nodes}
            asked_before = [num_asked(node) for node in nodes[1:]]
            assert await make_owners_up([address], namespace, ATTACK_S, says_hello=says_hello) > 100
            for node, before in zip(nodes[1:], asked_before, strict=True):
                assert num_asked(node) - before < 30, (
                    "what strangers told the first is the second's and third's no matter"
                )
            for node in nodes:
                rows = [row for row in node.state().peers if row.peer in honest]
                assert len(rows) == 2 and all(row.connected_s >= ATTACK_S for row in rows)
                assert "quarantined" not in node.state().refused and "too_many" not in node.state().refused
