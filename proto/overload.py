"""Too much at once, seen from the entry node: its own places, the nodes that refused for a while, and who comes back.

A refusal is no fault of a node that did not just claim to be idle. Who says that it is overloaded is not asked again
until the time that it said is over or nobody waits there any more, and nothing else comes of it: a node that
exaggerates loses what it would have been asked.

When everybody who could answer is busy, the prompt is refused and its client told when to come again: an appointment.
Were all told when the next node takes one request, all would come then, and all but one in vain. So

    wait = (1 + SPACING x (those held + those expected before)) x seconds between two places

where a place is what a node begins with of what entered here. That word is kept from both sides, as in ``shares.py``:
who comes when told is let in, and held at the entry while no node has a place; who comes earlier hears the same again,
unless a node is idle. Of appointments that were made as many are expected as came of the last ones of that length, for
who is told a long time goes elsewhere. A prompt that comes again is known by its client and its tokens: people of one
machine or one key are not told apart.

What comes for the first time passes while there are no appointments, and else as far as those leave places over. Waits
at the nodes stay within ``max_waiting_per_slot``, above which nothing is sent there, and those at the entry are short,
as fewer are told to come than there are places.

Invariants: at most ``MAX_BUSY`` peers are remembered, those that refused last, and at most ``MAX_APPOINTMENTS``.
"""

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

from proto.messages import Failed
from proto.shares import MAX_RETRY_S, Pace, Shares

OVERLOADED = "overloaded"
"""The code of such a refusal."""
UNKNOWN_RETRY_S = 1.0
"""How long a peer is left alone that does not say."""
MAX_BUSY = 4_096
MAX_APPOINTMENTS = 4_096
"""At an entry. Who is told more than that finds nothing kept."""
MAX_HELD = 64
MAX_HELD_S = 30.0
"""Requests that came when told and wait at the entry, and how long. More are told another time."""
LEAST_AGAIN_S = 1.0
"""HTTP knows no shorter times."""
_SPACING = 1.2
"""Simulated at three times what a swarm can answer: at 1 more than come find places now and then, and then wait for up
to 20 s as nobody told them otherwise; at 1.3 nothing is better, and what comes for the first time passes oftener."""
_LAPSE_S, _LAPSE_SHARE = 2.0, 0.25
"""How long an appointment is kept for who is late: so long, or this share of the time until it."""
_NUM_LENGTHS = 10
_KEPT_WEIGHT = 1 / 32
"""Of the last appointment that was kept or not, in the share of those that are."""
_MAX_AHEAD = 16.0
"""Places that may be taken ahead of their time."""


class Asked(Protocol):
    """A request in flight."""

    @property
    def client(self) -> bytes: ...


class EntryPlaces:
    """Shares of the requests in flight at an entry node, among its clients."""

    def __init__(self, num_places: int) -> None:
        self._shares = Shares(num_places)
        self._num_joined = 0
        self._num_over = 0

    def join(self, client: bytes, in_flight: Collection[Asked], now: float) -> float:
        """0.0: one more request of ``client`` may enter beside those in flight. Else it may after so many seconds.
        Mutates."""
        num_over = self._num_joined - len(in_flight)
        for _ in range(min(num_over - self._num_over, self._shares.num_places)):
            self._shares.pace.freed(now, somebody_waits=True)
        self._num_over = num_over
        if 2 * len(in_flight) < self._shares.num_places:
            self._shares.pace.nobody_waits()  # (time counts while places are scarce)
        else:
            self._shares.pace.waits(now)
        num_own = sum(request.client == client for request in in_flight)
        own_part = max(num_own, 1) / (len(in_flight) + 1)
        wait_s = self._shares.join(client, num_own, len(in_flight), own_part, now)
        self._num_joined += not wait_s
        return wait_s


class BusyPeers:
    """Who said to be overloaded, and until when. Peer ids are the keys."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def refused(self, peer: bytes, frame: Failed, now: float) -> None:
        """``peer`` refused a request as overloaded. Mutates."""
        wait_s = min(frame.retry_after_ms / 1000 or UNKNOWN_RETRY_S, MAX_RETRY_S)
        self._until[peer] = now + wait_s
        self._until.move_to_end(peer)
        if len(self._until) > MAX_BUSY:
            self._until.popitem(last=False)

    def idle(self, peer: bytes) -> None:
        """At ``peer`` nobody waits any more, so that it refuses nobody. Also forgets what begins with it. Mutates."""
        for key in [key for key in self._until if key.startswith(peer)]:
            del self._until[key]

    def is_busy(self, peer: bytes, now: float) -> bool:
        return now < self._until.get(peer, 0.0)

    def now(self, now: float) -> set[bytes]:
        """All that are busy."""
        return {peer for peer, until in self._until.items() if now < until}

    def least_wait_ms(self, peers: Iterable[bytes], now: float) -> int:
        """Until the first of ``peers`` that is busy may be asked again, at least 1; 0 if none is."""
        waits = [self._until[peer] - now for peer in peers if self.is_busy(peer, now)]
        return max(round(1000 * min(waits)), 1) if waits else 0


class _Appointment(NamedTuple):
    at: float
    """From then on it is let in, until:"""
    lapses_at: float
    length: int
    """See ``_length``."""


class Appointments:
    """When those may come again that an entry node refused, and who came then. Prompts are known by a key."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._made: dict[bytes, _Appointment] = {}
        self._lapses: list[tuple[float, bytes]] = []
        """A heap: when each lapses, also of those that were kept, up to 2 x MAX_APPOINTMENTS in all."""
        self._num_made = [0] * _NUM_LENGTHS
        """Of ``_made``, by length."""
        self._kept = [1.0] * _NUM_LENGTHS
        """Share of the last ones that came, by length."""
        self._next_at = 0.0
        """When the next prompt may be let in that was not told to come."""

    def __len__(self) -> int:
        return len(self._made)

    def wait_s(self, key: bytes, now: float) -> float | None:
        """Until its appointment, 0.0 if that is now; None if it has none. Mutates: forgets what has lapsed."""
        had_any = bool(self._made)
        while self._lapses and self._lapses[0][0] < now:
            lapses_at, lapsed = heappop(self._lapses)
            if lapsed in self._made and self._made[lapsed].lapses_at == lapses_at:
                self._end(lapsed, is_kept=False)
        if had_any and not self._made:
            self._pace.nobody_waits()  # (nor did anybody since)
        found = self._made.get(key)
        return None if found is None else max(found.at - now, 0.0)

    def make(self, key: bytes, num_held: int, guess_s: float, now: float) -> float:
        """``key`` is refused: the seconds after which it shall come again. Mutates.

        num_held: requests that came when told and still wait. guess_s: between two places, before any was observed.
        """
        if key in self._made:  # (it came, and found no room)
            self._end(key, is_kept=True)
        self._pace.waits(now)
        num_before, least_kept = float(num_held), 1.0
        for num_made, kept in zip(self._num_made, self._kept, strict=True):
            least_kept = min(least_kept, kept)  # (who does not come after a short time does not after a long one)
            num_before += num_made * least_kept
        wait_s = (1 + _SPACING * num_before) * self._pace.seconds(now, guess_s)
        wait_s = min(max(wait_s, LEAST_AGAIN_S), MAX_RETRY_S)
        if len(self._made) < MAX_APPOINTMENTS:
            lapses_at = now + wait_s + max(_LAPSE_S, _LAPSE_SHARE * wait_s)
            self._made[key] = _Appointment(now + wait_s, lapses_at, _length(wait_s))
            self._num_made[_length(wait_s)] += 1
            heappush(self._lapses, (lapses_at, key))
            if len(self._lapses) > 2 * MAX_APPOINTMENTS:
                self._lapses = sorted((made.lapses_at, key) for key, made in self._made.items())
        return wait_s

    def nobody_else(self) -> None:
        """No other request is in flight: for as long as that was so, nothing but appointments waited. Mutates."""
        if not self._made:
            self._pace.nobody_waits()

    def come(self, key: bytes, now: float) -> None:
        """It came when told, and is let in. Mutates."""
        self._end(key, is_kept=True)
        self._let_in(now)

    def may_pass(self, now: float) -> bool:
        """Whether a prompt that was not told to come may be let in: fewer come than there are places. Mutates: it is
        then."""
        if self._made and now < self._next_at:
            return False
        self._let_in(now)
        return True

    def placed(self, num_held: int, now: float) -> None:
        """A node began with a request that entered here. Mutates."""
        self._pace.freed(now, somebody_waits=num_held > 0 or bool(self._made))

    def check_invariants(self) -> None:
        """Raises AssertionError when the books do not fit each other."""
        assert sum(self._num_made) == len(self._made) <= MAX_APPOINTMENTS

    def _let_in(self, now: float) -> None:
        place_s = self._pace.seconds(now, 0.0)
        self._next_at = min(max(self._next_at, now) + place_s, now + _MAX_AHEAD * place_s)

    def _end(self, key: bytes, is_kept: bool) -> None:
        length = self._made.pop(key).length
        self._num_made[length] -= 1
        self._kept[length] += (is_kept - self._kept[length]) * _KEPT_WEIGHT


def _length(wait_s: float) -> int:
    """In powers of two, from 4 s on; ``wait_s`` above 0."""
    return min(max(math.ceil(math.log2(wait_s)) - 2, 0), _NUM_LENGTHS - 1)
