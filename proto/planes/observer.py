"""Observations of nodes, from the attempts of this node's requests at them.

They change what is believed of a node's speed, pace, cache (``routing/observed.py``), load and content.
"""

from mycelia.proto.cache.sharing import EVERYBODY
from mycelia.proto.config import RoutingConfig
from mycelia.proto.planes.attempt import Attempt
from mycelia.proto.planes.choice import Choice
from mycelia.proto.planes.failure import Failure
from mycelia.proto.planes.membership import Membership
from mycelia.proto.planes.request import Request
from mycelia.proto.planes.vitals import VitalsPlane
from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.messages import Bounced, Final, Vitals, VitalsUpdate

_LEAST_S = 1e-3


class AttemptObserver:
    """Passes on what happened to attempts. Every method mutates what is believed, and no request."""

    def __init__(
        self, me: bytes, config: RoutingConfig, members: Membership, vitals: VitalsPlane, choice: Choice
    ) -> None:
        self._me = me
        self._config = config
        self._members = members
        self._observed = members.observed
        self._vitals = vitals
        self._choice = choice

    def load(self, peer: bytes, namespace: bytes, vitals: Vitals) -> None:
        """``peer``, which may be this node, reported its load with a model."""
        if not vitals.waiting_requests:
            self._choice.busy.idle(namespace + peer)

    def load_in_frame(self, request: Request, peer: bytes, vitals: Vitals, now: float) -> None:
        """``peer`` reported its load with a frame for ``request``."""
        if peer != self._me:
            update = VitalsUpdate(namespace=request.namespace, vitals=vitals)
            self._vitals.on_update(peer, update, now, is_reply=True)
            self.load(peer, request.namespace, vitals)

    def first_token(self, request: Request, was_accepted: bool, now: float) -> None:
        attempt = request.attempt
        self._choice.dispatches(request).on_first_token(request.request_id, attempt.peer)
        took_s = now - attempt.sent_at
        speeds, expected_s = self._observed.speeds(request.namespace), attempt.expected_s
        if was_accepted and not speeds.prefill_rate(attempt.peer):
            # The first answer of a node that reports no rate shows how fast it is, not how busy.
            expected_s = max(expected_s, attempt.prefill_s)
        self._observed.on_first_token(attempt.peer, expected_s, took_s, now)
        if was_accepted:
            computing_s = max(took_s - self._members.round_trip_s(attempt.peer), _LEAST_S)
            speeds.on_prefilled(attempt.peer, attempt.uncached_tokens / computing_s)

    def bounced(self, request: Request, attempt: Attempt, frame: Bounced, wait_s: float, now: float) -> None:
        """``attempt`` was handed back because it would wait ``wait_s``."""
        peer = attempt.peer
        self.load_in_frame(request, peer, frame.vitals, now)
        way_s = self._members.round_trip_s(peer)
        self._observed.on_first_token(peer, attempt.expected_s, way_s + wait_s, now)
        if attempt.promised_tokens:
            self._observed.on_cached(peer, attempt.promised_tokens, frame.cached_tokens, now)
        space = self._choice.dispatches(request)
        space.end(request.request_id, peer)
        space.withdraw(peer, request.own_chain[frame.cached_tokens // STRIDE :])

    def failed(self, attempt: Attempt, failure: Failure, now: float) -> None:
        """``attempt`` ended without an answer. If no token came, a fault counts as the longest wait."""
        if failure.is_fault and attempt.peer != self._me:
            waited_s = 0.0 if attempt.position else now - attempt.sent_at - attempt.expected_s
            self._observed.on_late(attempt.peer, max(waited_s, self._config.failure_s), now)

    def taken_away(self, request: Request, now: float) -> None:
        """The running attempt is too slow, and its request goes elsewhere."""
        attempt = request.attempt
        if attempt.position:
            self._observed.on_late(attempt.peer, attempt.pace.late_s(now), now)
            self._observed.speeds(request.namespace).on_pace(attempt.peer, attempt.pace.token_s(until=now))
        else:
            self._observed.on_first_token(attempt.peer, attempt.expected_s, now - attempt.sent_at, now)

    def final(self, request: Request, frame: Final, now: float) -> None:
        """The last frame of the running attempt: its node's load, how much was cached, and the observed pace."""
        attempt, peer = request.attempt, request.peer
        if attempt.promised_tokens:
            self._observed.on_cached(peer, attempt.promised_tokens, frame.usage.cached_tokens, now)
        if request.salt.scope != EVERYBODY:  # (no digest will contain it)
            self._choice.remember(request, peer, request.answered_chain, now)
        if peer != self._me and frame.reason != "cancelled":
            self._observed.on_answered(peer, min(self._members.connected_at(peer), now), now)
        token_s = attempt.pace.token_s()
        if token_s:
            speeds = self._observed.speeds(request.namespace)
            late_s = attempt.pace.slow_s(speeds.usual_token_s)
            speeds.on_pace(peer, token_s)
            if late_s > self._config.late_s and peer != self._me:
                self._observed.on_late(peer, late_s, now)
        self.load_in_frame(request, peer, frame.vitals, now)
