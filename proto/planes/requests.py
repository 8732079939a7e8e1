"""Requests that entered at this node: route, dispatch, stream, resume, finish.

``request.py`` has the states of one request and ``flow.py`` the steps between them. ``admission.py`` decides which
requests enter, ``choice.py`` and ``dispatcher.py`` which node gets one, ``observer.py`` what that shows of the node,
and ``overdue.py`` when a request is moved. Here events find the request that they are about.

If a peer calls a request impossible, that costs one attempt, not the answer: only this node's own engine decides.

A long prompt of which little is known may wait a moment for a lookup (``ladder.py``) before its first attempt.

Invariant: every request in flight that does not wait has one running attempt, counted at the peer that serves it.
"""

import math
import random
from collections.abc import Mapping

import numpy as np

from mycelia.proto.answers.spelling import Spelling, Vocabulary
from mycelia.proto.config import OverlayConfig
from mycelia.proto.effects import Abandon, Begin, Deliver, DeliverPromptLogprobs, Effect, Emit, Fail, Finish, SetTimer
from mycelia.proto.events import FrameReceived, ModelServed, ProvidersFound, RequestSubmitted, StreamLost, Timer
from mycelia.proto.planes.admission import Admission, RetryAfter
from mycelia.proto.planes.choice import Choice
from mycelia.proto.planes.digests import DigestPlane
from mycelia.proto.planes.dispatcher import Dispatcher
from mycelia.proto.planes.failure import LEAVING, LEAVING_MESSAGE, Failure
from mycelia.proto.planes.flow import RequestFlow, refusal
from mycelia.proto.planes.ladder import LadderPlane
from mycelia.proto.planes.membership import Membership
from mycelia.proto.planes.observer import AttemptObserver
from mycelia.proto.planes.overdue import Overdue
from mycelia.proto.planes.request import Request, State
from mycelia.proto.planes.vitals import VitalsPlane
from mycelia.proto.routing.choose import Policy, wait_here_s
from mycelia.proto.wire.messages import Accepted, Bounced, Failed, Final, PromptLogprobs, Tokens, Vitals


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
        """policy: replaces this protocol's own choice, for comparisons."""
        self._me = me
        self._config = config.request
        self._routing = config.routing
        self._members = members
        self._digests = digests
        self._ladder = ladder
        self._vocabularies: dict[bytes, Vocabulary] = {}
        chance = np.random.default_rng(rng.getrandbits(64))
        self._choice = Choice(me, config.request, members, digests)
        self._overdue = Overdue(config.routing, self._choice)
        self._observer = AttemptObserver(me, config.routing, members, vitals, self._choice)
        dispatcher = Dispatcher(me, config.request, config.routing, chance, members, vitals, self._choice, policy)
        self.admission = Admission(config.request, self._choice)
        """Decides which requests enter. Read-only."""
        self._flow = RequestFlow(config.request, ladder, self._choice, self.admission, dispatcher, self._observer)
        self._requests = self._flow.requests

    @property
    def in_flight(self) -> Mapping[bytes, Request]:
        """Request id -> request that is not over. Read-only."""
        return self._requests

    def num_at(self, peer: bytes) -> int:
        """Requests of this node that ``peer`` is working on."""
        return self._choice.in_flight(peer)

    def serving_peer(self, request_id: bytes, attempt: int) -> bytes | None:
        """The peer that serves this attempt, if it is the running one."""
        request = self._running(request_id, attempt)
        return request.peer if request else None

    def silence_s(self, request_id: bytes, attempt: int) -> float:
        """See ``Attempt.silence_s``; ``max_silence_s`` for an attempt that is not the running one."""
        request = self._running(request_id, attempt)
        return request.attempt.silence_s(self._config) if request else self._config.max_silence_s

    # --- events of clients and of this node ------------------------------------------------------------------------

    def on_submitted(self, event: RequestSubmitted, now: float) -> list[Effect]:
        if event.request_id in self._requests:
            return [Fail(event.request_id, "bad_request", "a request with this id is in flight", False)]
        if not event.prompt:
            return [Fail(event.request_id, "bad_request", "the prompt is empty", False)]
        if self._members.is_leaving:
            return [Fail(event.request_id, LEAVING, LEAVING_MESSAGE, True)]
        subnet = self._members.subnet(event.client).encode()
        request = Request(
            request_id=event.request_id,
            namespace=event.namespace,
            prompt=event.prompt,
            sampling=event.sampling,
            client=event.client,
            subnet=subnet,
            is_first=all(other.subnet != subnet for other in self._requests.values()),
            salt=event.salt,
            open_tokens=event.open_tokens,
            generated=list(event.generated),
        )
        verdict = self.admission.admit(request, self._requests.values(), now)
        if isinstance(verdict, RetryAfter):
            return [refusal(request, verdict)]
        vocabulary = self._vocabularies.get(event.namespace)
        if vocabulary is not None:
            request.spelling = Spelling(vocabulary, event.sampling.stop, event.generated)
        if request.is_complete:  # (the end was lost with the entry node)
            return [Finish(event.request_id, self._me, "length", request.usage(None), 1)]
        self._requests[event.request_id] = request
        request.may_be_held_until = verdict.may_be_held_until
        if request.may_be_held_until and self.admission.num_held:  # (others came before)
            return self.admission.hold(request, now)
        return self._flow.start(request, now)

    def on_cancelled(self, request_id: bytes, now: float) -> list[Effect]:
        request = self._requests.get(request_id)
        if request is None:
            return []
        self.admission.on_cancelled(request, now)
        abandon: list[Effect] = [Abandon(request_id, request.attempt.number)] if request.is_running else []
        self._flow.end(request)
        return abandon

    def on_served(self, event: ModelServed) -> None:
        """Store the vocabulary of the model, if this node knows it."""
        if event.vocabulary is not None:
            self._vocabularies[event.namespace] = event.vocabulary

    # --- events that requests wait for -----------------------------------------------------------------------------

    def on_found(self, event: ProvidersFound, now: float) -> list[Effect]:
        """A lookup that a request waits or waited for found something."""
        was_looking = self._ladder.is_looking(event.request_id)
        effects, sought = self._ladder.on_found(event, now)
        is_over = was_looking and not self._ladder.is_looking(event.request_id)
        request = self._requests.get(event.request_id)
        if is_over and request is not None and request.state is State.LOOKING:
            request.sought = frozenset(sought)
            if not sought:
                effects += self._flow.wake(request, now)
        return effects

    def on_wait_over(self, timer: Timer, now: float) -> list[Effect]:
        """A lookup took long enough: route with what is known."""
        effects = self._wake_from(State.LOOKING, timer.subject, now)
        return effects + self._ladder.on_wait_over(timer.subject, timer.namespace, now)

    def on_digest(self, owner: bytes, now: float) -> list[Effect]:
        """``owner`` sent a hello or its digest came: requests that waited for it go on."""
        estimates = self._digests.estimates
        ready = [
            request
            for request in self._requests.values()
            if request.state is State.LOOKING
            and owner in request.sought
            and estimates.version(owner, request.namespace) > (0, 0)
        ]
        return [effect for request in ready for effect in self._flow.wake(request, now)]

    def on_rested(self, request_id: bytes, now: float) -> list[Effect]:
        """Lost nodes may be back: try again."""
        return self._wake_from(State.RESTING, request_id, now)

    def on_place_due(self, now: float) -> list[Effect]:
        """A node may have a place for a held request."""
        request, num_looks = self.admission.next_held(self._requests, now)
        effects = self._flow.wake(request, now) if request is not None else []
        return effects + self.admission.look_again(num_looks, now)

    # --- events of nodes that serve --------------------------------------------------------------------------------

    def on_frame(self, event: FrameReceived, now: float) -> list[Effect]:
        """Raises RemoteError for a frame that no honest node sends; report StreamLost then."""
        request = self._running(event.request_id, event.attempt)
        if request is None:
            return []
        match event.frame:
            case Accepted() as frame:
                return self._on_accepted(request, frame, now)
            case Bounced() as frame:
                return self._on_bounced(request, frame, now)
            case PromptLogprobs() as frame:
                request.on_prompt_logprobs(frame, is_own=request.peer == self._me)
                return [DeliverPromptLogprobs(request.request_id, frame.position, frame.logprobs)]
            case Tokens() as frame:
                return self._on_tokens(request, frame, now)
            case Final() as frame:
                return self._on_final(request, frame, now)
            case Failed() as frame:
                return self._on_failed(request, frame, now)

    def on_stream_lost(self, event: StreamLost, now: float) -> list[Effect]:
        request = self._running(event.request_id, event.attempt)
        return self._flow.attempt_failed(request, Failure.LOST, event.reason, now) if request else []

    def on_vitals(self, peer: bytes, namespace: bytes, vitals: Vitals) -> None:
        """``peer``, which may be this node, reported its load with a model."""
        self._observer.load(peer, namespace, vitals)

    def on_peer_lost(self, peer: bytes, now: float) -> list[Effect]:
        """Moves every request that the peer was serving, without waiting for each stream to fail."""
        self._choice.on_peer_lost(peer)
        effects: list[Effect] = []
        for request in [r for r in self._requests.values() if r.peer == peer]:
            effects.append(Abandon(request.request_id, request.attempt.number))
            effects += self._flow.attempt_failed(request, Failure.LOST, "the connection was lost", now)
        return effects

    def on_overdue(self, request_id: bytes, now: float) -> list[Effect]:
        """A request may be too slow where it is, see ``overdue.py``."""
        request = self._requests.get(request_id)
        if request is None or not request.is_running:
            return []
        look_at = self._overdue.look_at(request, now)
        return self._flow.take_away(request, now) if look_at <= now else _look_again(request, look_at)

    def check_invariants(self) -> None:
        for request in self._requests.values():
            request.check_invariants()
        self._choice.check_invariants([request for request in self._requests.values() if request.is_running])
        held = [key for key, request in self._requests.items() if request.state is State.HELD]
        self.admission.check_invariants(held)

    def _wake_from(self, state: State, request_id: bytes, now: float) -> list[Effect]:
        request = self._requests.get(request_id)
        return self._flow.wake(request, now) if request is not None and request.state is state else []

    # --- frames ----------------------------------------------------------------------------------------------------

    def _running(self, request_id: bytes, attempt: int) -> Request | None:
        request = self._requests.get(request_id)
        is_it = request is not None and request.is_running and request.attempt.number == attempt
        return request if is_it else None

    def _on_accepted(self, request: Request, frame: Accepted, now: float) -> list[Effect]:
        request.on_accepted(frame)
        attempt = request.attempt
        attempt.pace.begun(attempt.prefill_expected_s(), now)
        self.admission.on_begun(now)
        self._observer.load_in_frame(request, attempt.peer, frame.vitals, now)
        look = _look_again(request, self._overdue.look_at(request, now))
        return [Begin(request.request_id, attempt.peer, frame.cached_tokens), *look]

    def _on_tokens(self, request: Request, frame: Tokens, now: float) -> list[Effect]:
        before = request.state
        tokens, text = request.on_tokens(frame, is_own=request.peer == self._me)
        request.attempt.pace.came(len(tokens), now)
        effects: list[Effect] = [Deliver(request.request_id, tokens, text, frame.logprobs)]
        if before is not State.STREAMING:
            effects += _look_again(request, self._overdue.look_at(request, now))
            self._observer.first_token(request, before is State.COMPUTING, now)
        return effects

    def _on_final(self, request: Request, frame: Final, now: float) -> list[Effect]:
        peer = request.peer
        context_tokens = self._members.context_tokens(peer, request.namespace)
        is_short = peer != self._me and request.ends_short(frame.reason, context_tokens)
        self._observer.final(request, frame, now)
        if is_short and len(self._choice.candidates(request, now, {peer}, also_full=True)):
            return self._flow.attempt_failed(request, Failure.CONTEXT_FULL, "its context is full", now)
        if frame.reason == "cancelled":
            return self._flow.attempt_failed(request, Failure.LOST, "the node stopped serving it", now)
        return self._flow.finish(request, frame.reason, frame.usage)

    def _on_bounced(self, request: Request, frame: Bounced, now: float) -> list[Effect]:
        """Raises RemoteError if the frame's values are no reason to hand back."""
        attempt = request.attempt
        wait_s = wait_here_s(frame.vitals, request.num_tokens - frame.cached_tokens, self._routing)
        request.on_bounced(frame, wait_s)
        self._observer.bounced(request, attempt, frame, wait_s, now)
        bounced = Emit("bounced", {"request": request.request_id, "peer": attempt.peer, "wait_s": round(wait_s, 3)})
        return [bounced, *self._flow.route(request, now)]

    def _on_failed(self, request: Request, frame: Failed, now: float) -> list[Effect]:
        peer = request.peer
        if not frame.retryable and peer == self._me and not request.is_complete:
            self._flow.end(request)
            return [Fail(request.request_id, frame.code, frame.message, False)]
        request.is_doubted = request.is_doubted or not frame.retryable
        failure = Failure.of(frame, was_idle=self._members.is_idle(peer, request.namespace))
        if failure.is_busy:
            self._choice.busy.refused(self._choice.busy_key(request, peer), frame, now)
        return self._flow.attempt_failed(request, failure, f"{frame.code}: {frame.message}", now)


def _look_again(request: Request, at: float) -> list[Effect]:
    return [SetTimer(Timer("overdue", request.request_id), at)] if at < math.inf else []
