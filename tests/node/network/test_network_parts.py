"""Small parts of the network: the event queue, the quota, and addresses from users and peers."""

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.events import EventQueue
from mycelia.node.network.identity import Identity
from mycelia.node.network.network import Connected, Disconnected, Gossiped, NetworkEvent, Received
from mycelia.node.peer_id import peer_text
from mycelia.proto.admission.limits import TokenBucket
from mycelia.proto.wire.errors import LocalError
from tests.node.network.libp2p.network_helpers import NAMESPACE, announce, hello

PEER = Identity(bytes(32)).peer_id
RELAY = f"/ip4/1.2.3.4/tcp/4001/p2p/{peer_text(PEER)}"


async def drain(queue: EventQueue) -> list[NetworkEvent]:
    queue.close()
    return [event async for event in queue.read()]


async def test_a_full_queue_drops_gossip_but_no_connection_event() -> None:
    queue = EventQueue(limit=2)
    gossip = [Gossiped(PEER, PEER, NAMESPACE, announce(PEER, seq)) for seq in range(4)]
    assert [queue.offer(event) for event in gossip] == [True, True, False, False]
    queue.put(Connected(PEER, ""))
    queue.put(Disconnected(PEER))
    assert queue.num_dropped == 2
    assert await drain(queue) == [*gossip[:2], Connected(PEER, ""), Disconnected(PEER)]


async def test_control_messages_wait_for_room(autojump_clock: trio.testing.MockClock) -> None:
    queue = EventQueue(limit=1)
    received = [Received(PEER, hello(str(index))) for index in range(3)]
    read: list[NetworkEvent] = []

    async def write() -> None:
        for event in received:
            await queue.put_wait(event)
        queue.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.sleep(1)
        assert len(queue) == 1
        read = [event async for event in queue.read()]
    assert read == received


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(rate=2, burst=3, now=10)
    assert [bucket.take(10) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(10.5), bucket.take(10.5)] == [True, False]
    assert [bucket.take(1000) for _ in range(4)] == [True, True, True, False]


@settings(max_examples=50)
@given(st.lists(st.floats(0, 10), max_size=100))
def test_a_bucket_never_gives_more_than_it_may(pauses: list[float]) -> None:
    bucket, now, taken = TokenBucket(rate=2, burst=5, now=0), 0.0, 0
    for pause in pauses:
        now += pause
        taken += bucket.take(now)
    assert taken <= 5 + 2 * now + 1e-6


@pytest.mark.parametrize(
    ("host", "tellers"),
    [
        ("ip4/8.8.8.8", "open private loopback relayed unknown"),
        ("ip6/2606:4700::1", "open private loopback relayed unknown"),
        ("dns4/example.org", "open private loopback relayed unknown"),
        ("ip4/10.1.2.3", "private loopback"),
        ("ip4/192.168.0.1", "private loopback"),
        ("ip4/100.64.3.3", "private loopback"),
        ("ip4/203.0.113.9", "private loopback"),
        ("ip6/fd00::1", "private loopback"),
        ("ip6/fec0::1", "private loopback"),
        ("ip4/127.0.0.1", "loopback"),
        ("ip6/::1", "loopback"),
        ("ip6/::ffff:127.0.0.1", "loopback"),
        ("ip6/::ffff:192.168.0.1", "private loopback"),
        ("ip6/2002:7f00:1::1", "loopback"),
        ("ip6/64:ff9b::10.0.0.1", "private loopback"),
        ("ip6/::7f00:1", "loopback"),
        ("ip6/64:ff9b:1::c0a8:1", "private loopback"),
        ("ip4/192.0.0.8", "private loopback"),
        ("ip6/5f00::1", "private loopback"),
        ("ip6/3fff::1", "private loopback"),
        ("ip4/0.0.0.0", ""),
        ("ip6/::", ""),
        ("ip4/169.254.169.254", ""),
        ("ip6/fe80::1", ""),
        ("ip4/224.1.1.1", ""),
        ("ip6/ff02::1", ""),
        ("ip4/240.0.0.1", ""),
        ("ip4/255.255.255.255", ""),
    ],
)
def test_on_whose_word_an_address_is_dialled(host: str, tellers: str) -> None:
    connections = {
        "open": "/ip4/9.9.9.9/tcp/1",
        "private": "/ip4/192.168.7.7/tcp/1",
        "loopback": "/ip4/127.0.0.2/tcp/1",
        "relayed": str(addresses.circuit(Multiaddr("/ip4/192.168.7.7/tcp/1"), PEER)),
        "unknown": "",
    }
    plain = Multiaddr(f"/{host}/tcp/4001")
    for told in (plain, addresses.circuit(plain, PEER)):
        taken = {name for name, teller in connections.items() if addresses.told_addresses([told], teller, 4) == [told]}
        assert taken == set(tellers.split())


def test_of_addresses_that_are_told_only_some_are_looked_at() -> None:
    looked_at = iter([Multiaddr(f"/ip4/10.0.0.{last}/tcp/1") for last in range(100)])
    assert addresses.told_addresses(looked_at, "/ip4/9.9.9.9/tcp/1", 4) == []
    assert len(list(looked_at)) == 100 - addresses.MAX_TOLD
    many = [Multiaddr(f"/ip4/8.8.8.{last}/tcp/1") for last in range(100)]
    odd = [Multiaddr(raw) for raw in (b"\x36\x03x/y\x06\x00\x01", b"\x36" + b"\xff" * 9 + b"\x01")]
    assert addresses.told_addresses([*odd, *many], "", 4) == many[:4]


def test_full_addresses() -> None:
    text = f"/ip4/1.2.3.4/tcp/4001/p2p/{peer_text(PEER)}"
    assert addresses.parse_peer(text) == (PEER, Multiaddr("/ip4/1.2.3.4/tcp/4001"))
    assert addresses.parse_peer(text.replace("ip4/1.2.3.4", "dns4/example.org"))[0] == PEER


def test_circuits() -> None:
    circuit = addresses.circuit(Multiaddr("/ip4/1.2.3.4/tcp/4001"), PEER)
    assert str(circuit) == f"{RELAY}/p2p-circuit"
    assert addresses.parse_peer(f"{circuit}/p2p/{peer_text(PEER)}") == (PEER, circuit)
    assert addresses.relay_of(circuit) == (PEER, Multiaddr("/ip4/1.2.3.4/tcp/4001"))
    assert addresses.relay_of(Multiaddr("/ip4/1.2.3.4/tcp/4001")) is None
    assert addresses.relay_of(Multiaddr(f"/ip4/1.2.3.4/udp/1/quic-v1/p2p/{peer_text(PEER)}/p2p-circuit")) is None


def test_who_has_a_relay_is_dialled_there_before_private_addresses() -> None:
    texts = [
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/192.168.1.5/tcp/1",
        f"{RELAY}/p2p-circuit/p2p/{peer_text(PEER)}",
        f"{RELAY}/p2p-circuit",
        "/ip4/8.8.8.8/tcp/1",
        f"/ip4/1.2.3.4/udp/1/quic-v1/p2p/{peer_text(PEER)}/p2p-circuit",
        f"{RELAY}/p2p-circuit/p2p/{peer_text(PEER)}/p2p-circuit",
    ]
    ordered = addresses.in_dial_order([Multiaddr(text) for text in texts], limit=10)
    assert [str(address) for address in ordered] == [
        "/ip4/8.8.8.8/tcp/1",
        f"{RELAY}/p2p-circuit",
        "/ip4/192.168.1.5/tcp/1",
        "/ip4/127.0.0.1/tcp/1",
    ]


def test_no_more_than_two_relays_are_tried_for_a_peer() -> None:
    relays = [peer_text(Identity(bytes([number]) * 32).peer_id) for number in range(3)]
    texts = [f"/ip4/1.2.3.{host}/tcp/1/p2p/{relay}/p2p-circuit" for relay in relays for host in (1, 2)]
    ordered = addresses.in_dial_order([Multiaddr(text) for text in texts], limit=10)
    assert [str(address) for address in ordered] == texts[:4]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "example.org:4001",
        "/ip4/1.2.3.4/tcp/4001",
        "/ip4/1.2.3.4/tcp/99999",
        f"/p2p/{peer_text(PEER)}",
        f"{RELAY}/p2p-circuit",
        f"{RELAY}/p2p-circuit{peer_text(PEER)}",
        f"{RELAY}/p2p-circuit/p2p-circuit/p2p/{peer_text(PEER)}",
        f"/ip4/1.2.3.4/tcp/4001/p2p-circuit/p2p/{peer_text(PEER)}",
    ],
)
def test_what_is_no_full_address_is_a_local_error(text: str) -> None:
    with pytest.raises(LocalError):
        addresses.parse_peer(text)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_local_error(text: str) -> None:
    try:
        addresses.parse(text)
    except LocalError:
        return


def test_dial_order() -> None:
    texts = [
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/0.0.0.0/tcp/1",
        "/ip4/10.0.0.1/udp/1/quic-v1",
        f"/ip4/10.0.0.1/tcp/1/p2p/{peer_text(PEER)}",
        "/ip4/10.0.0.1/tcp/1",
        "/ip4/10.0.0.2/tcp/1",
    ]
    ordered = addresses.in_dial_order([Multiaddr(text) for text in texts], limit=10)
    assert [str(address) for address in ordered] == [
        "/ip4/10.0.0.1/tcp/1",
        "/ip4/10.0.0.2/tcp/1",
        "/ip4/127.0.0.1/tcp/1",
    ]
    assert len(addresses.in_dial_order([Multiaddr(text) for text in texts], limit=1)) == 1


def pieces(good: bytes) -> st.SearchStrategy[bytes]:
    """``good`` with one byte changed, or only its beginning."""
    at = st.integers(0, len(good) - 1)
    changed = st.builds(lambda at, byte: good[:at] + bytes([byte]) + good[at + 1 :], at, st.integers(0, 255))
    return st.one_of(changed, at.map(lambda at: good[:at]))


@given(st.one_of(st.binary(max_size=40), pieces(Multiaddr(f"{RELAY}/p2p-circuit").to_bytes())))
@example(b"\x36\x03x/y\x06\x00\x01")  # /dns4 with a slash in the name: has protocols and no text
@example(b"\xff\xff\x03")  # an unknown protocol
@example(b"\x04\x01")  # cut off
def test_an_address_of_a_stranger_may_be_any_bytes(sent: bytes) -> None:
    good = Multiaddr("/ip4/10.0.0.1/tcp/1")
    assert good in addresses.in_dial_order([Multiaddr(sent), good], limit=10)


def test_an_announced_address_is_one_that_peers_can_dial() -> None:
    text = "/ip4/203.0.113.9/tcp/7117"
    assert str(addresses.parse_announce(text)) == text
    assert str(addresses.parse_announce("/dns4/example.org/tcp/1")) == "/dns4/example.org/tcp/1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x:80",
        "/ip4/0.0.0.0/tcp/7117",
        "/ip6/::/tcp/7117",
        "/ip4/1.2.3.4/tcp/0",
        f"/ip4/1.2.3.4/tcp/1/p2p/{peer_text(PEER)}",
    ],
)
def test_other_announced_addresses_are_refused(text: str) -> None:
    with pytest.raises(LocalError):
        addresses.parse_announce(text)
