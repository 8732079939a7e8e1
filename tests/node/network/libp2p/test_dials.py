"""Dials of addresses that peers announced: which ones a node makes, how often, and that they delay none of its own."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p import identify, outbound
from mycelia.node.network.libp2p.identify import identified
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.libp2p.outbound import MAX_LOOPBACK_DIALS, MAX_PARALLEL_DIALS, Origin
from mycelia.node.network.libp2p.starvation import STARVED_S, Starvation
from mycelia.node.network.names import Names
from mycelia.node.network.network import NetworkError
from mycelia.node.peer_id import peer_text
from mycelia.proto.wire.errors import RemoteError
from tests.node.network.libp2p.network_helpers import PATIENCE_S, eventually, light_client, node
from tests.node.network.zone import Zone


class Trap:
    """A socket that accepts connections and sends nothing."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.num_connections = 0
        port = listener.socket.getsockname()[1]
        self.address = Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")

    async def serve(self, stream: trio.SocketStream) -> None:
        self.num_connections += 1
        async for _ in stream:
            pass


@asynccontextmanager
async def trapped() -> AsyncIterator[Trap]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="0.0.0.0")
        trap = Trap(listener)
        nursery.start_soon(trio.serve_listeners, trap.serve, [listener])
        yield trap
        nursery.cancel_scope.cancel()


async def told(network: Libp2pNetwork, peer: bytes, address: Multiaddr) -> None:
    """Makes ``network`` dial an address from peers, which has to fail."""
    with pytest.raises(NetworkError):
        await network.host.outbound.dial(peer, [address], Origin.TOLD)


async def test_dials_on_the_word_of_others_hold_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers announce addresses that do not answer, also for the peer that the node wants to dial."""
    monkeypatch.setattr(outbound, "DIAL_DEADLINE_S", 1_000.0)
    async with (
        open_network(node()) as wanted,
        open_network(light_client()) as one,
        trapped() as trap,
        trio.open_nursery() as nursery,
    ):
        for number in range(2 * MAX_PARALLEL_DIALS):
            peer = new_identity().peer_id if number else wanted.peer_id
            address = Multiaddr(f"{trap.address}".replace("127.0.0.1", f"127.0.0.{number + 1}"))
            nursery.start_soon(told, one, peer, address)
        await eventually(lambda: trap.num_connections == MAX_LOOPBACK_DIALS)
        with trio.fail_after(PATIENCE_S):
            await one.connect(wanted.addresses()[0])
        assert one.peers() == [wanted.peer_id]
        nursery.cancel_scope.cancel()


async def test_an_address_is_not_dialled_again_and_again_for_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is announced as the address of many peers."""
    monkeypatch.setattr(outbound, "DIAL_DEADLINE_S", 0.1)
    async with open_network(light_client()) as one, trapped() as trap, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(told, one, new_identity().peer_id, trap.address)
        relays = [addresses.circuit(trap.address, new_identity().peer_id) for _ in range(20)]
        for relay in relays:
            nursery.start_soon(told, one, new_identity().peer_id, relay)
    assert trap.num_connections == outbound.ADDRESS_BURST


async def test_addresses_are_dialled_at_a_rate_for_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "DIAL_DEADLINE_S", 0.1)
    monkeypatch.setattr(outbound, "TOLD_BURST", 5.0)
    monkeypatch.setattr(outbound, "TOLD_RATE", 0.001)
    monkeypatch.setattr(outbound, "ADDRESS_BURST", 1_000.0)
    async with open_network(light_client()) as one, trapped() as trap, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(told, one, new_identity().peer_id, trap.address)
    assert trap.num_connections == 5


async def test_a_name_that_leads_into_this_nodes_own_network_is_not_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_network(light_client()) as one, trapped() as trap:
        one.host.outbound.names = Names(Zone({("internal.example", "A"): [b"127.0.0.1"]}), random.Random(1))
        port = trap.address.value_for_protocol("tcp")
        name = Multiaddr(f"/dns4/internal.example/tcp/{port}")
        for origin in (Origin.TOLD, Origin.REMEMBERED):
            with pytest.raises(NetworkError, match="does not lead to an address"):
                await one.host.outbound.dial(new_identity().peer_id, [name], origin)
        num_before = trap.num_connections
        monkeypatch.setattr(outbound, "DIAL_DEADLINE_S", 0.1)
        with pytest.raises(NetworkError, match="accepts the connection and then says nothing"):
            await one.host.outbound.dial(new_identity().peer_id, [name], Origin.OWN)
        assert (num_before, trap.num_connections) == (0, 1), "the operator may name any address"


async def test_names_are_not_looked_up_again_and_again_for_strangers() -> None:
    zone = Zone({})
    async with open_network(light_client()) as one:
        one.host.outbound.names = Names(zone, random.Random(1))
        for _ in range(10):
            await told(one, new_identity().peer_id, Multiaddr("/dns4/internal.example/tcp/1"))
    assert len(zone.asked) == outbound.ADDRESS_BURST


async def test_what_a_peer_outside_says_of_itself_leads_nobody_to_private_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_network(node()) as one, open_network(node()) as liar:
        monkeypatch.setattr(one.table, "remote_address", lambda peer: "/ip4/8.8.8.8/tcp/1")
        with trio.fail_after(PATIENCE_S):
            await liar.connect(one.addresses()[0])
            store, peer = one.host.raw.get_peerstore(), ID(liar.peer_id)
            await eventually(lambda: store.has_peer(peer) and store.get_protocols(peer))
            assert one.addresses_of(liar.peer_id) == []


async def test_at_an_announced_node_who_comes_from_a_private_address_may_be_a_stranger() -> None:
    """Behind a port proxy all strangers seem to come from one private address."""
    async with (
        open_network(node(announce=("/ip4/8.8.8.8/tcp/7117",))) as one,
        open_network(node()) as two,
        open_network(node()) as three,
    ):
        bound = str(one.host.raw.get_transport_addrs()[0]).partition("/p2p/")[0]
        await two.connect(f"{bound}/p2p/{peer_text(one.peer_id)}")
        await one.connect(three.addresses()[0])
        store = one.host.raw.get_peerstore()
        for peer in (ID(two.peer_id), ID(three.peer_id)):
            await eventually(lambda peer=peer: store.has_peer(peer) and store.get_protocols(peer))  # type: ignore[misc]
        assert one.addresses_of(two.peer_id) == []
        assert one.table.teller_address(three.peer_id) == one.remote_address(three.peer_id), (
            "this node dialled it there"
        )
        assert two.table.teller_address(one.peer_id) == two.remote_address(one.peer_id)
        assert three.addresses_of(one.peer_id) == ["/ip4/8.8.8.8/tcp/7117"]


def message(**fields: object) -> bytes:
    return Identify(**fields).SerializeToString()  # type: ignore[arg-type]


def test_of_what_a_peer_says_of_itself_little_is_kept() -> None:
    many = [Multiaddr(f"/ip4/8.8.{number // 250}.{number % 250}/tcp/1").to_bytes() for number in range(500)]
    said = identified(message(listen_addrs=many, protocols=[f"/p/{number}" for number in range(500)]), "")
    assert len(said.addresses) == identify.MAX_ADDRESSES and len(said.protocols) == identify.MAX_PROTOCOLS
    odd = [b"\x36\x03x/y\x06\x00\x01", b"", b"\xff" * 40, Multiaddr("/ip4/8.8.8.8/tcp/1").to_bytes()]
    said = identified(message(listen_addrs=odd, protocols=["x" * 4_000, "/y"]), "")
    assert [str(address) for address in said.addresses] == ["/ip4/8.8.8.8/tcp/1"] and said.protocols == ("/y",)
    for data in (b"\xff", bytes(identify.MAX_MESSAGE_BYTES + 1)):
        with pytest.raises(RemoteError):
            identified(data, "")


async def test_a_connection_over_ipv6_has_an_address() -> None:
    async with open_network(node(listen=("/ip6/::1/tcp/0",))) as one, open_network(light_client()) as client:
        with trio.fail_after(PATIENCE_S):
            await client.connect(one.addresses()[0])
            await eventually(lambda: one.remote_address(client.peer_id))
        assert one.remote_address(client.peer_id).startswith("/ip6/::1/tcp/")
        assert client.remote_address(one.peer_id) == one.addresses()[0].removesuffix(f"/p2p/{peer_text(one.peer_id)}")


async def test_an_address_that_does_not_answer_delays_no_other_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "DIAL_DEADLINE_S", 1_000.0)
    async with open_network(node()) as wanted, open_network(light_client()) as one, trapped() as trap:
        _, address = addresses.parse_peer(wanted.addresses()[0])
        with trio.fail_after(PATIENCE_S):
            await one.host.outbound.dial(wanted.peer_id, [trap.address, address])
        assert one.peers() == [wanted.peer_id] and trap.num_connections == 1


async def test_a_silent_address_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "DIAL_DEADLINE_S", 0.1)
    async with open_network(light_client()) as one, trapped() as trap:
        peer = new_identity().peer_id
        await told(one, peer, trap.address)
        with pytest.raises(NetworkError, match="did not answer a moment ago"):
            await one.host.outbound.dial(peer, [trap.address], Origin.TOLD)
        assert trap.num_connections == 1
        with pytest.raises(NetworkError, match="then says nothing"):
            await one.host.outbound.dial(peer, [trap.address])  # (the operator's own word)
        one.host.outbound.forget_silent()
        await told(one, peer, trap.address)
        assert trap.num_connections == 3


async def test_a_circuit_is_tried_when_the_direct_address_had_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A circuit over a connected relay is made at once, and would win over every direct connection."""
    order: list[str] = []
    async with open_network(light_client()) as one:

        async def dialled(peer: bytes, address: Multiaddr, is_told: bool) -> None:
            order.append("circuit" if addresses.relay_of(address) else "direct")
            if order[-1] == "direct":
                await trio.sleep(2 * outbound.HEAD_START_S)
            raise NetworkError("not here")

        monkeypatch.setattr(one.host.outbound, "_dial_address", dialled)
        public = Multiaddr("/ip4/45.10.1.1/tcp/1")
        circuits = [addresses.circuit(public, new_identity().peer_id)]
        began = trio.current_time()
        with pytest.raises(NetworkError):
            await one.host.outbound.dial(new_identity().peer_id, [*circuits, public])
        assert order == ["direct", "circuit"] and trio.current_time() - began >= 2 * outbound.HEAD_START_S


async def test_a_dial_of_a_starved_process_says_nothing_of_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "DIAL_DEADLINE_S", 0.1)
    monkeypatch.setattr(Starvation, "late_s", lambda self, since: STARVED_S)
    async with open_network(light_client()) as one, trapped() as trap:
        peer = new_identity().peer_id
        for _ in range(2):
            await told(one, peer, trap.address)
        assert trap.num_connections == 2
