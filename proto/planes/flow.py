"""How a request gets from one state to the next (``request.py``), and the effects of that.

Every method takes a request in flight and mutates it. It then waits, is at a node, or is over and forgotten.
"""

import math

from mycelia.proto.admission.overload import OVERLOADED, UNKNOWN_RETRY_S
from mycelia.proto.config import RequestConfig
from mycelia.proto.effects import Abandon, Effect, Emit, Fail, Finish, SetTimer
from mycelia.proto.events import Timer
from mycelia.proto.planes.admission import Admission, RetryAfter
from mycelia.proto.planes.choice import Choice
from mycelia.proto.planes.dispatcher import Dispatcher
from mycelia.proto.planes.failure import Failure
from mycelia.proto.planes.ladder import LadderPlane
from mycelia.proto.planes.observer import AttemptObserver
from mycelia.proto.planes.request import Request
from mycelia.proto.wire.messages import Usage

_MAX_REASON = 512
"""Characters: as many as ``Failed`` can hold."""


class RequestFlow:
    """The requests in flight of one entry node."""

    def __init__(
        self,
        config: RequestConfig,
        ladder: LadderPlane,
        choice: Choice,
        admission: Admission,
        dispatcher: Dispatcher,
        observer: AttemptObserver,
    ) -> None:
        self._config = config
        self._ladder = ladder
        self._choice = choice
        self._admission = admission
        self._dispatcher = dispatcher
        self._observer = observer
        self.requests: dict[bytes, Request] = {}

    def start(self, request: Request, now: float) -> list[Effect]:
        """Waits for a lookup if one may help; otherwise routes at once."""
        if not self._ladder.may_help(request.namespace, request.num_tokens):
            return self.route(request, now)
        best = int(self._choice.candidates(request, now).matched_tokens.max(initial=0))
        seek = self._ladder.seek(request.request_id, request.namespace, request.chain, request.num_tokens, best, now)
        if not seek:
            return self.route(request, now)
        request.look_up()
        return seek

    def wake(self, request: Request, now: float) -> list[Effect]:
        """Ends the request's wait, of any kind, and routes it."""
        self._admission.release(request)
        request.wake()
        return self.route(request, now)

    def route(self, request: Request, now: float) -> list[Effect]:
        """Sends the request to a node; if there is none, lets it wait or ends it."""
        candidates = self._choice.candidates(request, now, also_full=self._choice.may_wait_long(request))
        if len(candidates) and not request.is_last_attempt(self._config):
            return self._dispatcher.send(request, candidates, now)
        wait_ms = self._choice.busy_ms(request, now)
        if not wait_ms and not len(candidates) and len(self._choice.candidates(request, now, also_full=True)):
            wait_ms = round(1000 * UNKNOWN_RETRY_S)
        if request.may_rest(self._config, wait_ms > 0):
            pause_s = self._config.rest_s[min(request.setbacks.num_rests, len(self._config.rest_s) - 1)]
            request.rest()
            return [SetTimer(Timer("rested", request.request_id), now + pause_s)]
        if wait_ms and self._admission.may_hold(request, now):
            return self._admission.hold(request, now)
        self.end(request)
        if wait_ms:
            return [refusal(request, self._admission.refuse(request, now))]
        message = f"no node could answer after {request.num_attempts} attempts{_cause(request)}"
        if not request.num_attempts:
            message = "no reachable node serves this model with room for this prompt"
        return [Fail(request.request_id, "no_peer", message[:_MAX_REASON], True)]

    def attempt_failed(self, request: Request, failure: Failure, reason: str, now: float) -> list[Effect]:
        """The running attempt ended without an answer, or without its last frame."""
        attempt = request.attempt
        self._observer.failed(attempt, failure, now)
        if request.is_complete:
            return self.finish(request, "length", None)
        space = self._choice.dispatches(request)
        space.end(request.request_id, attempt.peer)
        space.withdraw(attempt.peer, request.own_chain)
        request.fail_attempt(failure, reason)
        lost = Emit("attempt_failed", {"request": request.request_id, "peer": attempt.peer, "reason": reason})
        return [lost, *self.route(request, now)]

    def take_away(self, request: Request, now: float) -> list[Effect]:
        """Moves the request from the node where it is too slow to another one."""
        self._observer.taken_away(request, now)
        abandon = Abandon(request.request_id, request.attempt.number)
        if request.has_begun:
            request.num_late_moves += 1
            failed = self.attempt_failed(request, Failure.TOO_SLOW, "its tokens came too slowly", now)
        else:
            request.num_moves += 1
            failed = self.attempt_failed(request, Failure.OVERDUE, "its turn did not come in time", now)
        return [abandon, *failed]

    def finish(self, request: Request, reason: str, usage: Usage | None) -> list[Effect]:
        """The answer is complete. usage: the serving node's account of its last attempt; None: it was lost."""
        peer = request.peer
        self.end(request)
        return [Finish(request.request_id, peer, reason, request.usage(usage), request.resumed)]

    def end(self, request: Request) -> None:
        if request.is_running:
            self._choice.dispatches(request).end(request.request_id, request.peer)
        request.end()
        del self.requests[request.request_id]


def refusal(request: Request, retry: RetryAfter) -> Fail:
    """Code and message for a request that may come again later; no token of its answer has come."""
    message = f"{retry.reason}{_cause(request)}"[:_MAX_REASON]
    return Fail(request.request_id, OVERLOADED, message, True, math.ceil(1000 * retry.wait_s))


def _cause(request: Request) -> str:
    return f"; the last one said: {request.last_reason}" if request.last_reason else ""
