"""Sends a request to one of its candidates: chooses, states what is expected of the attempt, and counts it there."""

import math

import numpy as np

from mycelia.proto.answers.token_pace import TokenPace
from mycelia.proto.config import RequestConfig, RoutingConfig
from mycelia.proto.effects import Dispatch, Effect, SetTimer
from mycelia.proto.events import Timer
from mycelia.proto.planes.attempt import Attempt
from mycelia.proto.planes.choice import Choice
from mycelia.proto.planes.membership import Membership
from mycelia.proto.planes.request import Request
from mycelia.proto.planes.vitals import VitalsPlane
from mycelia.proto.routing.candidates import Candidates
from mycelia.proto.routing.choose import Decision, Policy, choose, patience_s
from mycelia.proto.wire.versions import for_version


class Dispatcher:
    def __init__(
        self,
        me: bytes,
        config: RequestConfig,
        routing: RoutingConfig,
        chance: np.random.Generator,
        members: Membership,
        vitals: VitalsPlane,
        choice: Choice,
        policy: Policy | None,
    ) -> None:
        """policy: replaces this protocol's own choice, for comparisons."""
        self._me = me
        self._config = config
        self._routing = routing
        self._chance = chance
        self._members = members
        self._vitals = vitals
        self._choice = choice
        self._policy = policy

    def send(self, request: Request, candidates: Candidates, now: float) -> list[Effect]:
        """Begins an attempt at one of ``candidates``, of which there is at least one. Mutates ``request``."""
        decision = self._decide(request, candidates)
        effects = self._vitals.on_decision(request.namespace, decision, now)
        attempt = self._expected(request, decision, now)
        generate = for_version(request.begin_attempt(attempt), self._members.wire_version(attempt.peer))
        self._choice.sent(request, decision, now)
        effects.append(Dispatch(request.request_id, attempt.number, attempt.peer, generate, decision))
        if attempt.due_at < math.inf:
            effects.append(SetTimer(Timer("overdue", request.request_id), attempt.due_at))
        return effects

    def _decide(self, request: Request, candidates: Candidates) -> Decision:
        luck = self._chance.random(len(candidates))
        rating = None
        if self._policy is not None:
            rating = self._policy(candidates, request.num_tokens, request.chain)
        return choose(candidates, request.num_tokens, self._routing, luck, rating)

    def _expected(self, request: Request, decision: Decision, now: float) -> Attempt:
        """The next attempt of ``request``, with what is expected of it. Does not mutate."""
        peer, expected_s = decision.chosen, decision.expected_s
        patience = patience_s(decision, self._routing) if peer != self._me else None
        may_move = request.num_moves < self._routing.max_moves
        is_last = request.setbacks.tries + 1 >= self._config.max_attempts
        due_at = math.inf
        if patience is not None and may_move and not is_last:
            due_at = now + max(expected_s, self._members.round_trip_s(peer) + patience)
        token_s = self._members.observed.speeds(request.namespace).expected_token_s(peer)
        return Attempt(
            number=request.num_attempts + 1,
            peer=peer,
            num_tokens=request.num_tokens,
            sent_at=now,
            expected_s=expected_s,
            promised_tokens=decision.matched_tokens,
            patience_s=patience if request.num_bounces < self._routing.max_bounces else None,
            due_at=due_at,
            prefill_s=self._prefill_s(request, decision),
            max_withheld=request.max_withheld,
            is_watched=peer != self._me and self._routing.max_moves > 0,
            pace=TokenPace(token_s, self._routing.pace_factor, request.max_withheld),
        )

    def _prefill_s(self, request: Request, decision: Decision) -> float:
        """Seconds expected for the prompt; if the chosen node's rate is unknown, the longest that is usual."""
        rates = decision.candidates.prefill_rate
        if rates[decision.place]:
            return decision.prefill_s
        if rates.any():
            return self._routing.max_slowness * decision.prefill_s
        return request.num_tokens / self._config.slowest_prefill_rate
