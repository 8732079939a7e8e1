"""Requests that entered at this node: route, dispatch, stream, resume, finish.

``request.py`` has the rules of one request; here are the candidates it is routed to and the effects it causes.
A peer's word that a request is impossible costs one attempt, not the answer: only this node's own engine is believed.

A long prompt of which little is known may wait a moment for a lookup (``ladder.py``) before its first attempt.

Invariant: every request in flight that does not wait has one running attempt, counted at the peer that serves it.
"""

import math
from collections import Counter

from proto.blocks import STRIDE, block_hashes
from proto.config import OverlayConfig
from proto.digest_plane import DigestPlane
from proto.dispatches import Dispatches
from proto.effects import Abandon, Deliver, Dispatch, Effect, Emit, Fail, Finish
from proto.events import FrameReceived, ProvidersFound, RequestSubmitted, StreamLost, Timer
from proto.ladder_plane import LadderPlane
from proto.membership import Membership
from proto.messages import (
    MAX_SMALL,
    MAX_TOKENS_PER_REQUEST,
    Accepted,
    Failed,
    Final,
    Tokens,
    Usage,
    Vitals,
    VitalsUpdate,
)
from proto.observed import Observed
from proto.overload import OVERLOADED, BusyPeers, EntryPlaces
from proto.request import Request
from proto.routing import Candidate, Policy, choose


class RequestPlane:
    """All requests in flight that entered here."""

    def __init__(
        self,
        me: bytes,
        config: OverlayConfig,
        members: Membership,
        digests: DigestPlane,
        ladder: LadderPlane,
        policy: Policy | None = None,
    ) -> None:
        """policy: instead of this protocol's own choice, for comparisons."""
        self._me = me
        self._config = config.request
        self._routing = config.routing
        self._observed = Observed(config.routing)
        self._members = members
        self._digests = digests
        self._ladder = ladder
        self._policy = policy
        self._requests: dict[bytes, Request] = {}
        self._waiting: dict[bytes, set[bytes]] = {}
        """Requests without an attempt yet -> whose digests may still help; empty while the lookup goes on."""
        self._dispatches: dict[bytes, Dispatches] = {}
        self._places = EntryPlaces(config.request.max_in_flight)
        self._busy = BusyPeers()

    def in_flight(self, peer: bytes) -> int:
        """Requests of this node that ``peer`` is working on."""
        return sum(dispatches.in_flight(peer) for dispatches in self._dispatches.values())

    # --- events ----------------------------------------------------------------------------------------------------

    def on_submitted(self, event: RequestSubmitted, now: float) -> list[Effect]:
        if event.request_id in self._requests:
            return [Fail(event.request_id, "bad_request", "a request with this id is in flight", False)]
        if not event.prompt:
            return [Fail(event.request_id, "bad_request", "the prompt is empty", False)]
        wait_s = self._places.join(event.client, self._requests.values(), now)
        if wait_s:
            message = "this node has too many requests in flight"
            return [Fail(event.request_id, OVERLOADED, message, True, math.ceil(1000 * wait_s))]
        request = Request(
            request_id=event.request_id,
            namespace=event.namespace,
            prompt=event.prompt,
            chain=block_hashes(event.namespace, event.prompt),
            sampling=event.sampling,
            client=event.client,
        )
        self._requests[event.request_id] = request
        if self._ladder.may_help(event.namespace, request.num_tokens):
            best = max((candidate.matched_tokens for candidate in self._candidates(request, now)), default=0)
            seek = self._ladder.seek(request.request_id, event.namespace, request.chain, request.num_tokens, best, now)
            if seek:
                self._waiting[request.request_id] = set()
                return seek
        return self._dispatch(request, now)

    def on_found(self, event: ProvidersFound, now: float) -> list[Effect]:
        """Of a lookup that this request waits for, or did."""
        was_looking = self._ladder.is_looking(event.request_id)
        effects, sought = self._ladder.on_found(event, now)
        is_over = was_looking and not self._ladder.is_looking(event.request_id)
        if is_over and event.request_id in self._waiting:
            self._waiting[event.request_id] = set(sought)
            if not sought:
                effects += self._stop_waiting(event.request_id, now)
        return effects

    def on_wait_over(self, timer: Timer, now: float) -> list[Effect]:
        """Route with what is known."""
        effects = self._stop_waiting(timer.subject, now)
        return effects + self._ladder.on_wait_over(timer.subject, timer.namespace, now)

    def on_digest(self, owner: bytes, now: float) -> list[Effect]:
        """``owner`` said hello or its digest came: requests that waited for what is known of it now go on."""
        estimates = self._digests.estimates
        ready = [
            request_id
            for request_id, sought in self._waiting.items()
            if owner in sought and estimates.version(owner, self._requests[request_id].namespace) > (0, 0)
        ]
        return [effect for request_id in ready for effect in self._stop_waiting(request_id, now)]

    def on_frame(self, event: FrameReceived, now: float) -> list[Effect]:
        """Raises RemoteError for a frame that no honest node sends; report StreamLost then."""
        request = self._running(event.request_id, event.attempt)
        if request is None:
            return []
        frame = event.frame
        match frame:
            case Accepted():
                request.on_accepted()
                return []
            case Tokens():
                is_first = request.position == 0
                tokens = request.on_tokens(frame)
                if is_first:
                    self._observed.on_first_token(request.peer, request.expected_s, now - request.sent_at, now)
                return [Deliver(request.request_id, tokens, frame.text, frame.logprobs)]
            case Final():
                self._note_final(request, frame, now)
                if frame.reason == "cancelled":
                    return self._attempt_failed(request, "the node stopped serving it", now)
                return self._finish(request, frame.reason, frame.usage)
            case Failed():
                return self._on_failed(request, frame, now)

    def on_stream_lost(self, event: StreamLost, now: float) -> list[Effect]:
        request = self._running(event.request_id, event.attempt)
        return self._attempt_failed(request, event.reason, now) if request else []

    def on_vitals(self, peer: bytes, vitals: Vitals) -> None:
        """``peer``, which may be this node, told of its load."""
        if not vitals.waiting_requests:
            self._busy.idle(peer)

    def on_cancelled(self, request_id: bytes) -> list[Effect]:
        request = self._requests.pop(request_id, None)
        if request is None:
            return []
        if self._waiting.pop(request_id, None) is not None:
            return []
        self._space(request).end(request_id, request.peer)
        return [Abandon(request_id, request.attempt)]

    def on_peer_lost(self, peer: bytes, now: float) -> list[Effect]:
        """Move every request that the peer was serving, without waiting for each stream to notice."""
        for dispatches in self._dispatches.values():
            dispatches.forget(peer)
        effects: list[Effect] = []
        for request in [r for r in self._requests.values() if r.peer == peer]:
            effects.append(Abandon(request.request_id, request.attempt))
            effects += self._attempt_failed(request, "the connection was lost", now)
        return effects

    def serving_peer(self, request_id: bytes, attempt: int) -> bytes | None:
        """Who serves this attempt, if it is the running one."""
        request = self._running(request_id, attempt)
        return request.peer if request else None

    def check_invariants(self) -> None:
        """Raises AssertionError when an invariant is broken."""
        running = [request for request in self._requests.values() if request.request_id not in self._waiting]
        assert self._waiting.keys() <= self._requests.keys()
        for request in running:
            assert request.attempt > 0 and request.peer
            assert len(request.generated) <= request.sampling.max_tokens
            assert request.peer not in request.failed_peers
        at_peers = Counter((request.namespace, request.peer) for request in running)
        for (namespace, peer), num_requests in at_peers.items():
            assert self._dispatches[namespace].in_flight(peer) == num_requests
        assert sum(space.num_in_flight() for space in self._dispatches.values()) == len(running)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _stop_waiting(self, request_id: bytes, now: float) -> list[Effect]:
        if self._waiting.pop(request_id, None) is None:
            return []
        return self._dispatch(self._requests[request_id], now)

    def _running(self, request_id: bytes, attempt: int) -> Request | None:
        request = self._requests.get(request_id)
        return request if request and request.attempt == attempt > 0 else None

    def _space(self, request: Request) -> Dispatches:
        space = self._dispatches.get(request.namespace)
        if space is None:
            space = self._dispatches[request.namespace] = Dispatches(self._config.own_dispatch_s)
        return space

    def _dispatch(self, request: Request, now: float) -> list[Effect]:
        candidates = self._candidates(request, now)
        if not candidates or request.attempt >= self._config.max_attempts:
            del self._requests[request.request_id]
            cause = f"; the last one said: {request.last_failure}" if request.last_failure else ""
            wait_ms = self._busy_ms(request, now)
            if wait_ms:
                return [Fail(request.request_id, OVERLOADED, f"all nodes are busy{cause}"[:512], True, wait_ms)]
            message = f"no node could answer after {request.attempt} attempts{cause}"
            if not request.attempt:
                message = "no reachable node serves this model with room for this prompt"
            return [Fail(request.request_id, "no_peer", message[:512], True)]
        if self._policy is not None:
            decision = self._policy(candidates, request.num_tokens, request.chain)
        else:
            decision = choose(candidates, request.num_tokens, self._routing)
        expected_s, promised = decision.rated[0].wait_s, decision.matched_tokens
        generate = request.begin_attempt(decision.chosen, promised, expected_s, now)
        uncached = max(request.num_tokens - promised, 0)
        self._space(request).begin(request.request_id, decision.chosen, request.chain, uncached, now)
        return [Dispatch(request.request_id, request.attempt, decision.chosen, generate, decision)]

    def _candidates(self, request: Request, now: float) -> list[Candidate]:
        known = self._digests.estimates.matches(request.namespace, request.chain)
        may_kill_engines = request.num_engine_losses >= self._config.max_engine_losses
        ask_own_engine = may_kill_engines or (request.is_doubted and self._me not in request.failed_peers)
        fits_wire = request.num_tokens <= MAX_TOKENS_PER_REQUEST
        remote = self._members.nodes(request.namespace) if fits_wire and not ask_own_engine else []
        candidates = []
        for member in remote:
            served = member.served[request.namespace]
            if self._is_out(request, member.peer, now) or request.num_tokens >= served.context_tokens:
                continue
            told_at = member.told_at[request.namespace]
            round_trip_s = member.round_trip_s
            if round_trip_s is None:
                round_trip_s = self._routing.default_round_trip_s
            blocks = known.get(member.peer, 0)
            candidates.append(self._candidate(request, member.peer, blocks, served.vitals, told_at, round_trip_s, now))
        own = self._members.own_vitals(request.namespace)
        if own is not None and not self._is_out(request, self._me, now):
            told_at = self._members.own_told_at(request.namespace)
            blocks = self._digests.held_blocks(request.namespace, request.chain)
            candidates.append(self._candidate(request, self._me, blocks, own, told_at, 0.0, now))
        return candidates

    def _is_out(self, request: Request, peer: bytes, now: float) -> bool:
        """Whether ``peer`` is not to be asked: it failed this request, or is busy."""
        return peer in request.failed_peers or self._busy.is_busy(self._busy_key(request, peer), now)

    def _busy_ms(self, request: Request, now: float) -> int:
        """Until one of those that are busy may be asked for this request; 0: none of them is."""
        peers = [self._me, *(member.peer for member in self._members.nodes(request.namespace))]
        return self._busy.least_wait_ms([self._busy_key(request, peer) for peer in peers], now)

    def _busy_key(self, request: Request, peer: bytes) -> bytes:
        """This node's own engine knows its clients apart; to a peer they are all this node."""
        return self._me + request.client if peer == self._me else peer

    def _candidate(
        self,
        request: Request,
        peer: bytes,
        blocks: int,
        vitals: Vitals,
        told_at: float,
        round_trip_s: float,
        now: float,
    ) -> Candidate:
        """blocks: of the prompt, as its digest tells; vitals, told_at: its load and when that was heard of."""
        space = self._space(request)
        sent = space.match(peer, request.chain, now)
        num_unreported, tokens_unreported = space.sent_since(peer, told_at - round_trip_s)
        claimed = vitals.active_requests + vitals.waiting_requests
        return Candidate(
            peer=peer,
            matched_tokens=max(blocks, sent) * STRIDE,
            num_requests=min(max(claimed + num_unreported, space.in_flight(peer)), MAX_SMALL),
            is_local=peer == self._me,
            queued_tokens=vitals.queued_tokens + tokens_unreported,
            slots=vitals.slots,
            prefill_rate=float(vitals.prefill_rate),
            round_trip_s=round_trip_s,
            precision=self._observed.precision(peer, now),
            slowness=self._observed.slowness(peer, now),
            load_age_s=max(now - told_at, 0.0),
            sent_tokens=sent * STRIDE,
        )

    def _on_failed(self, request: Request, frame: Failed, now: float) -> list[Effect]:
        if not frame.retryable and request.peer == self._me and not request.is_complete:
            self._end(request)
            return [Fail(request.request_id, frame.code, frame.message, False)]
        request.is_doubted = request.is_doubted or not frame.retryable
        if frame.code == "engine_lost":
            request.num_engine_losses += 1
        if frame.code == OVERLOADED and frame.retryable:
            self._busy.refused(self._busy_key(request, request.peer), frame, now)
            return self._attempt_failed(request, f"{frame.code}: {frame.message}", now, is_fault=False)
        # (who cannot answer may only have been asked for the impossible)
        return self._attempt_failed(request, f"{frame.code}: {frame.message}", now, is_fault=frame.retryable)

    def _attempt_failed(self, request: Request, reason: str, now: float, is_fault: bool = True) -> list[Effect]:
        """is_fault: of the node that served it; if no token came, that counts as the longest wait."""
        if is_fault and request.peer != self._me and not request.position:
            longest_s = request.expected_s * self._routing.max_slowness + self._routing.negligible_s
            self._observed.on_first_token(request.peer, request.expected_s, max(now - request.sent_at, longest_s), now)
        if request.is_complete:
            return self._finish(request, "length", None)
        space = self._space(request)
        space.end(request.request_id, request.peer)
        space.withdraw(request.peer, request.chain)
        request.fail_attempt(reason)
        lost = Emit("attempt_failed", {"request": request.request_id, "peer": request.peer, "reason": reason})
        return [lost, *self._dispatch(request, now)]

    def _finish(self, request: Request, reason: str, usage: Usage | None) -> list[Effect]:
        self._end(request)
        return [Finish(request.request_id, request.peer, reason, request.usage(usage), request.resumed)]

    def _end(self, request: Request) -> None:
        self._space(request).end(request.request_id, request.peer)
        del self._requests[request.request_id]

    def _note_final(self, request: Request, frame: Final, now: float) -> None:
        """What the serving node tells with its last frame: its load, and how much it had."""
        if request.promised_tokens:
            self._observed.on_cached(request.peer, request.promised_tokens, frame.usage.cached_tokens, now)
        if request.peer != self._me:
            update = VitalsUpdate(namespace=request.namespace, vitals=frame.vitals)
            self._members.on_vitals_update(request.peer, update, now)
