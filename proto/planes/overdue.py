"""When a request is moved from a node that is too slow with it, and starts anew elsewhere.

A node may be late in three ways: the prefill does not begin in time, it takes too long, or the tokens come too slowly
(``token_pace.py``). In each case the request waits until it is late by as much as a new start elsewhere would take. So
it waits at most twice as long as if the future were known (Karlin et al., "Competitive snoopy caching", Algorithmica 3,
1988). A short pause in work that has begun does not count (``late_s``), and each such move doubles what is accepted
after it: where all nodes are slow for now, moving does not help.
"""

import math

from mycelia.proto.config import RoutingConfig
from mycelia.proto.planes.choice import Choice
from mycelia.proto.planes.request import Request
from mycelia.proto.routing.choose import choose

_LOOK_AGAIN_S = 0.1
"""Least time between two checks."""


class Overdue:
    """Decides when to check a request again, and when to move it. Does not mutate."""

    def __init__(self, config: RoutingConfig, choice: Choice) -> None:
        self._config = config
        self._choice = choice

    def look_at(self, request: Request, now: float) -> float:
        """When to check it next if nothing comes until then; ``now``: move it now; infinity: never."""
        if request.has_begun:
            return self._later(request, now)
        if now < request.attempt.due_at:
            return request.attempt.due_at
        elsewhere_s = self._elsewhere_s(request, now)
        if elsewhere_s is None:
            return now + max(request.attempt.expected_s, _LOOK_AGAIN_S)
        move_at = request.attempt.due_at + elsewhere_s
        return now if now >= move_at else max(move_at, now + _LOOK_AGAIN_S)

    def _later(self, request: Request, now: float) -> float:
        """The same for a request whose prefill has begun."""
        if not request.attempt.is_watched:
            return math.inf
        patience = 2.0**request.num_late_moves
        look_at = request.attempt.pace.late_at(self._config.late_s * patience)
        if now >= look_at:
            elsewhere_s = self._elsewhere_s(request, now)
            if elsewhere_s is None:
                return now + self._config.late_s
            move_at = request.attempt.pace.late_at(max(self._config.late_s, elsewhere_s) * patience)
            if now >= move_at:
                return now
            look_at = move_at
        return max(look_at, now + _LOOK_AGAIN_S)

    def _elsewhere_s(self, request: Request, now: float) -> float | None:
        """Seconds until the next token after a new start at another node; None: no other node has a place."""
        others = self._choice.candidates(request, now, {request.peer})
        return choose(others, request.num_tokens, self._config).late_s if len(others) else None
