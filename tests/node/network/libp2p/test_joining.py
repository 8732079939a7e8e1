"""The way to the first peer, by names and lists, and what a node says that finds nobody."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog
import trio

from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p import joining, outbound
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.names import NO_FAMILY, NameFailure, Names
from mycelia.node.network.network import NetworkError, NetworkSettings
from mycelia.node.peer_id import peer_text
from tests.node.network.libp2p.network_helpers import PATIENCE_S, eventually, light_client, node
from tests.node.network.zone import Zone

SOMEBODY = peer_text(new_identity().peer_id)
LIST = "/dnsaddr/swarm.example"
REFUSED = NameFailure("the name server refuses to answer or fails")


@asynccontextmanager
async def resolving(settings: NetworkSettings, zone: Zone) -> AsyncIterator[Libp2pNetwork]:
    async with open_network(settings) as network:
        network.host.outbound.names = Names(zone, random.Random(1))
        yield network


def port_of(network: Libp2pNetwork) -> str:
    return network.addresses()[0].split("/")[4]


async def test_a_name_whose_other_family_fails_leads_to_the_peer() -> None:
    """The AAAA query is refused, answered with nothing, or never answered."""
    async with open_network(node()) as two:
        for failure in (REFUSED, NameFailure(f"{NO_FAMILY} IPv6 address"), None):
            zone = Zone({("two.example", "A"): [b"127.0.0.1"], ("two.example", "AAAA"): failure})
            async with resolving(light_client(), zone) as one:
                with trio.fail_after(PATIENCE_S):
                    await one.connect(f"/dns/two.example/tcp/{port_of(two)}/p2p/{peer_text(two.peer_id)}")
                assert one.peers() == [two.peer_id]


async def test_a_node_joins_through_a_list_that_is_read_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "BOOTSTRAP_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(joining, "ALONE_LONGEST_PAUSE_S", 0.1)
    zone = Zone({})
    async with (
        open_network(node()) as two,
        open_network(node()) as three,
        resolving(node(bootstrap=(LIST, "/dnsaddr/dead.example")), zone) as one,
    ):
        records = [f"dnsaddr={other.addresses()[0]}".encode() for other in (two, three)]
        dead = f"dnsaddr=/ip4/127.0.0.1/tcp/1/p2p/{SOMEBODY}".encode()
        await eventually(lambda: len(zone.asked) > 4)
        zone.records["_dnsaddr.swarm.example", "TXT"] = [*records, dead]
        await eventually(lambda: set(one.peers()) == {two.peer_id, three.peer_id})


async def test_a_bootstrap_peer_that_stays_away_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each try would push all others out of the log."""
    monkeypatch.setattr(joining, "BOOTSTRAP_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(joining, "ALONE_LONGEST_PAUSE_S", 0.01)
    zone = Zone({})
    with structlog.testing.capture_logs() as lines:
        async with resolving(node(bootstrap=("/dnsaddr/dead.example",)), zone):
            await eventually(lambda: len(zone.asked) > 4)
            zone.records["_dnsaddr.dead.example", "TXT"] = REFUSED
            await eventually(lambda: len(unreachable(lines, "refuses to answer")) > 2)
    for reason in ("no such name", "refuses to answer"):
        assert [line["log_level"] for line in unreachable(lines, reason)[:3]] == ["info", "debug", "debug"]


def unreachable(lines: list[structlog.typing.EventDict], reason: str) -> list[structlog.typing.EventDict]:
    return [line for line in lines if line["event"] == "bootstrap_unreachable" and reason in line["reason"]]


async def test_a_command_joins_through_the_first_of_a_list() -> None:
    async with open_network(node()) as two:
        zone = Zone({("_dnsaddr.swarm.example", "TXT"): [f"dnsaddr={two.addresses()[0]}".encode()]})
        async with resolving(light_client(), zone) as one:
            assert await one.connect(LIST) == two.peer_id
            with pytest.raises(NetworkError, match=r"none\.example: no such name"):
                await one.connect("/dnsaddr/none.example")


async def answering(stream: trio.SocketStream) -> None:
    """A server of something else."""
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    await stream.aclose()


async def test_a_node_that_finds_nobody_says_what_it_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "ALONE_S", 1.0)
    monkeypatch.setattr(outbound, "DIAL_DEADLINE_S", 0.5)
    silent, other = [(await trio.open_tcp_listeners(0, host="127.0.0.1"))[0] for _ in range(2)]
    async with (
        silent,
        open_network(node()) as two,
        open_network(node(swarm_key=bytes(32))) as keyed,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(trio.serve_listeners, answering, [other])
        ports = [listener.socket.getsockname()[1] for listener in (silent, other)]
        tries = [
            "/ip4/127.0.0.1/tcp/1",
            f"/ip4/127.0.0.1/tcp/{port_of(two)}",
            *(f"/ip4/127.0.0.1/tcp/{port}" for port in (*ports, port_of(keyed))),
            "/dns/node.example/tcp/7117",
        ]
        bootstrap = tuple(f"{address}/p2p/{peer_text(new_identity().peer_id)}" for address in tries)
        gone = f"/ip4/127.0.0.1/tcp/2/p2p/{SOMEBODY}"
        settings = node(bootstrap=(*bootstrap, LIST), remembered=lambda: [gone])
        with structlog.testing.capture_logs() as lines:
            async with resolving(settings, Zone({})) as one:
                await eventually(lambda: any("node.example" in str(line.get("tried")) for line in lines))
                told = {attempt.what: (attempt.says, attempt.fix) for attempt in one.attempts()}
                await two.connect(one.addresses()[0])
                await eventually(lambda: one.attempts() == [])
        nursery.cancel_scope.cancel()
    assert told["127.0.0.1 port 1"][0] == "connection refused"
    assert told[f"127.0.0.1 port {port_of(two)}"][0] == "answers with another peer id: the address is old"
    assert told[f"127.0.0.1 port {ports[0]}"][0].startswith("accepts the connection and then says nothing")
    for port in (*ports, port_of(keyed)):
        assert "speaks no libp2p, or has another swarm key" in told[f"127.0.0.1 port {port}"][0]
    assert told["node.example"] == told["swarm.example"] == ("no such name", "check the name")
    assert told[joining.REMEMBERED][0] == "1 connection refused"
    assert all(fix for what, (_, fix) in told.items() if what != joining.REMEMBERED)
    found = [line for line in lines if line["event"] == "found_nobody"]
    assert any("node.example: no such name (check the name)" in str(line["tried"]) for line in found)
