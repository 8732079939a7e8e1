"""The check whether peers can dial this node. A node that they cannot dial uses relays."""

from collections import Counter
from collections.abc import Callable, Iterable
from random import sample, uniform

import psutil
import structlog
import trio

from mycelia.node.network.addresses import host_of, is_circuit, port_of
from mycelia.node.network.network import Network
from mycelia.node.queries.inspection import INSPECT, REACH_DEADLINE_S
from mycelia.node.queries.questions import ask_all
from mycelia.proto.wire.messages import Reach, ReachQuery

log = structlog.get_logger()

CHECK_EVERY_S, RETRY_S = 600.0, 30.0
NUM_ASKED = 5
ANSWER_DEADLINE_S = REACH_DEADLINE_S + 3.0


async def keep_reachable(network: Network, peers: Callable[[], list[bytes]], joined: Callable[[], trio.Event]) -> None:
    """Asks peers again and again whether they can dial this node. Returns at once if it listens nowhere, otherwise
    never. peers: the connected nodes. joined: the event that the next node to join sets."""
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
    """The address of this machine that most peers outside its own network see (if there are none, most peers inside;
    empty: no answers), and the outcome that most of these peers report: open, closed or untried. own: the addresses of
    this machine's interfaces, which only peers in its own network see."""
    views = [(host, reach.outcome) for reach in told if (host := host_of(reach.address))]
    hosts = Counter(host for host, _ in views if host not in own) or Counter(host for host, _ in views)
    outside = max(hosts, key=lambda host: hosts[host], default="")
    outcomes = Counter(outcome for host, outcome in views if host == outside and outcome != "untried")
    # (open if both are equally frequent: a connection may fail for other reasons)
    return outside, max(outcomes, key=lambda outcome: (outcomes[outcome], outcome == "open"), default="untried")


def own_hosts() -> set[str]:
    """The addresses of this machine's interfaces."""
    return {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
