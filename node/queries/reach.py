"""The check whether peers can dial this node. A node that they cannot dial uses relays."""

import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from random import sample, uniform

import psutil
import structlog
import trio

from mycelia.node.network.addresses import family_of, host_of, is_circuit, is_public_host, port_of
from mycelia.node.network.mapping.mapper import PortMapper, open_port_mapper
from mycelia.node.network.network import Reachability, Reached
from mycelia.node.queries.inspection import INSPECT, REACH_DEADLINE_S
from mycelia.node.queries.questions import ask_all
from mycelia.node.signals import Signal
from mycelia.proto.admission.subnets import counted_as, subnet_of
from mycelia.proto.wire.messages import Reach, ReachQuery

log = structlog.get_logger()

CHECK_EVERY_S, RETRY_S = 600.0, 30.0
INTERFACES_EVERY_S = 5.0
NUM_ASKED = 5
MAPPING_HEAD_START_S = 1.0
"""Time for a router to open a port before the node takes relays."""
ANSWER_DEADLINE_S = REACH_DEADLINE_S + 3.0


async def keep_reachable(
    network: Reached,
    peers: Callable[[], list[bytes]],
    joined: Signal,
    mappers: Mapping[str, PortMapper] | None = None,
) -> None:
    """Asks peers again and again whether they can dial this node: regularly, and whenever the addresses of this machine
    change. Returns at once if the node listens nowhere, otherwise never. peers: the connected nodes. joined:
    another node has joined. mappers: by family, each asks the router for a port where peers cannot connect."""
    listening = [address for address in network.addresses() if not is_circuit(address)]
    port = next(map(port_of, listening), 0)
    if not port:
        return
    # (a router forwards to an address that it can reach)
    families = {one.split("/")[1] for one in listening if port_of(one) == port and not _is_loopback(one)}
    usable = {family: mapper for family, mapper in (mappers or {}).items() if family in families}
    async with AsyncExitStack() as stack:
        for mapper in usable.values():
            await stack.enter_async_context(open_port_mapper(mapper))
        await _Check(network, peers, joined, usable, port).keep()


def _is_loopback(address: str) -> bool:
    return address.startswith(("/ip4/127.", "/ip6/::1/"))


@dataclass(frozen=True)
class View:
    """This machine in one address family, as peers see it."""

    host: str
    """Its address as most peers outside its own network see it."""
    outcome: str
    """Whether most of these peers could connect: open, closed or untried."""
    port: int = 0
    """The port that a router forwards to this node; 0: the one on which it listens."""

    def is_behind_router(self, own: set[str]) -> bool:
        """Whether peers cannot connect, probably because of a router: one that translates addresses, or for IPv6 a
        firewall. own: as in ``seen_from_outside``."""
        is_its_own = self.host in own and family_of(self.host) == "ip4"
        return self.outcome == "closed" and not is_its_own and is_public_host(self.host)


class _Check:
    """What peers report of one node that listens on ``port``."""

    def __init__(
        self,
        network: Reached,
        peers: Callable[[], list[bytes]],
        joined: Signal,
        mappers: Mapping[str, PortMapper],
        port: int,
    ) -> None:
        self._network = network
        self._peers = peers
        self._joined = joined
        self._mappers = mappers
        self._port = port
        self._known: dict[str, View] = {}
        """Address family -> the last view that peers had tried."""

    async def keep(self) -> None:
        while True:
            if not self._peers():
                await self._joined.wait()
            own = own_hosts()
            lost = [mapper.lost.next.wait for mapper in self._mappers.values()]
            is_settled = await self._look(own)
            with trio.move_on_after((CHECK_EVERY_S if is_settled else RETRY_S) * uniform(0.75, 1.25)):  # noqa: S311  jitter
                await _first_of(*lost, partial(_other_than, own))
            if (hosts := own_hosts()) != own:
                log.info("interfaces_changed", hosts=sorted(hosts))
                self._network.interfaces_changed(hosts)
                self._known.clear()
                for mapper in self._mappers.values():
                    mapper.search_again()

    async def _look(self, own: set[str]) -> bool:
        """Asks once. Returns whether peers tried every family."""
        views = await self._asked(self._port, own)
        tried = {family: view for family, view in views.items() if view.outcome != "untried"}
        is_settled = tried == views != {}
        closed = {family for family, view in tried.items() if family in self._mappers and view.is_behind_router(own)}
        for family, opened in (await self._opened(closed, tried, own)).items():
            is_settled &= opened is not None
            if opened is not None:
                tried[family] = opened
            elif self._known.get(family, tried[family]).outcome == "open":
                del tried[family]  # (at the mapped port, which was not tried now)
        if tried:
            self._tell(tried, own)
        return is_settled

    async def _asked(self, port: int, own: set[str]) -> dict[str, View]:
        """What some peers report of ``port``: one of each subnet, in private networks any. Otherwise one machine with
        many keys could have this node announce an address that it chooses, or do without its own."""
        connected = self._peers()
        drawn = sample(connected, len(connected))
        of_name = {counted_as(subnet_of(self._network.remote_address(peer)), peer): peer for peer in drawn}
        asked = [*of_name.values()][:NUM_ASKED]
        answers = await ask_all(self._network, INSPECT, ReachQuery(port=port), asked, ANSWER_DEADLINE_S)
        views = seen_from_outside([answer for answer in answers.values() if isinstance(answer, Reach)], own)
        log.debug("reach_checked", port=port, views=views)
        return views

    async def _opened(self, closed: set[str], tried: dict[str, View], own: set[str]) -> dict[str, View | None]:
        """The families ``closed`` after the router was asked for a port; None: peers did not try that port, so ask
        again soon. If the router takes its time, the node meanwhile counts as closed, and takes relays."""
        found: dict[str, View | None] = {}

        async def tell_meanwhile() -> None:
            await trio.sleep(MAPPING_HEAD_START_S)
            self._tell(tried, own)

        async def ask(family: str) -> None:
            found[family] = await self._opened_in(family, tried[family], own)

        async with trio.open_nursery() as meanwhile:
            if closed and all(self._known.get(family, tried[family]).outcome == "closed" for family in closed):
                meanwhile.start_soon(tell_meanwhile)
            async with trio.open_nursery() as nursery:
                for family in closed:
                    nursery.start_soon(ask, family)
            meanwhile.cancel_scope.cancel()
        return found

    async def _opened_in(self, family: str, closed: View, own: set[str]) -> View | None:
        mapper = self._mappers[family]
        mapping = await mapper.request(self._port, closed.host)
        if mapping is None:
            return closed
        outside = (await self._asked(mapping.external_port, own)).get(family)
        if outside is None or outside.outcome == "untried":
            return None
        if outside.outcome == "open":
            return replace(outside, port=mapping.external_port)
        log.debug("mapped_port_is_closed", router=mapping.gateway, port=mapping.external_port)
        await mapper.release()
        return closed

    def _tell(self, tried: dict[str, View], own: set[str]) -> None:
        self._known |= tried
        self._network.set_reachability(reachability(self._known, self._port, own))


def seen_from_outside(told: Iterable[Reach], own: set[str]) -> dict[str, View]:
    """Address family -> what peers report of this machine. Peers outside its own network count; if there are none,
    those inside. own: the addresses of this machine's interfaces, which only peers in its own network see."""
    reports = [(host, reach.outcome) for reach in told if (host := host_of(reach.address))]
    return {
        family: _view([report for report in reports if family_of(report[0]) == family], own)
        for family in sorted({family_of(host) for host, _ in reports})
    }


def _view(reports: list[tuple[str, str]], own: set[str]) -> View:
    hosts = Counter(host for host, _ in reports if host not in own) or Counter(host for host, _ in reports)
    outside = max(hosts, key=lambda host: hosts[host])
    outcomes = Counter(outcome for host, outcome in reports if host == outside and outcome != "untried")
    # (open if both are equally frequent: a connection may fail for other reasons)
    return View(outside, max(outcomes, key=lambda outcome: (outcomes[outcome], outcome == "open"), default="untried"))


def reachability(views: Mapping[str, View], port: int, own: Iterable[str] = ()) -> Reachability:
    """What follows from peers' views of a node that listens on ``port``. A node that is open to the internet in one
    family only needs a relay for the peers that speak only the other one. own: the addresses of this machine's
    interfaces. A public one counts as open until a peer found it closed."""
    is_open = {family for family, view in views.items() if view.outcome == "open"}
    closed = frozenset(family for family, view in views.items() if view.outcome == "closed")
    public = {family for family in is_open if is_public_host(views[family].host)}
    relayed = {"ip4", "ip6"} - public if public or not is_open else set()
    if public:
        relayed -= {family_of(host) for host in own if is_public_host(host)} - closed
    announced = tuple(f"/{family}/{views[family].host}/tcp/{views[family].port or port}" for family in sorted(public))
    return Reachability(announced, closed, frozenset(relayed))


async def _first_of(*waits: Callable[[], Awaitable[None]]) -> None:
    """Returns when one of them has returned."""
    async with trio.open_nursery() as nursery:

        async def run(wait: Callable[[], Awaitable[None]]) -> None:
            await wait()
            nursery.cancel_scope.cancel()

        for wait in waits:
            nursery.start_soon(run, wait)


async def _other_than(hosts: set[str]) -> None:
    """Returns when this machine has other addresses than ``hosts``."""
    while own_hosts() == hosts:  # noqa: ASYNC110  no event tells of it on all systems
        await trio.sleep(INTERFACES_EVERY_S)


def own_hosts() -> set[str]:
    """The IP addresses of this machine's interfaces, except link-local ones, which no peer is told."""
    families = (socket.AF_INET, socket.AF_INET6)
    found = {one.address for ones in psutil.net_if_addrs().values() for one in ones if one.family in families}
    return {host for host in found if not host.startswith(("fe80:", "169.254."))}
