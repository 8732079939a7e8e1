"""Whether peers can dial this node, as they see it. A node that they cannot dial takes places at relays."""

import ipaddress
from collections.abc import Callable, Iterable
from random import sample, uniform

import psutil
import structlog
import trio

from node.network.network import Network
from node.questions import ask_all
from node.telemetry.inspection import INSPECT, REACH_DEADLINE_S
from proto.messages import Reach, ReachQuery

log = structlog.get_logger()

CHECK_EVERY_S, RETRY_S = 600.0, 30.0
NUM_ASKED = 3
ANSWER_DEADLINE_S = REACH_DEADLINE_S + 3.0


async def keep_reachable(network: Network, peers: Callable[[], list[bytes]], joined: Callable[[], trio.Event]) -> None:
    """Until cancelled; at once if this node listens nowhere. peers: connected nodes. joined: what the next one sets."""
    port = next((port_of(address) for address in network.addresses() if not is_circuit(address)), 0)
    while port:
        event = joined()
        if not peers():
            await event.wait()
        connected = peers()
        asked = sample(connected, min(NUM_ASKED, len(connected)))
        answers = await ask_all(network, INSPECT, ReachQuery(port=port), asked, ANSWER_DEADLINE_S)
        outside, outcome = seen_from_outside(
            [answer for answer in answers.values() if isinstance(answer, Reach)], own_hosts()
        )
        log.debug("reach_checked", outside=outside, outcome=outcome)
        if outcome != "untried":
            network.want_relays(outcome == "closed")
        await trio.sleep((RETRY_S if outcome == "untried" else CHECK_EVERY_S) * uniform(0.75, 1.25))  # noqa: S311  jitter


def seen_from_outside(told: Iterable[Reach], own: set[str]) -> tuple[str, str]:
    """The address of this machine as those see it that are farthest away, empty: nobody tells; and whether they can
    connect to it: open, closed or untried. own: the addresses that it has itself, by which peers in the same house
    see it."""
    views = [(host, reach.outcome) for reach in told if (host := host_of(reach.address))]
    outside = next((host for host, _ in views if host not in own), views[0][0] if views else "")
    outcomes = {outcome for host, outcome in views if host == outside}
    return outside, next((outcome for outcome in ("open", "closed") if outcome in outcomes), "untried")


def own_hosts() -> set[str]:
    """The addresses of this machine's interfaces."""
    return {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}


def is_circuit(address: str) -> bool:
    """Whether a multiaddr leads through a relay."""
    return "/p2p-circuit" in address


def host_of(address: str) -> str:
    """The IP address of a multiaddr, which may be a stranger's word; empty: it has none."""
    _, _, host, *_ = [*address.split("/"), "", "", ""]
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return ""


def port_of(address: str) -> int:
    """The TCP port of a multiaddr, likewise; 0: it has none."""
    _, _, _, kind, port, *_ = [*address.split("/"), "", "", "", "", ""]
    return int(port) if kind == "tcp" and port.isascii() and port.isdecimal() and len(port) <= 5 else 0
