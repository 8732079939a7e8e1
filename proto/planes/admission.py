"""Which requests an entry node lets in, which it refuses and for how long, and which wait here for a place.

A request is refused if its client has used up its share of this node's places in flight (``EntryPlaces``), or if all
nodes are busy. Then the client gets a time (``retry_times.py``). A request that comes at that time is *held* for up to
``MAX_HELD_S`` while no node has a place for it.

Invariant: while requests are held, a timer is set for the next check whether a node has a place.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from blake3 import blake3

from mycelia.proto.admission.overload import UNKNOWN_RETRY_S, EntryPlaces
from mycelia.proto.admission.retry_times import MAX_HELD_S, RetryTimes
from mycelia.proto.config import RequestConfig
from mycelia.proto.effects import Effect, SetTimer
from mycelia.proto.events import Timer
from mycelia.proto.planes.choice import Choice
from mycelia.proto.planes.request import Request
from mycelia.proto.wire.blocks import pack_tokens

_FEW = 1.5
"""Requests per slot up to which a node has room for a prompt that has no retry time."""
_LOOK_S, _LOOKED_S = 0.02, 0.002
"""Seconds between two checks of held requests, and the addition per request checked in vain (about 50 us)."""


@dataclass(frozen=True)
class Admitted:
    """The request may go to a node."""

    may_be_held_until: float = 0.0
    """The time until which it may wait here instead; 0: it has no retry time, and may not."""


@dataclass(frozen=True)
class RetryAfter:
    """The request is refused; its client may come again after ``wait_s``."""

    wait_s: float
    reason: str


class Admission:
    """The places of one entry node, its retry times, and the requests that it holds."""

    def __init__(self, config: RequestConfig, choice: Choice) -> None:
        self._choice = choice
        self._is_bounded = math.isfinite(config.max_waiting_per_slot)
        self._places = EntryPlaces(config.max_in_flight)
        self._retry_times = RetryTimes()
        self._held = self._retry_times.held
        self._look_at = math.inf
        """When the next check is due; infinity: no request is held."""

    @property
    def num_retry_times(self) -> int:
        return len(self._retry_times)

    @property
    def num_held(self) -> int:
        return len(self._held)

    def admit(self, request: Request, in_flight: Collection[Request], now: float) -> Admitted | RetryAfter:
        """Whether ``request`` may enter beside the requests ``in_flight``. An answer that has begun elsewhere is not
        refused because nodes are busy. Mutates."""
        wait_s = self._places.join(request.subnet, in_flight, now)
        if wait_s:
            return RetryAfter(wait_s, "this node has too many requests in flight")
        if request.generated or not self._is_bounded:
            return Admitted()
        key = _key(request) if self._retry_times else b""
        due_s = self._retry_times.wait_s(key, now)
        if not in_flight:
            self._retry_times.nobody_else()
        if due_s == 0.0 and self._retry_times.has_room(request.subnet):
            self._retry_times.come(key, now)
            return Admitted(now + MAX_HELD_S)
        is_next = due_s is None and not self._held
        if self._choice.has_turn_here(request) or (is_next and self._retry_times.may_pass(now)):
            return Admitted()
        if self._has_slot(request, _FEW if is_next else 1.0, now):
            if due_s is not None:
                self._retry_times.come(key, now)
            return Admitted()
        return self.refuse(request, now)

    def refuse(self, request: Request, now: float) -> RetryAfter:
        """No node takes ``request``, of which no token has come: the time at which it may come again. Mutates."""
        key = _key(request)
        wait_s = self._retry_times.wait_s(key, now)
        if not wait_s:
            busy_s = self._choice.busy_ms(request, now) / 1000
            guess_s = max(busy_s, self._choice.place_s(request, now), UNKNOWN_RETRY_S)
            wait_s = self._retry_times.make(key, request.subnet, guess_s, now)
        else:
            self._retry_times.another(key, now)
        return RetryAfter(wait_s, "all nodes are busy")

    def on_cancelled(self, request: Request, now: float) -> None:
        """Its client gave ``request`` up, perhaps because another choice of its prompt was refused. Mutates."""
        if self._retry_times and not request.generated:
            self._retry_times.another(_key(request), now)
        self.release(request)

    def on_begun(self, now: float) -> None:
        """A node began with a request that entered here. Mutates."""
        self._retry_times.placed(now)

    # --- held requests ---------------------------------------------------------------------------------------------

    def may_hold(self, request: Request, now: float) -> bool:
        return now < request.may_be_held_until and self._retry_times.has_room(request.subnet)

    def hold(self, request: Request, now: float) -> list[Effect]:
        """``request`` waits here until ``next_held`` names it. Mutates."""
        request.hold()
        self._held.add(request.request_id, request.subnet, is_next=request.num_attempts > 0)
        return self._look_in(_LOOK_S, now)

    def release(self, request: Request) -> None:
        self._held.discard(request.request_id)

    def next_held(self, requests: Mapping[bytes, Request], now: float) -> tuple[Request | None, int]:
        """The first held request for which a node has a place or which was held long enough, and how many were checked
        in vain. Call ``look_again`` when it has gone on: the others follow one by one, as each takes a place.
        Mutates."""
        self._look_at = math.inf
        for request_id in self._held:
            request = requests[request_id]
            if now >= request.may_be_held_until or self._choice.has_place(request, now):
                return request, 0
        return None, len(self._held)

    def look_again(self, num_looks: int, now: float) -> list[Effect]:
        """num_looks: requests that were just checked in vain. Mutates."""
        return self._look_in(_LOOK_S + _LOOKED_S * num_looks, now)

    def check_invariants(self, requests: Collection[bytes]) -> None:
        """Raises AssertionError unless exactly ``requests`` are held."""
        assert set(self._held) == set(requests)
        assert not self._held or self._look_at < math.inf
        self._retry_times.check_invariants()

    def _look_in(self, wait_s: float, now: float) -> list[Effect]:
        if not self._held or now + wait_s >= self._look_at:
            return []
        self._look_at = now + wait_s
        return [SetTimer(Timer("place"), self._look_at)]

    def _has_slot(self, request: Request, num_per_slot: float, now: float) -> bool:
        """Whether a node has fewer requests than ``num_per_slot`` for each of its slots."""
        candidates = self._choice.candidates(request, now)
        return bool((candidates.num_requests < candidates.slots * num_per_slot).any())


def _key(request: Request) -> bytes:
    """The key by which a prompt that comes again is recognised."""
    return blake3(request.client + b"\0" + pack_tokens(request.prompt)).digest(length=16)
