"""The check whether peers can dial this node. A node that they cannot dial uses relays."""

import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import sample, uniform

import psutil
import structlog
import trio

from mycelia.node.network.addresses import family_of, host_of, is_circuit, is_public_host, port_of
from mycelia.node.network.network import Network, Reachability
from mycelia.node.queries.inspection import INSPECT, REACH_DEADLINE_S
from mycelia.node.queries.questions import ask_all
from mycelia.proto.wire.messages import Reach, ReachQuery

log = structlog.get_logger()

CHECK_EVERY_S, RETRY_S = 600.0, 30.0
INTERFACES_EVERY_S = 2.0
NUM_ASKED = 5
ANSWER_DEADLINE_S = REACH_DEADLINE_S + 3.0


async def keep_reachable(network: Network, peers: Callable[[], list[bytes]], joined: Callable[[], trio.Event]) -> None:
    """Asks peers again and again whether they can dial this node: regularly, and whenever the addresses of this machine
    change. Returns at once if the node listens nowhere, otherwise never. peers: the connected nodes. joined: the event
    that the next node to join sets."""
    port = next((port_of(address) for address in network.addresses() if not is_circuit(address)), 0)
    known: dict[str, View] = {}
    while port:
        event = joined()
        if not peers():
            await event.wait()
        own, connected = own_hosts(), peers()
        asked = sample(connected, min(NUM_ASKED, len(connected)))
        answers = await ask_all(network, INSPECT, ReachQuery(port=port), asked, ANSWER_DEADLINE_S)
        views = seen_from_outside([answer for answer in answers.values() if isinstance(answer, Reach)], own)
        log.debug("reach_checked", views=views)
        tried = {family: view for family, view in views.items() if view.outcome != "untried"}
        if tried:
            known |= tried
            network.set_reachability(reachability(known, port, own))
        with trio.move_on_after((CHECK_EVERY_S if tried == views != {} else RETRY_S) * uniform(0.75, 1.25)):  # noqa: S311  jitter
            await _other_than(own)
            hosts = own_hosts()
            log.info("interfaces_changed", hosts=sorted(hosts))
            network.interfaces_changed(hosts)
            known.clear()


@dataclass(frozen=True)
class View:
    """This machine in one address family, as peers see it."""

    host: str
    """Its address as most peers outside its own network see it."""
    outcome: str
    """Whether most of these peers could connect: open, closed or untried."""


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
    announced = tuple(f"/{family}/{views[family].host}/tcp/{port}" for family in sorted(public))
    return Reachability(announced, closed, frozenset(relayed))


async def _other_than(hosts: set[str]) -> None:
    """Returns when this machine has other addresses than ``hosts``."""
    while own_hosts() == hosts:  # noqa: ASYNC110  no event tells of it on all systems
        await trio.sleep(INTERFACES_EVERY_S)


def own_hosts() -> set[str]:
    """The IP addresses of this machine's interfaces, except link-local ones, which no peer is told."""
    families = (socket.AF_INET, socket.AF_INET6)
    found = {one.address for ones in psutil.net_if_addrs().values() for one in ones if one.family in families}
    return {host for host in found if not host.startswith(("fe80:", "169.254."))}
