"""Questions between nodes: the trace of a request, the connections of a node, and whether a node can be dialled.

Users see the traces and connections. They are bounded hints from strangers, and no decision depends on them.
"""

import math
import time
from collections.abc import Callable, Iterable

import trio

from mycelia.node.network.exchange import receive_opening
from mycelia.node.network.network import MessageStream, Network
from mycelia.node.peer_id import id_text
from mycelia.node.queries.questions import ask_all
from mycelia.node.telemetry.requests import RequestLog
from mycelia.node.views.history import TraceRow, TraceView
from mycelia.node.views.state import LinkRow, LinksRow
from mycelia.proto.admission.limits import Limits, TokenBucket
from mycelia.proto.admission.subnets import subnet_of
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import (
    MAX_LINKS,
    Link,
    Links,
    LinksQuery,
    Reach,
    ReachQuery,
    Trace,
    TraceQuery,
    TraceStep,
)

INSPECT = "/mycelia/inspect/1"
MAX_NODES = 16
"""Nodes that are asked at most."""
MAX_DEPTH = 3
"""Nodes on the longest chain of a request: an entry node, a second entry node and the serving node."""
LINKS_KEPT_S = 5.0
"""Age up to which answers are reused, since an open web page asks often."""

REACH_RATE, REACH_BURST = 0.2, 10.0
"""Connections per second that this node tries for all peers together."""
SUBNET_RATE, SUBNET_BURST = 1 / 60, 4.0
"""Connections per second for one subnet, so that none uses up what is there for all."""
REACH_DEADLINE_S = 2.0


class Inspection:
    """Asks peers these questions and answers theirs."""

    def __init__(self, network: Network, requests: RequestLog, peers: Callable[[], Iterable[bytes]]) -> None:
        """peers: returns the connected nodes."""
        self._network = network
        self._requests = requests
        self._peers = peers
        self._links: list[LinksRow] = []
        self._links_at = -math.inf
        self._asking = trio.Lock()
        self._reach_bucket = TokenBucket(REACH_RATE, REACH_BURST, 0.0)
        self._reach_limits = Limits[str](SUBNET_RATE, SUBNET_BURST)

    async def serve_stream(self, stream: MessageStream) -> None:
        """Answers one question of a peer. Raises RemoteError for a message that is no question."""
        match await receive_opening(stream):
            case TraceQuery(request_id=request_id):
                await stream.send(Trace(steps=self._requests.steps(request_id)))
            case LinksQuery():
                await stream.send(Links(links=self._own_links()))
            case ReachQuery(port=port):
                await stream.send(await self._reach(stream.peer, port))
            case other:
                raise RemoteError(f"a {type(other).__name__} where a question belongs")

    async def _reach(self, peer: bytes, port: int) -> Reach:
        """Tries a connection to the address that the question came from, and sends nothing there. A question through a
        relay is not tried: the address is the relay's."""
        address, now = self._network.remote_address(peer), trio.current_time()
        outcome = "untried"
        if "/p2p-circuit" in address:
            address = ""
        elif self._reach_limits.take(subnet_of(address), now) and self._reach_bucket.take(now):
            outcome = "open" if await _is_open(address, port) else "closed"
        return Reach(address=address[:128], time_ms=round(1000 * time.time()), outcome=outcome)

    async def links(self) -> list[LinksRow]:
        """The connections that this node's nearest peers report, at most LINKS_KEPT_S old."""
        async with self._asking:
            if trio.current_time() - self._links_at > LINKS_KEPT_S:
                nearest = [link.peer for link in self._own_links()][:MAX_NODES]
                answers = await ask_all(self._network, INSPECT, LinksQuery(), nearest)
                self._links = [
                    _links_row(peer, answer) for peer, answer in answers.items() if isinstance(answer, Links)
                ]
                self._links_at = trio.current_time()
            return self._links

    async def trace(self, prefix: str) -> TraceView | None:
        """The steps that the nodes on a request's way report, in the order of time, and the nodes without an answer.
        prefix: the beginning of its id. None if no request known here matches, or several do."""
        found = self._requests.matching(prefix)
        if len(found) != 1:
            return None
        (request_id,) = found
        rows: list[TraceRow] = []
        silent: list[str] = []
        seen = {self._network.peer_id}
        known = [(self._network.peer_id, 0.0, self._requests.steps(request_id))]
        for _ in range(MAX_DEPTH):
            starts: dict[bytes, float] = {}
            for node, started_ms, steps in known:
                rows += [_row(node, started_ms, step) for step in steps]
                for step in steps:
                    if step.name in ("routed", "relayed") and step.peer not in seen and len(seen) < MAX_NODES:
                        half_ms = 500 * (self._network.round_trip_s(step.peer) or 0.0)
                        starts[step.peer] = started_ms + step.at_ms + half_ms
                        seen.add(step.peer)
            answers = await ask_all(self._network, INSPECT, TraceQuery(request_id=request_id), starts)
            traces = {peer: answer for peer, answer in answers.items() if isinstance(answer, Trace)}
            silent += [id_text(peer) for peer in starts if peer not in traces]
            known = [(peer, starts[peer], trace.steps) for peer, trace in traces.items()]
        return TraceView(request_id.hex(), sorted(rows, key=lambda row: row.at_ms), silent)

    def _own_links(self) -> tuple[Link, ...]:
        measured = [(self._network.round_trip_s(peer), peer) for peer in self._peers()]
        links = [Link(peer=peer, round_trip_ms=round(1000 * (round_trip_s or 0.0))) for round_trip_s, peer in measured]
        return tuple(sorted(links, key=lambda link: (link.round_trip_ms, link.peer))[:MAX_LINKS])


def _row(node: bytes, started_ms: float, step: TraceStep) -> TraceRow:
    peer = id_text(step.peer) if step.peer else ""
    return TraceRow(round(started_ms + step.at_ms, 1), id_text(node), step.name, step.detail, peer)


def _links_row(peer: bytes, answer: Links) -> LinksRow:
    links = [LinkRow(id_text(link.peer), link.round_trip_ms or None) for link in answer.links]
    return LinksRow(id_text(peer), links)


async def _is_open(address: str, port: int) -> bool:
    """Whether TCP connects to ``port`` at the IP address of a multiaddr."""
    _, kind, host, *_ = [*address.split("/"), "", "", ""]
    if kind not in ("ip4", "ip6"):
        return False
    with trio.move_on_after(REACH_DEADLINE_S):
        try:
            async with await trio.open_tcp_stream(host, port):
                return True
        except OSError:
            return False
    return False
