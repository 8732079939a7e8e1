"""Direct connections in place of relayed ones: hole punching and its messages, and what moves to the new connection."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import pytest
import trio
from libp2p.network.stream.net_stream import NetStream
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.libp2p import moving, upgrading
from mycelia.node.network.libp2p.discovery import Discovery
from mycelia.node.network.libp2p.host import Host
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.libp2p.observed import Observed
from mycelia.node.network.libp2p.peers import is_relayed
from mycelia.node.network.libp2p.punching import MAX_ADDRESSES, PROTOCOL, dialable
from mycelia.node.network.mdns.interfaces import LocalNetwork
from mycelia.node.network.network import (
    Connected,
    Disconnected,
    Gossiped,
    MessageStream,
    NetworkError,
    Path,
    Received,
    RoundTripMeasured,
)
from mycelia.node.private_swarm.joining import JoinAccess
from mycelia.proto.wire.messages import Ask, Sampling
from tests.node.network.libp2p.network_helpers import (
    HIDDEN,
    NAMESPACE,
    PATIENCE_S,
    EventLog,
    announce,
    eventually,
    following,
    hello,
    node,
)

ECHO = "/mycelia/test-echo/1"


async def echo(stream: MessageStream) -> None:
    while True:
        await stream.send(await stream.receive())


def an_ask(text: str) -> Ask:
    return Ask(request_id=bytes(16), model="", messages=(), text=text, sampling=Sampling(max_tokens=1))


def port_of(network: Libp2pNetwork) -> int:
    return network.host.listening_ports()["ip4"]


@pytest.fixture(autouse=True)
def nobody_seeks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On loopback, lookups would lead to addresses that can simply be dialled."""

    async def seek(*_: object) -> None: ...

    monkeypatch.setattr(Discovery, "seek", seek)


@pytest.fixture
def loopback_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "is_plain_public", lambda address: True)


def punchable(monkeypatch: pytest.MonkeyPatch, *networks: Libp2pNetwork) -> None:
    """Has the networks know the address from which their dials come."""
    for network in networks:
        address = Multiaddr(f"/ip4/127.0.0.1/tcp/{port_of(network)}")
        monkeypatch.setattr(network.host.observed, "punchable", lambda ports, address=address: [address])


@dataclass(frozen=True)
class Listed(JoinAccess):
    """A private swarm with these members."""

    peers: frozenset[bytes] = frozenset()

    def is_member(self, peer: bytes) -> bool:
        return peer in self.peers


@asynccontextmanager
async def relayed_pair(
    members: set[bytes] | None = None,
) -> AsyncIterator[tuple[Libp2pNetwork, Libp2pNetwork, Libp2pNetwork]]:
    """A relay, a node that reserved there, and a node that dialled that one through the relay. members: gets both."""
    async with (
        open_network(node()) as relay,
        open_network(node(), {ECHO: echo}) as hidden,
        open_network(node(), {ECHO: echo}) as dialler,
    ):
        (members if members is not None else set()).update((hidden.peer_id, dialler.peer_id))
        await hidden.connect(relay.addresses()[0])
        hidden.set_reachability(HIDDEN)
        await eventually(lambda: any(map(addresses.is_circuit, hidden.addresses())))
        for network in (hidden, dialler):
            await network.join(NAMESPACE)
        await dialler.connect(next(filter(addresses.is_circuit, hidden.addresses())))
        await eventually(lambda: hidden.path(dialler.peer_id))
        yield relay, hidden, dialler


def are_direct(one: Libp2pNetwork, other: Libp2pNetwork) -> bool:
    return one.table.is_direct(other.peer_id) and other.table.is_direct(one.peer_id)


def is_alone(network: Libp2pNetwork, peer: bytes) -> bool:
    """Whether the only connection with ``peer`` is direct."""
    return [is_relayed(one) for one in network.table.connections(peer)] == [False]


async def test_a_relayed_connection_becomes_a_punched_one_and_nothing_on_it_is_lost(
    monkeypatch: pytest.MonkeyPatch, loopback_is_public: None
) -> None:
    monkeypatch.setattr(moving, "LINGER_S", 0.1)
    async with relayed_pair() as (relay, hidden, dialler), following(hidden) as heard, following(dialler) as told:
        with trio.fail_after(PATIENCE_S):
            assert dialler.path(hidden.peer_id) == Path("relayed", relay.peer_id)
            # Routing sees the round trip of the way that requests take, first through the relay.
            await told.has(RoundTripMeasured, lambda event: event.peer == hidden.peer_id)
            (relayed,) = dialler.table.connections(hidden.peer_id)
            stream = await dialler.open(hidden.peer_id, ECHO)
            await dialler.send(hidden.peer_id, hello("before"))
            await heard.has(Received, lambda event: event.message == hello("before"))
            punchable(monkeypatch, hidden, dialler)
            hidden.table.note_announced(dialler.peer_id)
            await eventually(lambda: are_direct(hidden, dialler))
            dialler.table.record_round_trip(relayed.muxed_conn, 9.0)
            assert dialler.round_trip_s(hidden.peer_id) != 9.0
            for network, other in ((hidden, dialler), (dialler, hidden)):
                assert network.remote_address(other.peer_id) == f"/ip4/127.0.0.1/tcp/{port_of(other)}"
            await stream.send(an_ask("on the relay still"))
            assert await stream.receive() == an_ask("on the relay still")
            for number in range(20):
                await dialler.send(hidden.peer_id, hello(f"after {number}"))
            await stream.aclose()
            await eventually(lambda: is_alone(hidden, dialler.peer_id) and is_alone(dialler, hidden.peer_id))
            said = [event.message for event in heard.of(Received) if event.peer == dialler.peer_id]
            assert said == [hello("before"), *(hello(f"after {number}") for number in range(20))]
            assert await gossips(dialler, hidden, heard) and await gossips(hidden, dialler, told)
            for log in (heard, told):
                assert not log.of(Disconnected)
            moved = [event.address for event in heard.of(Connected) if event.peer == dialler.peer_id]
            assert [addresses.is_circuit(address) for address in moved] == [True, False]


async def test_members_of_a_private_swarm_in_one_network_need_no_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their private addresses are not dialled on the word of a relay, but on their own."""
    monkeypatch.setattr(moving, "LINGER_S", 0.1)
    members = set[bytes]()
    monkeypatch.setattr(Host, "is_near_member", lambda _, peer, address: peer in members)
    for is_member in (True, False):
        members.clear()
        async with relayed_pair(members if is_member else set()) as (_, hidden, dialler):
            with trio.fail_after(PATIENCE_S):
                if is_member:
                    await eventually(lambda: is_alone(hidden, dialler.peer_id) and is_alone(dialler, hidden.peer_id))
                    assert dialler.path(hidden.peer_id) == Path("LAN")
                else:
                    await trio.sleep(upgrading.FIRST_S)
                    assert not are_direct(hidden, dialler)


def test_only_listed_members_may_name_addresses_of_ones_own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = Multiaddr("/ip4/192.168.5.7/tcp/7117"), Multiaddr("/ip4/192.168.6.7/tcp/7117")
    own = LocalNetwork("lan", 1, IPv4Address("192.168.5.2"), IPv4Network("192.168.5.0/24"))
    monkeypatch.setattr("mycelia.node.network.libp2p.host.local_networks", lambda: [own])
    member, stranger = b"member", b"stranger"
    network = Libp2pNetwork(node(access=Listed(bytes(32), frozenset({member}))), {})
    found = {
        (peer, one) for peer in (member, stranger) for one in (near, far) if network.host.is_near_member(peer, one)
    }
    assert found == {(member, near)}
    assert not Libp2pNetwork(node(), {}).host.is_near_member(member, near)


async def gossips(sender: Libp2pNetwork, receiver: Libp2pNetwork, log: EventLog) -> bool:
    """Whether gossip arrives, which goes through no third node: it is published until it does."""
    number = len(log.of(Gossiped))

    def arrived() -> bool:
        return any(event.forwarder == sender.peer_id for event in log.of(Gossiped)[number:])

    seq = 0
    while not arrived():
        await sender.publish(NAMESPACE, announce(sender.peer_id, seq := seq + 1))
        await trio.sleep(0.1)
    return True


async def test_neither_side_of_a_punched_connection_is_taken_for_a_relay(
    monkeypatch: pytest.MonkeyPatch, loopback_is_public: None
) -> None:
    async with relayed_pair() as (_, hidden, dialler):
        with trio.fail_after(PATIENCE_S):
            punchable(monkeypatch, hidden, dialler)
            hidden.table.note_announced(dialler.peer_id)
            await eventually(lambda: are_direct(hidden, dialler))
            for network, peer in ((hidden, dialler.peer_id), (dialler, hidden.peer_id)):
                network.relaying.want(frozenset({"ip4"}))
                assert peer not in [candidate for candidate, _ in network.relaying.candidates(0.0)]
                punched = [
                    one for one in network.table.connections(peer) if one.muxed_conn in network.host.inbound.punched
                ]
                assert len(punched) == 1
                assert f"/ip4/127.0.0.1/tcp/{port_of(network)}" not in network.addresses_of(peer)


def connect(*named: str) -> HolePunch:
    return HolePunch(type=HolePunch.CONNECT, ObsAddrs=[Multiaddr(text).to_bytes() for text in named])


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "no protobuf": encode_varint_prefixed(b"\xff" * 40),
    "too long": encode_varint_prefixed(bytes(5_000)),
    "no address": encode_varint_prefixed(connect().SerializeToString()),
    "private addresses": encode_varint_prefixed(
        connect("/ip4/192.168.1.1/tcp/80", "/ip4/127.0.0.1/tcp/22", "/ip6/fe80::1/tcp/1").SerializeToString()
    ),
    "names and circuits": encode_varint_prefixed(connect("/dns4/example.com/tcp/80").SerializeToString()),
    "SYNC first": encode_varint_prefixed(HolePunch(type=HolePunch.SYNC).SerializeToString()),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
async def test_hostile_messages_make_a_node_dial_nothing(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with relayed_pair() as (_, hidden, dialler):
        with trio.fail_after(PATIENCE_S):
            punchable(monkeypatch, dialler)
            (relayed,) = hidden.table.connections(dialler.peer_id)
            stream = await hidden.host.outbound.open_on(relayed, PROTOCOL)
            await stream.write(data)
            assert isinstance(stream, NetStream)
            await stream.muxed_stream.close()
            assert await ended(stream.read)
            assert not dialler.host.inbound.punching and dialler.path(hidden.peer_id)


async def ended(read: Callable[[int], object]) -> bool:
    try:
        return not await read(1)  # type: ignore[misc]
    except Exception:  # noqa: BLE001  the end and a reset read alike
        return True


async def test_a_node_takes_part_only_with_a_peer_that_it_dialled_through_a_relay(
    monkeypatch: pytest.MonkeyPatch, loopback_is_public: None
) -> None:
    async with relayed_pair() as (relay, hidden, dialler):
        with trio.fail_after(PATIENCE_S):
            punchable(monkeypatch, hidden, dialler)
            (relayed,) = dialler.table.connections(hidden.peer_id)
            for connection in (relayed, hidden.table.connections(relay.peer_id)[0]):
                network = dialler if connection is relayed else hidden
                with pytest.raises(NetworkError, match="does not punch"):
                    await network.upgrades.punching.punch(connection)


async def test_a_peer_that_asks_again_and_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "is_plain_public", lambda address: True)
    async with relayed_pair() as (_, hidden, dialler):
        with trio.fail_after(PATIENCE_S):
            punchable(monkeypatch, dialler)
            (relayed,) = hidden.table.connections(dialler.peer_id)
            answers = 0
            for _ in range(12):
                stream = await hidden.host.outbound.open_on(relayed, PROTOCOL)
                await stream.write(encode_varint_prefixed(connect("/ip4/127.0.0.1/tcp/9").SerializeToString()))
                try:
                    answers += bool(await read_varint_prefixed_bytes_limited(stream, 4_096))
                except Exception:  # noqa: BLE001  refused
                    break
                await stream.reset()
            assert answers == 6


def test_few_public_addresses_of_a_message_are_dialled() -> None:
    named = [Multiaddr(f"/ip4/45.10.1.{number}/tcp/7117").to_bytes() for number in range(1, 200)]
    odd = [b"", b"\xff\xff", Multiaddr("/ip4/10.1.1.1/tcp/1").to_bytes(), Multiaddr("/ip4/45.1.1.1/udp/1").to_bytes()]
    assert dialable([*odd, *named]) == [Multiaddr(raw) for raw in named[:MAX_ADDRESSES]]
    assert dialable([named[0]] * 50 + odd) == [Multiaddr(named[0])]


class TestObserved:
    PORTS = {"ip4": 7117}  # noqa: RUF012

    def test_a_router_that_keeps_ports_can_be_opened(self) -> None:
        observed = Observed()
        for number in range(3):
            observed.note(f"subnet {number}", "45.10.11.1", 40_000 + number, 40_000 + number)
        assert observed.punchable(self.PORTS) == [Multiaddr("/ip4/45.10.11.1/tcp/7117")]
        observed.clear()
        assert not observed.punchable(self.PORTS)

    def test_one_that_changes_them_cannot(self) -> None:
        observed = Observed()
        observed.note("one", "45.10.11.1", 40_000, 50_000)
        observed.note("other", "45.10.11.1", 40_001, 50_001)
        assert not observed.punchable(self.PORTS)

    def test_one_liar_changes_nothing_however_often_it_lies(self) -> None:
        observed = Observed()
        for subnet in ("one", "two"):
            observed.note(subnet, "45.10.11.1", 40_000, 40_000)
        for number in range(100):
            observed.note("liar", f"9.9.9.{number}", 1, 1)
        assert observed.punchable(self.PORTS) == [Multiaddr("/ip4/45.10.11.1/tcp/7117")]

    def test_private_addresses_do_not_count(self) -> None:
        observed = Observed()
        observed.note("local", "192.168.1.2", 40_000, 40_000)
        assert not observed.host("ip4")
