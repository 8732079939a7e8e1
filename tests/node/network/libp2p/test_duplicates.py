"""Two connections with one peer, after both nodes dialled at once: one is left, and nothing on it is lost."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from mycelia.node.network.libp2p import duplicates, moving
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.network import Disconnected, Received
from mycelia.proto.wire.messages import Ask, Sampling
from tests.node.network.libp2p.network_helpers import (
    NAMESPACE,
    PATIENCE_S,
    eventually,
    following,
    hello,
    node,
)
from tests.node.network.libp2p.test_punching import ECHO, echo, gossips


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "SETTLE_S", 0.2)
    monkeypatch.setattr(moving, "LINGER_S", 0.1)


async def dial_again(dialler: Libp2pNetwork, peer: Libp2pNetwork) -> None:
    """A second connection, as if the dial had begun before the first one was there."""
    address = Multiaddr(peer.addresses()[0].partition("/p2p/")[0])
    await dialler.host.swarm.dial_addr(address, ID(peer.peer_id))


def num_connections(*networks: Libp2pNetwork) -> list[int]:
    one, other = networks
    pairs = [(one, other.peer_id), (other, one.peer_id)]
    return [len(network.table.connections(peer)) for network, peer in pairs]


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Libp2pNetwork, Libp2pNetwork]]:
    """The first has the smaller peer id."""
    async with open_network(node(), {ECHO: echo}) as one, open_network(node(), {ECHO: echo}) as other:
        for network in (one, other):
            await network.join(NAMESPACE)
        smaller, greater = sorted((one, other), key=lambda network: network.peer_id)
        yield smaller, greater


@pytest.mark.parametrize("dialled_first", [0, 1])
async def test_of_two_dials_at_once_one_connection_is_left_and_nothing_is_lost(dialled_first: int) -> None:
    async with pair() as networks, following(networks[0]) as heard, following(networks[1]) as told:
        smaller, greater = networks
        with trio.fail_after(PATIENCE_S):
            first, second = networks[dialled_first], networks[1 - dialled_first]
            await first.connect(second.addresses()[0])
            await eventually(lambda: first.peer_id in second.table)
            for network, other in ((first, second), (second, first)):
                await network.send(other.peer_id, hello("before"))
            on_first = await first.open(second.peer_id, ECHO)
            await dial_again(second, first)
            await eventually(lambda: num_connections(*networks) == [2, 2])
            on_second = await second.open(first.peer_id, ECHO)
            for stream in (on_first, on_second):
                for text in ("one", "two"):
                    ask = Ask(request_id=bytes(16), model="", messages=(), text=text, sampling=Sampling(max_tokens=1))
                    await stream.send(ask)
                    assert await stream.receive() == ask
            assert num_connections(*networks) == [2, 2], "an exchange goes on where it began"
            for stream in (on_first, on_second):
                await stream.aclose()
            await eventually(lambda: num_connections(*networks) == [1, 1])
            (kept,), (same,) = smaller.table.connections(greater.peer_id), greater.table.connections(smaller.peer_id)
            assert kept.muxed_conn.is_initiator and not same.muxed_conn.is_initiator
            for network, other in ((first, second), (second, first)):
                await network.send(other.peer_id, hello("after"))
            for log in (heard, told):
                await log.has(Received, lambda event: event.message == hello("after"))
                assert len(log.of(Received)) == 2
            assert await gossips(smaller, greater, told) and await gossips(greater, smaller, heard)
            assert not heard.of(Disconnected) and not told.of(Disconnected)
            assert smaller.remote_address(greater.peer_id) == greater.addresses()[0].partition("/p2p/")[0]


async def test_a_peer_that_dials_twice_at_once_keeps_the_first_connection() -> None:
    async with pair() as (smaller, greater), following(smaller), following(greater):
        for dialler, peer in ((smaller, greater), (greater, smaller)):
            with trio.fail_after(PATIENCE_S):
                await dialler.connect(peer.addresses()[0])
                (first,) = dialler.table.connections(peer.peer_id)
                await dial_again(dialler, peer)
                await eventually(lambda: num_connections(smaller, greater) == [2, 2])
                await eventually(lambda: num_connections(smaller, greater) == [1, 1])
                assert dialler.table.connections(peer.peer_id) == [first]
                await dialler.disconnect(peer.peer_id)
                await eventually(lambda: num_connections(smaller, greater) == [0, 0])
