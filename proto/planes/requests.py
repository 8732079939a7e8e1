"""Requests that entered at this node: route, dispatch, stream, resume, finish.

``request.py`` has the rules of one request; here are the candidates it is routed to and the effects it causes.
A peer's word that a request is impossible costs one attempt, not the answer: only this node's own engine is believed.

A long prompt of which little is known may wait a moment for a lookup (``ladder.py``) before its first attempt.

Invariant: every request in flight that does not wait has one running attempt, counted at the peer that serves it.
"""

import math
import random

import numpy as np
from blake3 import blake3

from mycelia.proto.admission.appointments import MAX_HELD_S, Appointments
from mycelia.proto.admission.overload import OVERLOADED, UNKNOWN_RETRY_S, EntryPlaces
from mycelia.proto.answers.spelling import Spelling, Vocabulary
from mycelia.proto.answers.token_pace import TokenPace
from mycelia.proto.cache.sharing import EVERYBODY
from mycelia.proto.config import OverlayConfig
from mycelia.proto.effects import Abandon, Begin, Deliver, Dispatch, Effect, Emit, Fail, Finish, SetTimer
from mycelia.proto.events import FrameReceived, ModelServed, ProvidersFound, RequestSubmitted, StreamLost, Timer
from mycelia.proto.planes.choice import Choice
from mycelia.proto.planes.digests import DigestPlane
from mycelia.proto.planes.ladder import LadderPlane
from mycelia.proto.planes.membership import Membership
from mycelia.proto.planes.overdue import Overdue
from mycelia.proto.planes.request import LEAVING, LEAVING_MESSAGE, Request
from mycelia.proto.planes.vitals import VitalsPlane
from mycelia.proto.routing.choose import Decision, Policy, choose, patience_s, wait_here_s
from mycelia.proto.wire.blocks import STRIDE, block_hashes, pack_tokens
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import (
    Accepted,
    Bounced,
    Failed,
    Final,
    Tokens,
    Usage,
    Vitals,
    VitalsUpdate,
)
from mycelia.proto.wire.versions import for_version

_LEAST_S = 1e-3
_FEW = 1.5
"""Requests a slot up to which a node has room for a prompt that was not told to come."""
_LOOK_S, _LOOKED_S = 0.02, 0.002
"""Between two looks whether one of those that are held can go on, and so much more for each that was looked at in vain:
about 50 us of work."""


class RequestPlane:
    """All requests in flight that entered here."""

    def __init__(
        self,
        me: bytes,
        config: OverlayConfig,
        rng: random.Random,
        members: Membership,
        vitals: VitalsPlane,
        digests: DigestPlane,
        ladder: LadderPlane,
        policy: Policy | None = None,
    ) -> None:
        """policy: instead of this protocol's own choice, for comparisons."""
        self._me = me
        self._config = config.request
        self._routing = config.routing
        self._chance = np.random.default_rng(rng.getrandbits(64))
        self._members = members
        self._observed = members.observed
        self._vitals = vitals
        self._digests = digests
        self._ladder = ladder
        self._policy = policy
        self._requests: dict[bytes, Request] = {}
        self._waiting: dict[bytes, set[bytes]] = {}
        """Requests without an attempt at the moment -> whose digests may still help: none while a lookup goes on or
        while they rest."""
        self._places = EntryPlaces(config.request.max_in_flight)
        self._choice = Choice(me, config.request, members, digests, policy is not None)
        self._overdue = Overdue(config.routing, self._choice)
        self._vocabularies: dict[bytes, Vocabulary] = {}
        self._appointments = Appointments()
        self._held = self._appointments.held
        """Of the waiting requests those that came when told, and wait until a node has a place."""
        self._look_at = math.inf
        """When it is looked for one next. Infinity: never, as nobody is held."""

    def in_flight(self, peer: bytes) -> int:
        """Requests of this node that ``peer`` is working on."""
        return self._choice.in_flight(peer)

    # --- events ----------------------------------------------------------------------------------------------------

    def on_submitted(self, event: RequestSubmitted, now: float) -> list[Effect]:
        if event.request_id in self._requests:
            return [Fail(event.request_id, "bad_request", "a request with this id is in flight", False)]
        if not event.prompt:
            return [Fail(event.request_id, "bad_request", "the prompt is empty", False)]
        if self._members.is_leaving:
            return [Fail(event.request_id, LEAVING, LEAVING_MESSAGE, True)]
        household = self._members.household(event.client).encode()
        wait_s = self._places.join(household, self._requests.values(), now)
        if wait_s:
            text = "this node has too many requests in flight"
            return [Fail(event.request_id, OVERLOADED, text, True, math.ceil(1000 * wait_s))]
        request = Request(
            request_id=event.request_id,
            namespace=event.namespace,
            prompt=event.prompt,
            chain=block_hashes(event.namespace, event.prompt),
            sampling=event.sampling,
            client=event.client,
            household=household,
            is_first=all(other.household != household for other in self._requests.values()),
            salt=event.salt,
            open_tokens=event.open_tokens,
            generated=list(event.generated),
        )
        vocabulary = self._vocabularies.get(event.namespace)
        if vocabulary is not None:
            request.spelling = Spelling(vocabulary, event.sampling.stop, event.generated)
        if request.is_complete:  # (the end was lost with the entry node)
            return [Finish(event.request_id, self._me, "length", request.usage(None), 1)]
        self._requests[event.request_id] = request
        if not request.generated:  # (what has begun elsewhere is not sent away)
            refused = self._turned_away(request, now)
            if refused:
                return refused
            if request.may_be_held_until and self._held:  # (others came before)
                return self._hold(request, now)
        if self._ladder.may_help(event.namespace, request.num_tokens):
            best = int(self._choice.candidates(request, now).matched_tokens.max(initial=0))
            seek = self._ladder.seek(request.request_id, event.namespace, request.chain, request.num_tokens, best, now)
            if seek:
                self._waiting[request.request_id] = set()
                return seek
        return self._dispatch(request, now)

    def on_served(self, event: ModelServed) -> None:
        """This node knows the vocabulary of a model from now on."""
        if event.vocabulary is not None:
            self._vocabularies[event.namespace] = event.vocabulary

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

    def on_overdue(self, request_id: bytes, now: float) -> list[Effect]:
        """It may be too slow where it is, see ``overdue.py``."""
        request = self._requests.get(request_id)
        if request is None or request_id in self._waiting:
            return []
        look_at = self._overdue.look_at(request, now)
        return self._move(request, now) if look_at <= now else self._look_again(request, look_at)

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
                request.on_accepted(frame)
                request.pace.begun(request.prefill_expected_s(), now)
                self._appointments.placed(now)
                self._note_load(request, frame.vitals, now)
                look = self._look_again(request, self._overdue.look_at(request, now))
                return [Begin(request.request_id, request.peer, frame.cached_tokens), *look]
            case Bounced():
                return self._on_bounced(request, frame, now)
            case Tokens():
                is_first = request.position == 0
                tokens, text = request.on_tokens(frame, is_own=request.peer == self._me)
                request.pace.came(len(tokens), now)
                effects: list[Effect] = [Deliver(request.request_id, tokens, text, frame.logprobs)]
                if is_first:
                    effects += self._look_again(request, self._overdue.look_at(request, now))
                    self._choice.dispatches(request).on_first_token(request.request_id, request.peer)
                    took_s = now - request.sent_at
                    self._observed.on_first_token(request.peer, request.expected_s, took_s, now)
                    if request.is_accepted:
                        computing_s = max(took_s - self._members.round_trip_s(request.peer), _LEAST_S)
                        self._observed.on_prefilled(request.peer, request.uncached_tokens / computing_s, now)
                return effects
            case Final():
                is_short = request.peer != self._me and self._check_end(request, frame.reason)
                self._note_final(request, frame, now)
                if is_short and len(self._choice.candidates(request, now, {request.peer}, also_full=True)):
                    return self._attempt_failed(request, "its context is full", now, is_fault=False, is_loss=False)
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
            self._choice.busy.idle(peer)

    def on_cancelled(self, request_id: bytes, now: float) -> list[Effect]:
        request = self._requests.pop(request_id, None)
        if request is None:
            return []
        if self._appointments and not request.generated:  # (perhaps because a choice beside it was refused)
            self._appointments.another(_key(request), now)
        self._held.discard(request_id)
        if self._waiting.pop(request_id, None) is not None:
            return []
        self._choice.dispatches(request).end(request_id, request.peer)
        return [Abandon(request_id, request.attempt)]

    def on_peer_lost(self, peer: bytes, now: float) -> list[Effect]:
        """Move every request that the peer was serving, without waiting for each stream to notice."""
        self._choice.on_peer_lost(peer)
        effects: list[Effect] = []
        for request in [r for r in self._requests.values() if r.peer == peer]:
            effects.append(Abandon(request.request_id, request.attempt))
            effects += self._attempt_failed(request, "the connection was lost", now)
        return effects

    def serving_peer(self, request_id: bytes, attempt: int) -> bytes | None:
        """Who serves this attempt, if it is the running one."""
        request = self._running(request_id, attempt)
        return request.peer if request else None

    def silence_s(self, request_id: bytes, attempt: int) -> float:
        """See ``Request.silence_s``; something long for an attempt that is not the running one."""
        request = self._running(request_id, attempt)
        return request.silence_s(self._config) if request else self._config.max_silence_s

    def check_invariants(self) -> None:
        """Raises AssertionError when an invariant is broken."""
        running = [request for request in self._requests.values() if request.request_id not in self._waiting]
        assert self._waiting.keys() <= self._requests.keys()
        for request in running:
            assert request.attempt > 0 and request.peer
            assert len(request.generated) <= request.sampling.max_tokens
            assert request.peer not in request.failed_peers
        self._choice.check_invariants(running)
        assert self._waiting.keys() >= set(self._held)
        assert not self._held or self._look_at < math.inf
        self._appointments.check_invariants()

    # --- inside ----------------------------------------------------------------------------------------------------

    def _stop_waiting(self, request_id: bytes, now: float) -> list[Effect]:
        self._held.discard(request_id)
        if self._waiting.pop(request_id, None) is None:
            return []
        return self._dispatch(self._requests[request_id], now)

    def _running(self, request_id: bytes, attempt: int) -> Request | None:
        request = self._requests.get(request_id)
        is_running = request is not None and request.attempt == attempt > 0 and request_id not in self._waiting
        return request if is_running else None

    def _dispatch(self, request: Request, now: float) -> list[Effect]:
        candidates = self._choice.candidates(request, now, also_full=self._choice.may_wait_long(request))
        if not len(candidates) or self._is_last_attempt(request):
            wait_ms = self._choice.busy_ms(request, now)
            if not wait_ms and not len(candidates) and len(self._choice.candidates(request, now, also_full=True)):
                wait_ms = round(1000 * UNKNOWN_RETRY_S)
            if self._may_rest(request, wait_ms > 0):
                return self._rest(request, now)
            if wait_ms:
                may_be_held = now < request.may_be_held_until and self._appointments.has_room(request.household)
                return self._hold(request, now) if may_be_held else self._refuse(request, now)
            del self._requests[request.request_id]
            message = f"no node could answer after {request.attempt} attempts{_cause(request)}"
            if not request.attempt:
                message = "no reachable node serves this model with room for this prompt"
            return [Fail(request.request_id, "no_peer", message[:512], True)]
        if self._policy is not None:
            decision = self._policy(candidates.to_list(), request.num_tokens, request.chain)
        else:
            luck = self._chance.random(len(candidates))
            decision = choose(candidates, request.num_tokens, self._routing, luck)
        effects: list[Effect] = []
        patience, is_watched = None, False
        if decision.is_by_cost:
            effects = self._vitals.on_decision(request.namespace, decision, now)
            is_watched = decision.chosen != self._me
            patience = patience_s(decision, self._routing) if is_watched else None
        promised = decision.matched_tokens
        told_s = patience if request.num_bounces < self._routing.max_bounces else None
        generate = for_version(
            request.begin_attempt(decision.chosen, promised, decision.expected_s, told_s, now),
            self._members.wire_version(decision.chosen),
        )
        self._expect(request, decision, is_watched)
        self._choice.sent(request, decision, now)
        effects.append(Dispatch(request.request_id, request.attempt, decision.chosen, generate, decision))
        if patience is not None and request.num_moves < self._routing.max_moves and not self._is_last_attempt(request):
            way_s = self._members.round_trip_s(decision.chosen)
            request.due_at = now + max(decision.expected_s, way_s + patience)
            effects.append(SetTimer(Timer("overdue", request.request_id), request.due_at))
        return effects

    def _expect(self, request: Request, decision: Decision, is_watched: bool) -> None:
        """What is expected of the attempt that begins."""
        request.is_watched = is_watched
        token_s = self._observed.expected_token_s(request.peer)
        request.pace = TokenPace(token_s, self._routing.pace_factor, request.max_withheld)
        request.prefill_s = decision.prefill_s
        rates = decision.candidates.prefill_rate
        if not rates[decision.place]:  # (of this one it is not known)
            slowest_s = request.num_tokens / self._config.slowest_prefill_rate
            request.prefill_s = self._routing.max_slowness * request.prefill_s if rates.any() else slowest_s

    def _look_again(self, request: Request, at: float) -> list[Effect]:
        return [SetTimer(Timer("overdue", request.request_id), at)] if at < math.inf else []

    # (when all are busy, see appointments.py:)

    def _turned_away(self, request: Request, now: float) -> list[Effect]:
        """Without asking a node: who comes before its time, or for the first time while those that were told to come
        need all places; but not what has its turn here. Empty if it is let in."""
        key = _key(request) if self._appointments else b""
        wait_s = self._appointments.wait_s(key, now)
        if len(self._requests) == 1:
            self._appointments.nobody_else()
        if wait_s == 0.0 and self._appointments.has_room(request.household):
            request.may_be_held_until = now + MAX_HELD_S
            self._appointments.come(key, now)
            return []
        is_next = wait_s is None and not self._held
        if self._choice.has_turn_here(request):
            return []
        if is_next and self._appointments.may_pass(now):
            return []
        candidates = self._choice.candidates(request, now)
        enough = _FEW if is_next else 1.0
        if (candidates.num_requests < candidates.slots * enough).any():
            if wait_s is not None:
                self._appointments.come(key, now)
            return []
        return self._refuse(request, now)

    def _refuse(self, request: Request, now: float) -> list[Effect]:
        """Told when to come again, no token of an answer has come."""
        del self._requests[request.request_id]
        key = _key(request)
        wait_s = self._appointments.wait_s(key, now)
        if not wait_s:
            busy_s = self._choice.busy_ms(request, now) / 1000
            guess_s = max(busy_s, self._choice.place_s(request, now), UNKNOWN_RETRY_S)
            wait_s = self._appointments.make(key, request.household, guess_s, now)
        else:
            self._appointments.another(key, now)
        message = f"all nodes are busy{_cause(request)}"[:512]
        return [Fail(request.request_id, OVERLOADED, message, True, math.ceil(1000 * wait_s))]

    def _hold(self, request: Request, now: float) -> list[Effect]:
        """Until a node has a place."""
        request.pause()
        self._waiting[request.request_id] = set()
        self._held.add(request.request_id, request.household, is_next=request.attempt > 0)
        return self._look_in(_LOOK_S, now)

    def on_place_due(self, now: float) -> list[Effect]:
        """A node may have a place for one of those that are held: for the first for which there is one. The others go
        on one by one, as each takes it."""
        self._look_at = math.inf
        effects, num_looks = list[Effect](), 0
        for request_id in self._held:
            request = self._requests[request_id]
            num_looks += 1
            if now >= request.may_be_held_until or self._choice.has_place(request, now):
                effects, num_looks = self._stop_waiting(request_id, now), 0
                break
        return effects + self._look_in(_LOOK_S + _LOOKED_S * num_looks, now)

    def _look_in(self, wait_s: float, now: float) -> list[Effect]:
        if not self._held or now + wait_s >= self._look_at:
            return []
        self._look_at = now + wait_s
        return [SetTimer(Timer("place"), self._look_at)]

    def _on_bounced(self, request: Request, frame: Bounced, now: float) -> list[Effect]:
        """Raises RemoteError when nothing that it tells is a reason."""
        peer, expected_s = request.peer, request.expected_s
        wait_s = wait_here_s(frame.vitals, request.num_tokens - frame.cached_tokens, self._routing)
        request.on_bounced(frame, wait_s)
        self._note_load(request, frame.vitals, now)
        way_s = self._members.round_trip_s(peer)
        self._observed.on_first_token(peer, expected_s, way_s + wait_s, now)
        if request.promised_tokens:
            self._observed.on_cached(peer, request.promised_tokens, frame.cached_tokens, now)
        space = self._choice.dispatches(request)
        space.end(request.request_id, peer)
        space.withdraw(peer, request.own_chain[frame.cached_tokens // STRIDE :])
        bounced = Emit("bounced", {"request": request.request_id, "peer": peer, "wait_s": round(wait_s, 3)})
        return [bounced, *self._dispatch(request, now)]

    def _on_failed(self, request: Request, frame: Failed, now: float) -> list[Effect]:
        if not frame.retryable and request.peer == self._me and not request.is_complete:
            self._end(request)
            return [Fail(request.request_id, frame.code, frame.message, False)]
        request.is_doubted = request.is_doubted or not frame.retryable
        if frame.code == OVERLOADED and frame.retryable:
            # To be busy is no fault, unless its own word a moment ago was that it is idle.
            is_fault = self._members.is_idle(request.peer, request.namespace)
            self._choice.busy.refused(self._choice.busy_key(request, request.peer), frame, now)
            reason = f"{frame.code}: {frame.message}"
            return self._attempt_failed(request, reason, now, is_fault, is_loss=False, is_busy=True)
        # (who cannot answer may only have been asked for the impossible)
        reason, is_engine_loss = f"{frame.code}: {frame.message}", frame.code == "engine_lost"
        is_leaving = frame.code == LEAVING  # (no fault either, and it may be back soon)
        is_fault = frame.retryable and not is_leaving
        return self._attempt_failed(request, reason, now, is_fault, is_engine_loss, is_engine_loss or is_leaving)

    def _attempt_failed(
        self,
        request: Request,
        reason: str,
        now: float,
        is_fault: bool = True,
        is_engine_loss: bool = False,
        is_loss: bool = True,
        is_busy: bool = False,
        is_late: bool = False,
    ) -> list[Effect]:
        """is_fault: of the node that served it; if no token came, that counts as the longest wait. is_loss: of the node
        or of its engine. is_busy: the node said so. is_late: its tokens came too slowly."""
        if is_fault and request.peer != self._me:
            waited_s = 0.0 if request.position else now - request.sent_at - request.expected_s
            self._observed.on_late(request.peer, max(waited_s, self._routing.failure_s), now)
        if request.is_complete:
            return self._finish(request, "length", None)
        space = self._choice.dispatches(request)
        space.end(request.request_id, request.peer)
        space.withdraw(request.peer, request.own_chain)
        request.fail_attempt(reason, is_engine_loss, is_loss, is_busy, is_late)
        lost = Emit("attempt_failed", {"request": request.request_id, "peer": request.peer, "reason": reason})
        return [lost, *self._dispatch(request, now)]

    def _move(self, request: Request, now: float) -> list[Effect]:
        """To another node than the one where it is overdue."""
        if request.position:
            self._observed.on_late(request.peer, request.pace.late_s(now), now)
            self._observed.on_pace(request.peer, request.pace.token_s(until=now), now)
        else:
            self._observed.on_first_token(request.peer, request.expected_s, now - request.sent_at, now)
        abandon = Abandon(request.request_id, request.attempt)
        reason, is_late = "its turn did not come in time", request.has_begun
        if is_late:
            reason = "its tokens came too slowly"
            request.num_late_moves += 1
        else:
            request.num_moves += 1
        return [
            abandon,
            *self._attempt_failed(request, reason, now, is_fault=False, is_loss=False, is_late=is_late),
        ]

    def _is_last_attempt(self, request: Request) -> bool:
        return request.tries >= self._config.max_attempts

    def _may_rest(self, request: Request, is_busy: bool) -> bool:
        """Whether it failed only because nodes were lost, which may be back soon, or, if its answer has begun, because
        they are busy. Not what kills engines."""
        if request.num_engine_losses >= self._config.max_engine_losses or request.is_doubted:
            return False
        if request.generated:
            return (request.was_loss or is_busy) and request.num_rests < self._config.begun_rests
        return request.was_loss and request.num_rests < len(self._config.rest_s)

    def _rest(self, request: Request, now: float) -> list[Effect]:
        pause_s = self._config.rest_s[min(request.num_rests, len(self._config.rest_s) - 1)]
        request.rest()
        self._waiting[request.request_id] = set()
        return [SetTimer(Timer("rested", request.request_id), now + pause_s)]

    def on_rested(self, request_id: bytes, now: float) -> list[Effect]:
        """Try again."""
        request = self._requests.get(request_id)
        return self._stop_waiting(request_id, now) if request and request.num_rests else []

    def _finish(self, request: Request, reason: str, usage: Usage | None) -> list[Effect]:
        self._end(request)
        return [Finish(request.request_id, request.peer, reason, request.usage(usage), request.resumed)]

    def _end(self, request: Request) -> None:
        self._choice.dispatches(request).end(request.request_id, request.peer)
        del self._requests[request.request_id]

    def _check_end(self, request: Request, reason: str) -> bool:
        """Whether the answer ended before it was as long as it may be, as its node has no room for more. Raises
        RemoteError for an end that no honest node gives."""
        if request.spelling is not None and reason != "cancelled":
            request.spelling.end(reason)
        if reason != "length" or request.is_complete:
            return False
        if request.num_tokens < self._members.context_tokens(request.peer, request.namespace):
            raise RemoteError("an end by length before that length")
        return True

    def _note_final(self, request: Request, frame: Final, now: float) -> None:
        """What the serving node tells with its last frame, its load and how much it had, and the pace that was seen."""
        if request.promised_tokens:
            self._observed.on_cached(request.peer, request.promised_tokens, frame.usage.cached_tokens, now)
        if request.salt.scope != EVERYBODY:  # (which no digest will tell)
            self._choice.remember(request, request.peer, request.answered_chain, now)
        if request.peer != self._me and frame.reason != "cancelled":
            self._observed.on_answered(request.peer, min(self._members.connected_at(request.peer), now), now)
        token_s = request.pace.token_s()
        if token_s:
            late_s = request.pace.slow_s(self._observed.usual_token_s)
            self._observed.on_pace(request.peer, token_s, now)
            if late_s > self._routing.late_s and request.peer != self._me:
                self._observed.on_late(request.peer, late_s, now)
        self._note_load(request, frame.vitals, now)

    def _note_load(self, request: Request, vitals: Vitals, now: float) -> None:
        """It came with a frame of the running attempt."""
        if request.peer != self._me:
            update = VitalsUpdate(namespace=request.namespace, vitals=vitals)
            self._vitals.on_update(request.peer, update, now, is_reply=True)
            self.on_vitals(request.peer, vitals)


def _cause(request: Request) -> str:
    return f"; the last one said: {request.last_failure}" if request.last_failure else ""


def _key(request: Request) -> bytes:
    """By which a prompt is known that comes again."""
    return blake3(request.client + b"\0" + pack_tokens(request.prompt)).digest(length=16)
