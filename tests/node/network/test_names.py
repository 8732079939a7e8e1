"""Names and lists of nodes: what a few or a thousand records give, and what a name that leads nowhere says."""

import random

import pytest
import trio
from multiaddr import Multiaddr

from mycelia.node.network import names
from mycelia.node.network.identity import new_identity
from mycelia.node.network.names import MAX_ANSWERS, MAX_HOSTS, MAX_NESTED, NameFailure, Names
from mycelia.node.peer_id import peer_text
from tests.node.network.zone import Zone

PEER = peer_text(new_identity().peer_id)
OTHER = peer_text(new_identity().peer_id)
LIST = Multiaddr("/dnsaddr/swarm.example")
TXT = ("_dnsaddr.swarm.example", "TXT")


def names_of(zone: Zone) -> Names:
    return Names(zone, random.Random(1))


def record(address: str, peer: str = PEER) -> bytes:
    return f"dnsaddr={address}/p2p/{peer}".encode()


async def test_a_name_gives_the_addresses_of_one_family() -> None:
    found = names_of(Zone({("a.example", "A"): [b"10.0.0.1", b"::1", b"x"], ("a.example", "AAAA"): [b"2a10::1"]}))
    assert await found.hosts(Multiaddr("/dns4/a.example/tcp/7117")) == [Multiaddr("/ip4/10.0.0.1/tcp/7117")]
    assert await found.hosts(Multiaddr("/dns6/a.example/tcp/7117")) == [Multiaddr("/ip6/2a10::1/tcp/7117")]
    through = Multiaddr(f"/dns4/a.example/tcp/7117/p2p/{PEER}/p2p-circuit")
    assert await found.hosts(through) == [Multiaddr(f"/ip4/10.0.0.1/tcp/7117/p2p/{PEER}/p2p-circuit")]


async def test_a_name_gives_few_addresses() -> None:
    found = names_of(Zone({("a.example", "A"): [f"10.0.{n // 250}.{n % 250}".encode() for n in range(1_000)]}))
    assert len(await found.hosts(Multiaddr("/dns4/a.example/tcp/7117"))) == MAX_HOSTS


async def test_a_list_gives_the_addresses_of_peers() -> None:
    records = [record("/ip4/10.0.0.1/tcp/7117"), record("/dns/b.example/tcp/1"), record("/ip6/::1/tcp/2", OTHER)]
    noise = [
        b"v=spf1",
        b"dnsaddr=",
        b"dnsaddr=/ip4/1.2.3.4/udp/1/quic-v1",
        b"dnsaddr=\xff",
        record("/ip4/1.2.3.4/tcp/1", "x"),
    ]
    zone = Zone({TXT: [*noise, *records, record("/ip4/10.0.0.1/tcp/" + "0" * 600)]})
    found = await names_of(zone).peers(LIST)
    texts = {f"{address}/p2p/{peer_text(peer)}" for peer, some in found.items() for address in some}
    assert texts == {one.removeprefix(b"dnsaddr=").decode() for one in records}
    only = await names_of(zone).peers(Multiaddr(f"{LIST}/p2p/{OTHER}"))
    assert [peer_text(peer) for peer in only] == [OTHER]


async def test_of_a_thousand_records_few_are_used() -> None:
    peers = [peer_text(new_identity().peer_id) for _ in range(1_000)]
    zone = Zone({TXT: [record(f"/ip4/10.0.0.1/tcp/{n + 1}", peer) for n, peer in enumerate(peers)]})
    found = await names_of(zone).peers(LIST)
    assert len(found) == MAX_ANSWERS
    assert {peer_text(peer) for peer in found} != set(peers[:MAX_ANSWERS]), "every client takes others"


async def test_lists_refer_to_lists_once() -> None:
    def inner(number: int) -> bytes:
        return f"dnsaddr=/dnsaddr/{number}.example".encode()

    zone = Zone(
        {
            TXT: [inner(number) for number in range(500)],
            **{(f"_dnsaddr.{n}.example", "TXT"): [record(f"/ip4/10.0.0.1/tcp/{n + 1}"), inner(n)] for n in range(500)},
        }
    )
    found = await names_of(zone).peers(LIST)
    assert sum(map(len, found.values())) == MAX_NESTED
    assert len(zone.asked) == 1 + MAX_NESTED
    with pytest.raises(NameFailure, match="list no address that this node can dial"):
        await names_of(Zone({TXT: [b"dnsaddr=/dnsaddr/swarm.example"] * 9})).peers(LIST)


async def test_a_name_that_leads_nowhere_says_so(autojump_clock: trio.testing.MockClock) -> None:
    for found in (names_of(Zone({})).peers(LIST), names_of(Zone({})).hosts(Multiaddr("/dns4/a.example/tcp/1"))):
        with pytest.raises(NameFailure, match="no such name"):
            await found
    with pytest.raises(NameFailure, match="no address of that peer"):
        await names_of(Zone({TXT: [record("/ip4/10.0.0.1/tcp/1")]})).peers(Multiaddr(f"{LIST}/p2p/{OTHER}"))
    with pytest.raises(NameFailure, match="no name server answers"):
        await names_of(Zone({TXT: None})).peers(LIST)
    assert trio.current_time() <= 2 * names.NAME_DEADLINE_S + 1
