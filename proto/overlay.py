"""The whole protocol of one node: ``handle(event, now) -> list[Effect]``.

``now`` is Unix time in seconds that never goes back. The caller performs the effects in order and returns what happens
as events. Nothing here waits, and the order of effects depends only on the events, ``now`` and ``rng``.

``Overlay`` composes five planes and has none of their rules: ``Membership`` (which peers are connected and what they
serve), ``VitalsPlane`` (which nodes report their load to which), ``DigestPlane`` (digests out, digests in, repair and
reconciliation), ``LadderPlane`` (prefixes held in other cells) and ``RequestPlane`` (requests that entered here).
"""

import random
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple, assert_never

from mycelia.proto.admission.limits import Limits
from mycelia.proto.admission.trust import Offender, Trust
from mycelia.proto.cells.cells import Cell
from mycelia.proto.config import OverlayConfig
from mycelia.proto.digests.budget import Traffic
from mycelia.proto.digests.digest import OwnDigest, Sign, Verify
from mycelia.proto.digests.estimates import Equivocation, Estimates, State
from mycelia.proto.digests.floors import Floor
from mycelia.proto.effects import Abandon, Disconnect, Effect, Emit
from mycelia.proto.events import (
    CacheChanged,
    Connected,
    Disconnected,
    Event,
    FloorsRestored,
    FrameReceived,
    Gossiped,
    Leaving,
    Malformed,
    ModelServed,
    ModelWithdrawn,
    Paused,
    ProvidersFound,
    Received,
    RequestCancelled,
    RequestSubmitted,
    RoundTripMeasured,
    StreamLost,
    Timer,
    TimerFired,
    TrustRestored,
    VitalsChanged,
)
from mycelia.proto.planes.digests import DigestPlane
from mycelia.proto.planes.failure import LEAVING, LEAVING_MESSAGE, PAUSED_MESSAGE
from mycelia.proto.planes.ladder import LadderPlane
from mycelia.proto.planes.membership import Membership
from mycelia.proto.planes.requests import RequestPlane
from mycelia.proto.planes.vitals import VitalsPlane
from mycelia.proto.routing.choose import Policy, wait_here_s
from mycelia.proto.routing.observed import Observation
from mycelia.proto.wire.blocks import STRIDE, block_hashes, token_array
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import (
    Announce,
    Bounced,
    Control,
    Delta,
    Failed,
    Generate,
    Gossip,
    Hello,
    Reconcile,
    Repair,
    RepairRequest,
    Served,
    Subscribe,
    Vitals,
    VitalsUpdate,
)
from mycelia.proto.wire.refusals import Refusal

HELLOS_PER_S, HELLOS_BURST = 1.0, 64.0
"""Hellos of one peer that are looked at. A node sends one for each model that gets ready, and in answer to others."""


@dataclass(frozen=True)
class PeerView:
    """One connected node as this one sees it, for display."""

    peer: bytes
    address: str
    agent: str
    served: tuple[Served, ...]
    num_blocks: dict[bytes, int]
    """Namespace -> blocks its digest holds."""
    digest_states: dict[bytes, State]
    in_flight: int
    """Requests sent there by this node that are not over."""
    connected_s: float


class NodeView(NamedTuple):
    """A connected node and its models."""

    peer: bytes
    served: tuple[Served, ...]


class Overlay:
    """One node's protocol state. Not thread-safe: one caller."""

    def __init__(
        self,
        me: bytes,
        config: OverlayConfig,
        rng: random.Random,
        sign: Sign,
        verify: Verify,
        policy: Policy | None = None,
    ) -> None:
        """policy: another rule than the protocol's own for choosing the serving node."""
        self.me = me
        self.refusals: Counter[Refusal] = Counter()
        """Why peers' messages were not used. Read-only."""
        self.traffic = Traffic(config.digest.gossip_copies)
        """Traffic that each plane received, and digests sent. Read-only."""
        self._config = config
        self._trust = Trust(config.trust)
        self._hellos: Limits[bytes] = Limits(HELLOS_PER_S, HELLOS_BURST)
        # The planes are public for reading: only ``handle`` changes them.
        self.members = Membership(me, config)
        self.reports = VitalsPlane(me, config.vitals, rng, self.members)
        self.digests = DigestPlane(
            me, config.digest, config.cells, rng, sign, verify, self.members, self.refusals, self.traffic
        )
        self.ladder = LadderPlane(me, config.ladder, rng, self.members, self.digests)
        self.requests = RequestPlane(me, config, rng, self.members, self.reports, self.digests, self.ladder, policy)
        self.ladder.is_busy = lambda peer: self.requests.num_at(peer) > 0

    def handle(self, event: Event, now: float) -> list[Effect]:
        """The effects of ``event``. Never raises for anything a peer did."""
        match event:
            case Connected():
                if self._trust.is_banned(event.peer, now):
                    until = self._trust.banned_until(event.peer)
                    return [Disconnect(event.peer, "in quarantine", until)]
                return self.members.on_connected(event, now)
            case Disconnected():
                return self._on_disconnected(event.peer, now)
            case Received() | Gossiped():
                return self._on_message(event, now)
            case Malformed():
                return self._offence(event.peer, event.reason, event.refusal, now)
            case RoundTripMeasured():
                self.members.on_round_trip(event.peer, event.seconds)
                return []
            case TimerFired():
                return self._on_timer(event.timer, now)
            case ModelServed():
                self.requests.on_served(event)
                return [
                    *self.digests.on_served(event, now),
                    *self.ladder.on_served(event, now),
                    *self.members.on_served(event, now),
                ]
            case ModelWithdrawn():
                self.reports.on_withdrawn(event.namespace)
                return [*self.digests.on_withdrawn(event.namespace), *self.members.on_withdrawn(event.namespace, now)]
            case FloorsRestored():
                self.digests.estimates.restore(event.floors)
                return []
            case TrustRestored():
                self._trust.restore(event.offenders, now)
                self.members.observed.restore(event.observations, now)
                return []
            case CacheChanged():
                return self.digests.on_cache_changed(event, now)
            case VitalsChanged():
                self.requests.on_vitals(self.me, event.namespace, event.vitals)
                return self.reports.on_own(event.namespace, event.vitals, now)
            case Leaving():
                self.members.is_leaving = True
                return self.reports.tell_all(now)
            case Paused():
                self.members.is_paused = event.is_paused
                return self.reports.tell_all(now)
            case ProvidersFound():
                return self.requests.on_found(event, now)
            case RequestSubmitted():
                return self.requests.on_submitted(event, now)
            case FrameReceived():
                return self._on_frame(event, now)
            case StreamLost():
                return self.requests.on_stream_lost(event, now)
            case RequestCancelled():
                return self.requests.on_cancelled(event.request_id, now)
            case _:
                assert_never(event)

    def nodes(self) -> list[NodeView]:
        """The connected nodes, sorted by peer id: a twentieth of the time of ``peers``, for what strangers' questions
        cause. Does not mutate."""
        return [NodeView(member.peer, tuple(member.served.values())) for member in self.members.nodes()]

    def peers(self, now: float) -> list[PeerView]:
        """The connected nodes as users see them, sorted by peer id. Does not mutate."""
        views = []
        for member in self.members.nodes():
            spaces = [served.namespace for served in member.served.values()]
            states = {space: self.digests.estimates.state(member.peer, space) for space in spaces}
            views.append(
                PeerView(
                    peer=member.peer,
                    address=member.address,
                    agent=member.agent,
                    served=tuple(member.served.values()),
                    num_blocks={space: len(self.digests.estimates.entries(member.peer, space)) for space in spaces},
                    digest_states={space: state for space, state in states.items() if state is not None},
                    in_flight=self.requests.num_at(member.peer),
                    connected_s=now - member.connected_at,
                )
            )
        return views

    @property
    def estimates(self) -> Estimates:
        """The beliefs about all peers' caches. Read-only."""
        return self.digests.estimates

    def own_digest(self, namespace: bytes) -> OwnDigest | None:
        """The digest of this node's own cache; None in a namespace it does not serve. Read-only."""
        return self.digests.own(namespace)

    def floors(self) -> list[Floor]:
        """The versions of its peers that this node remembers, to be kept on disk and given back as FloorsRestored."""
        return self.digests.estimates.floors()

    def offenders(self, now: float) -> list[Offender]:
        """The offences counted against peers, to be kept and given back as TrustRestored. Does not mutate."""
        return self._trust.offenders(now)

    def observations(self, now: float) -> list[Observation]:
        """The observations of peers, to be kept and given back as TrustRestored. Does not mutate."""
        return self.members.observed.observations(now)

    def cell(self, namespace: bytes) -> Cell | None:
        """This node's own cell; None in a namespace it does not serve."""
        position = self.digests.position(namespace)
        return position.cell if position else None

    def vitals(self, namespace: bytes) -> Vitals | None:
        """This node's own load as last reported by its engine."""
        return self.members.own_vitals(namespace)

    def round_trip_s(self, peer: bytes) -> float:
        """See ``Membership.round_trip_s``. Does not mutate."""
        return self.members.round_trip_s(peer)

    def as_told(self, vitals: Vitals) -> Vitals:
        """This node's load as peers shall see it. Does not mutate."""
        return self.members.as_told(vitals)

    def subnet(self, client: bytes) -> str:
        """See ``Membership.subnet``. Does not mutate."""
        return self.members.subnet(client)

    def counted_as(self, peer: bytes, is_private: bool) -> str:
        """The name under which what ``peer`` reports counts: its subnet, or in a private swarm the peer itself."""
        return peer.hex() if is_private else self.subnet(peer)

    def turned_away(self, request: Generate, tag: bytes = b"") -> Bounced | Failed | None:
        """The answer to ``request`` instead of serving it, if this node is leaving or paused or the first token would
        come later than the sender's patience; otherwise None. tag: the one of the request's owner. Does not mutate."""
        if self.members.is_leaving or self.members.is_paused:
            message = LEAVING_MESSAGE if self.members.is_leaving else PAUSED_MESSAGE
            return Failed(code=LEAVING, message=message, retryable=True)
        vitals = self.members.own_vitals(request.namespace)
        if not request.patience_ms or vitals is None or len(request.prompt) % 4:
            return None
        tokens = token_array(request.prompt)
        chain = block_hashes(request.namespace, tokens)
        held = self.digests.held_blocks(request.namespace, chain, tag) * STRIDE
        wait_s = wait_here_s(vitals, len(tokens) - held, self._config.routing)
        return Bounced(cached_tokens=held, vitals=vitals) if wait_s * 1000 > request.patience_ms else None

    def silence_s(self, request_id: bytes, attempt: int) -> float:
        """How long the node of this attempt may send nothing, see ``Attempt.silence_s``. Does not mutate."""
        return self.requests.silence_s(request_id, attempt)

    def check_invariants(self) -> None:
        self.members.check_invariants()
        self.reports.check_invariants()
        self.digests.check_invariants()
        self.ladder.check_invariants()
        self.requests.check_invariants()

    def _on_disconnected(self, peer: bytes, now: float) -> list[Effect]:
        self.ladder.on_peer_lost(peer)
        self.reports.on_peer_lost(peer)
        return [
            *self.members.on_disconnected(peer, now),
            *self.digests.on_peer_lost(peer),
            *self.requests.on_peer_lost(peer, now),
        ]

    def _on_message(self, event: Received | Gossiped, now: float) -> list[Effect]:
        sender = event.peer if isinstance(event, Received) else event.author
        owner = _digest_owner(event.message)
        self.traffic.note_received(event.message, now)
        if self._trust.is_banned(sender, now) or (owner is not None and self._trust.is_banned(owner, now)):
            self.refusals[Refusal.QUARANTINED] += 1
            return []
        try:
            if isinstance(event, Gossiped):
                return self.digests.on_gossip(event, now)
            return self._on_control(event, now)
        except Equivocation as exc:
            # Two signed heads of one version prove the owner's lie, whichever peer brought them.
            assert owner is not None
            return self._offence(owner, str(exc), exc.refusal, now, self._config.trust.offences_to_quarantine)
        except RemoteError as exc:
            return self._offence(sender, str(exc), exc.refusal, now)

    def _on_control(self, event: Received, now: float) -> list[Effect]:
        message = event.message
        match message:
            case Hello():
                if not self._hellos.take(event.peer, now):
                    self.refusals[Refusal.TOO_SOON] += 1
                    return []
                effects = self.members.on_hello(event.peer, message, now)
                if not self.members.understands(message.wire_version):
                    self.refusals[Refusal.WRONG_VERSION] += 1
                elif self.members.is_node(event.peer):  # (otherwise there was no room for it)
                    effects += self.digests.on_peer_ready(event.peer, now)
                    effects += self.requests.on_digest(event.peer, now)
                return effects
            case VitalsUpdate():
                self.reports.on_update(event.peer, message, now)
                self.requests.on_vitals(event.peer, message.namespace, message.vitals)
                return []
            case Subscribe():
                return self.reports.on_subscribe(event.peer, message, now)
            case RepairRequest():
                return self.digests.on_repair_request(event.peer, message, now)
            case Repair():
                repaired = self.digests.on_repair(event.peer, message, now)
                return repaired + self.requests.on_digest(message.head.owner, now)
            case Reconcile():
                return self.digests.on_reconcile(event.peer, message, now)
            case _:
                assert_never(message)

    def _on_timer(self, timer: Timer, now: float) -> list[Effect]:
        match timer.kind:
            case "hello":
                if self.members.is_unconfirmed(timer.subject):
                    return self._on_disconnected(timer.subject, now)
                return self.members.on_hello_timeout(timer.subject, now)
            case "ladder":
                return self.ladder.on_due(timer.namespace, now)
            case "lookup":
                return self.requests.on_wait_over(timer, now)
            case "rested":
                return self.requests.on_rested(timer.subject, now)
            case "place":
                return self.requests.on_place_due(now)
            case "overdue":
                return self.requests.on_overdue(timer.subject, now)
            case "vitals":
                return self.reports.on_due(timer.namespace, now)
            case "subscriptions":
                return self.reports.on_renewal_due(timer.namespace, now)
            case _:
                return self.digests.on_timer(timer, now)

    def _on_frame(self, event: FrameReceived, now: float) -> list[Effect]:
        self.traffic.note_received(event.frame, now)
        try:
            return self.requests.on_frame(event, now)
        except RemoteError as exc:
            peer = self.requests.serving_peer(event.request_id, event.attempt)
            offence: list[Effect] = []
            if peer is not None and peer != self.me:
                self.members.observed.on_lie(peer, now)
                offence = self._offence(peer, str(exc), Refusal.WRONG_FRAME, now)
            lost = StreamLost(event.request_id, event.attempt, str(exc))
            return [*offence, Abandon(event.request_id, event.attempt), *self.requests.on_stream_lost(lost, now)]

    def _offence(self, peer: bytes, reason: str, refusal: Refusal, now: float, weight: float = 1.0) -> list[Effect]:
        self.refusals[refusal] += 1
        effects: list[Effect] = [Emit("peer_offence", {"peer": peer, "reason": reason, "refusal": str(refusal)})]
        if self._trust.offend(peer, now, weight):
            self.digests.estimates.forget(peer, now)
            effects.append(Emit("peer_quarantined", {"peer": peer, "reason": reason}))
            effects.append(Disconnect(peer, reason, self._trust.banned_until(peer)))
        return effects


def _digest_owner(message: Control | Gossip) -> bytes | None:
    """The owner of the digest in ``message``, if it has one."""
    match message:
        case Repair() | Delta() | Announce():
            return message.head.owner
        case _:
            return None
