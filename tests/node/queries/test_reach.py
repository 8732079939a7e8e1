"""The check whether peers can dial a node: the conclusion from their answers, and when the node wants a relay."""

from collections.abc import Callable

import pytest
import trio

from mycelia.node.network.addresses import family_of, host_of, port_of
from mycelia.node.network.mapping.mapper import PortMapper
from mycelia.node.network.mapping.router import LEASE_S, Mapping
from mycelia.node.network.network import MessageStream, Reachability
from mycelia.node.queries.inspection import INSPECT
from mycelia.node.queries.reach import CHECK_EVERY_S, RETRY_S, View, keep_reachable, reachability, seen_from_outside
from mycelia.node.signals import Signal
from mycelia.proto.wire.messages import Reach, ReachQuery
from tests.node.members import Member, open_members

OUTSIDE, ELSEWHERE, INSIDE = (f"/ip4/{host}/tcp/40000" for host in ("203.0.113.7", "198.51.100.9", "192.168.1.5"))

PUBLIC = "/ip4/45.10.1.7/tcp/40000"


def reach(address: str, outcome: str) -> Reach:
    return Reach(address=address, time_ms=0, outcome=outcome)


@pytest.mark.parametrize(
    ("told", "result"),
    [
        ([], ("", "untried")),
        ([reach("", "untried")], ("", "untried")),
        ([reach(OUTSIDE, "closed"), reach(OUTSIDE, "open")], ("203.0.113.7", "open")),
        ([reach(OUTSIDE, "closed"), reach(OUTSIDE, "open"), reach(OUTSIDE, "closed")], ("203.0.113.7", "closed")),
        ([reach(OUTSIDE, "open"), reach(OUTSIDE, "closed"), reach(OUTSIDE, "open")], ("203.0.113.7", "open")),
        ([reach(ELSEWHERE, "open"), reach(OUTSIDE, "closed"), reach(OUTSIDE, "closed")], ("203.0.113.7", "closed")),
        ([reach(ELSEWHERE, "untried"), reach(OUTSIDE, "untried"), reach(OUTSIDE, "open")], ("203.0.113.7", "open")),
        ([reach(INSIDE, "open"), reach(INSIDE, "open"), reach(OUTSIDE, "closed")], ("203.0.113.7", "closed")),
        ([reach(OUTSIDE, "closed"), reach(OUTSIDE, "untried")], ("203.0.113.7", "closed")),
        ([reach(INSIDE, "open"), reach(OUTSIDE, "closed")], ("203.0.113.7", "closed")),
        ([reach(INSIDE, "open")], ("192.168.1.5", "open")),
    ],
)
def test_what_follows_from_peers_words(told: list[Reach], result: tuple[str, str]) -> None:
    views = seen_from_outside(told, {"192.168.1.5"})
    assert views == ({"ip4": View(*result)} if result[0] else {})


@pytest.mark.parametrize(
    "text", ["", "/", "/ip4", "/ip4/1.2.3", "nonsense\x1b[2J", "/ip4/x/tcp/²", "/ip4/x/tcp/123456"]
)
def test_a_strangers_address_may_be_anything(text: str) -> None:
    assert host_of(text) == "" and port_of(text) == 0


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ({"ip4": View("192.168.1.5", "open")}, Reachability()),  # a swarm in one house
        ({"ip4": View("45.10.1.7", "closed")}, Reachability((), frozenset({"ip4"}), frozenset({"ip4", "ip6"}))),
        (
            {"ip4": View("45.10.1.7", "open")},
            Reachability(("/ip4/45.10.1.7/tcp/7117",), frozenset(), frozenset({"ip6"})),
        ),
        (
            {"ip4": View("45.10.1.7", "closed"), "ip6": View("2a10::7", "open")},
            Reachability(("/ip6/2a10::7/tcp/7117",), frozenset({"ip4"}), frozenset({"ip4"})),
        ),
        (
            {"ip4": View("45.10.1.7", "open"), "ip6": View("2a10::7", "open")},
            Reachability(("/ip4/45.10.1.7/tcp/7117", "/ip6/2a10::7/tcp/7117")),
        ),
    ],
)
def test_relays_are_for_the_families_in_which_peers_cannot_connect(
    views: dict[str, View], expected: Reachability
) -> None:
    assert reachability(views, 7117) == expected


def test_a_public_address_of_its_own_needs_no_relay_until_it_is_found_closed() -> None:
    views, own = {"ip4": View("45.10.1.7", "open")}, {"45.10.1.7", "2a10::7", "192.168.1.5"}
    assert reachability(views, 7117, own).relayed == frozenset()
    assert reachability(views | {"ip6": View("2a10::7", "closed")}, 7117, own).relayed == frozenset({"ip6"})


class Listening:
    """A member's network with addresses at which it claims to listen."""

    def __init__(self, member: Member, host: str = "192.168.1.5") -> None:
        self._network = member.network
        self._host = host
        self.told: list[Reachability] = []
        self.open = member.network.open
        self.remote_address = member.network.remote_address

    def addresses(self) -> list[str]:
        family = family_of(self._host)
        return ["/ip4/203.0.113.1/tcp/1/p2p/x/p2p-circuit/p2p/y", f"/{family}/{self._host}/tcp/7117/p2p/y"]

    def set_reachability(self, reachability: Reachability) -> None:
        self.told.append(reachability)


async def test_a_node_that_cannot_be_dialled_wants_a_relay_until_it_can(
    autojump_clock: trio.testing.MockClock,
) -> None:
    outcomes = ["untried", "closed", "untried", "open"]
    closed = Reachability(closed=frozenset({"ip4"}), relayed=frozenset({"ip4", "ip6"}))

    async def tell(stream: MessageStream) -> None:
        await stream.receive()
        await stream.send(reach(OUTSIDE, outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]))

    async with open_members(2) as (_, (one, two)), trio.open_nursery() as nursery:
        two.network.serve(INSPECT, tell)
        network = Listening(one)
        nursery.start_soon(keep_reachable, network, lambda: [two.peer], Signal())  # type: ignore[arg-type]
        await trio.sleep(1)
        assert network.told == [] and outcomes[0] == "closed"
        await trio.sleep(1.25 * RETRY_S)
        assert network.told == [closed]
        await trio.sleep(1.25 * (CHECK_EVERY_S + RETRY_S))
        assert network.told == [closed, Reachability()]
        nursery.cancel_scope.cancel()


class Asked:
    """A network in which each peer reports what is given."""

    def __init__(self, reports: dict[bytes, Reach], remote_address: Callable[[bytes], str]) -> None:
        self._reports = reports
        self.remote_address = remote_address
        self.told: list[Reachability] = []

    def addresses(self) -> list[str]:
        return ["/ip4/192.168.1.5/tcp/7117/p2p/y"]

    def set_reachability(self, reachability: Reachability) -> None:
        self.told.append(reachability)

    async def open(self, peer: bytes, protocol: str, waits: bool = True) -> "Asked":
        self._answer = self._reports[peer]
        return self

    async def send(self, message: object) -> None: ...

    async def receive(self) -> Reach:
        return self._answer

    async def aclose(self) -> None: ...


@pytest.mark.parametrize("num_liars", [3, 100])
async def test_one_machine_with_many_keys_does_not_decide_where_a_node_is(
    autojump_clock: trio.testing.MockClock, num_liars: int
) -> None:
    honest, liars = [b"a", b"b"], [bytes([0, number]) for number in range(num_liars)]
    reports = dict.fromkeys(honest, reach(PUBLIC, "closed")) | dict.fromkeys(liars, reach("/ip4/8.8.8.8/tcp/1", "open"))
    network = Asked(reports, lambda peer: f"/ip4/9.9.{peer[0]}.{peer[-1]}/tcp/1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_reachable, network, lambda: [*reports], Signal())  # type: ignore[arg-type]
        await trio.sleep(3 * CHECK_EVERY_S)
        nursery.cancel_scope.cancel()
    assert network.told and {told.open for told in network.told} == {()}


class Router:
    """Gives a mapping of each port to external port 40000."""

    name = "fake"

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway

    async def map(self, port: int, external_port: int) -> Mapping:
        await trio.lowlevel.checkpoint()
        return Mapping("fake", self._gateway, port, host_of(PUBLIC), 40_000, LEASE_S)

    async def unmap(self, mapping: Mapping) -> None:
        await trio.lowlevel.checkpoint()

    async def external(self) -> tuple[str, str]:
        raise NotImplementedError


async def one_gateway() -> list[str]:
    await trio.lowlevel.checkpoint()
    return ["192.168.1.1"]


@pytest.mark.parametrize(
    ("seen", "listening", "mapped", "expected"),
    [
        (PUBLIC, "192.168.1.5", "open", ("/ip4/45.10.1.7/tcp/40000",)),
        (PUBLIC, "192.168.1.5", "closed", ()),
        (PUBLIC, "192.168.1.5", "untried", ()),
        (PUBLIC, "127.0.0.1", "open", ()),  # a router cannot reach loopback
        ("/ip4/192.168.1.5/tcp/1", "192.168.1.5", "open", ()),  # a swarm in a private network
        ("/ip4/100.64.1.5/tcp/1", "192.168.1.5", "open", ()),  # a swarm behind one carrier
    ],
)
async def test_a_mapped_port_is_announced_when_peers_find_it_open(
    autojump_clock: trio.testing.MockClock, seen: str, listening: str, mapped: str, expected: tuple[str, ...]
) -> None:
    asked: list[int] = []

    async def tell(stream: MessageStream) -> None:
        query = await stream.receive()
        assert isinstance(query, ReachQuery)
        asked.append(query.port)
        await stream.send(reach(seen, mapped if query.port == 40_000 else "closed"))

    async with open_members(2) as (_, (one, two)), trio.open_nursery() as nursery:
        two.network.serve(INSPECT, tell)
        network, mapper = Listening(one, listening), PortMapper((Router,), one_gateway)
        nursery.start_soon(keep_reachable, network, lambda: [two.peer], Signal(), {"ip4": mapper})  # type: ignore[arg-type]
        await trio.sleep(10)
        assert network.told[-1].open == expected and len(network.told) == 1
        assert (mapper.mapping is None) == (mapped == "closed" or 40_000 not in asked)
        await trio.sleep(2 * CHECK_EVERY_S)
        assert {told.open for told in network.told} == {expected}, "it does not flap"
        nursery.cancel_scope.cancel()
    assert mapper.mapping is None


class Firewall(Router):
    """Lets packets in to the port that it is asked for, of the address that has it anyway."""

    is_open = False

    async def map(self, port: int, external_port: int) -> Mapping:
        await trio.lowlevel.checkpoint()
        Firewall.is_open = True
        return Mapping("fake", self._gateway, port, "2a10::7", port, LEASE_S)

    async def unmap(self, mapping: Mapping) -> None:
        await trio.lowlevel.checkpoint()
        Firewall.is_open = False


@pytest.mark.parametrize(("listening", "expected"), [("2a10::7", ("/ip6/2a10::7/tcp/7117",)), ("::1", ())])
async def test_a_firewall_for_ipv6_is_asked_although_it_translates_nothing(
    autojump_clock: trio.testing.MockClock, listening: str, expected: tuple[str, ...]
) -> None:
    async def tell(stream: MessageStream) -> None:
        await stream.receive()
        await stream.send(reach("/ip6/2a10::7/tcp/1", "open" if Firewall.is_open else "closed"))

    async with open_members(2) as (_, (one, two)), trio.open_nursery() as nursery:
        two.network.serve(INSPECT, tell)
        network, mappers = Listening(one, listening), {"ip6": PortMapper((Firewall,), one_gateway)}
        nursery.start_soon(keep_reachable, network, lambda: [two.peer], Signal(), mappers)  # type: ignore[arg-type]
        await trio.sleep(10)
        assert network.told[-1].open == expected and Firewall.is_open == bool(expected)
        nursery.cancel_scope.cancel()
    assert not Firewall.is_open, "it is asked to let nobody in any more"


async def test_a_mapped_port_that_is_not_tried_again_stays_open(autojump_clock: trio.testing.MockClock) -> None:
    outcomes = ["open", "untried"]

    async def tell(stream: MessageStream) -> None:
        query = await stream.receive()
        assert isinstance(query, ReachQuery)
        is_mapped = query.port == 40_000
        await stream.send(reach(PUBLIC, (outcomes.pop(0) if outcomes else "untried") if is_mapped else "closed"))

    async with open_members(2) as (_, (one, two)), trio.open_nursery() as nursery:
        two.network.serve(INSPECT, tell)
        network, mapper = Listening(one), PortMapper((Router,), one_gateway)
        nursery.start_soon(keep_reachable, network, lambda: [two.peer], Signal(), {"ip4": mapper})  # type: ignore[arg-type]
        await trio.sleep(3 * CHECK_EVERY_S)
        assert not outcomes and {told.open for told in network.told} == {("/ip4/45.10.1.7/tcp/40000",)}
        nursery.cancel_scope.cancel()


async def test_a_slow_router_does_not_delay_the_relay(autojump_clock: trio.testing.MockClock) -> None:
    async def slow() -> list[str]:
        await trio.sleep(5)
        return ["192.168.1.1"]

    async def tell(stream: MessageStream) -> None:
        query = await stream.receive()
        assert isinstance(query, ReachQuery)
        await stream.send(reach(PUBLIC, "open" if query.port == 40_000 else "closed"))

    async with open_members(2) as (_, (one, two)), trio.open_nursery() as nursery:
        two.network.serve(INSPECT, tell)
        network, mapper = Listening(one), PortMapper((Router,), slow)
        nursery.start_soon(keep_reachable, network, lambda: [two.peer], Signal(), {"ip4": mapper})  # type: ignore[arg-type]
        await trio.sleep(3)
        assert [told.relayed for told in network.told] == [{"ip4", "ip6"}]
        await trio.sleep(3)
        assert [told.open for told in network.told] == [(), ("/ip4/45.10.1.7/tcp/40000",)]
        nursery.cancel_scope.cancel()


async def test_who_listens_nowhere_asks_nobody(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, (one,)):
        with trio.fail_after(1):
            await one.node.keep_reachable()
