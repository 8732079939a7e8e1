"""When a client that was refused because all nodes are busy may come again, and which ones then wait at the entry node.

If every refused client got the time of the next free place, all would come then, and all but one in vain. So

    wait = (1 + SPACING x (those held + those expected before)) x seconds between two places

where a place is the start of a request of this entry node at any node. Both sides keep to that time, as in
``shares.py``: a client that comes in time is let in, and held at the entry while no node has a place. A client that
comes earlier gets the same time again, unless a node is idle. Of the retry times that were made, only the share is
expected that came of the last ones of that length, because a client with a long time goes elsewhere. A prompt that
comes again is known by its client and its tokens: people on one machine or with one key are not distinguished. The
choices of one prompt are refused in one moment, and choices that already run are cancelled then: all of them may come
at the same time.

*Clients.* Each client has a line of its own, and places go from line to line. Of another client's held and expected
requests, only as many count before a request as there are of its own client, plus one. So a client that asks a hundred
things at once waits for the hundred and others do not. A time it got before others came is too short by their places;
it is held, or gets another time, meanwhile. Retry times and places among the held are shared by the rule of
``shares.py``.

A new prompt passes while there are no retry times, and otherwise as far as they leave places over. Waits at the nodes
stay within ``max_waiting_per_slot``, above which nothing is sent there. Waits at the entry are short, because fewer
clients are called than there are places.

Measured against the plain rule, ``Retry-After = queue / rate`` with a jitter of one half and first come, first served
(``mycelia bench overload``, 8 nodes, medians of 3 seeds of 30 s). The queue is what nodes report, or the clients that
were refused and are still expected:

| clients that come again          | here   | nodes' queue / rate | refused clients / rate |
|----------------------------------|--------|---------------------|------------------------|
| load 1.5: time true within 2     | 1.00   | 0.31                | 0.38                   |
| load 1.5: let in at that time    | 1.00   | 0.24                | 0.37                   |
| load 1.5: TTFT p99               | 29 s   | 87 s                | 48 s                   |
| load 3: time true within 2       | 1.00   | 0.32                | 0.24                   |
| load 3: let in at that time      | 1.00   | 0.06                | 0.29                   |
| load 3: TTFT p99                 | 16 s   | 86 s                | 54 s                   |
| load 3: answers per second       | 22.8   | 22.1                | 22.2                   |

Up to load 1 no client is refused, and all rules are alike. The median TTFT is better with the plain rules (0.7 to 0.9 s
instead of 1.4 s at load 3): there an admitted request finds a place at once, but luck decides which one is admitted.

Invariants: at most ``MAX_RETRY_TIMES`` are remembered and ``MAX_HELD`` are held.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import zip_longest
from typing import NamedTuple

from mycelia.proto.admission.shares import MAX_RETRY_S, Pace, has_room

MAX_RETRY_TIMES = 4_096
"""Retry times kept at an entry node; further ones are given but not kept."""
MAX_HELD = 64
MAX_HELD_S = 30.0
"""Requests that came in time and wait at the entry, and how long. Further ones get another time."""
LEAST_AGAIN_S = 1.0
"""HTTP knows no shorter times."""
_SPACING = 1.2
"""Simulated at three times what a swarm can answer: at 1 sometimes more come than find places, and then wait for up to
20 s because they got no other time; at 1.3 nothing is better, and more new prompts pass."""
_LAPSE_S, _LAPSE_SHARE = 2.0, 0.25
"""How long a retry time is kept for a late client: this long, or this share of the time until it."""
_SAME_S = 0.1
"""One moment: a client that comes again so soon only tries early. Simulated with users that try each 0.2 s or more: at
0.5, the share of times that are true falls from 0.97 to 0.87 at a load of 1.5."""
_NUM_LENGTHS = 10
_KEPT_WEIGHT = 1 / 32
"""Weight of the last retry time, kept or not, in the share of those that are kept."""
_MAX_AHEAD = 16.0
"""Places that may be taken ahead of their time."""


class Held:
    """Requests that wait at the entry for a place, one line per client. Iterates over the first of every line, then the
    second of every line, and so on."""

    def __init__(self) -> None:
        self._lines: OrderedDict[bytes, OrderedDict[bytes, None]] = OrderedDict()
        """Client -> its requests; the client whose turn it is comes first."""
        self._client_of: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._client_of)

    def __contains__(self, request_id: bytes) -> bool:
        return request_id in self._client_of

    def __iter__(self) -> Iterator[bytes]:
        for ids in zip_longest(*self._lines.values()):
            yield from (request_id for request_id in ids if request_id is not None)

    @property
    def clients(self) -> set[bytes]:
        return set(self._lines)

    def num_of(self, client: bytes) -> int:
        return len(self._lines.get(client, ()))

    def add(self, request_id: bytes, client: bytes, is_next: bool) -> None:
        """Add to the end of the client's line. is_next: put it first of all, because its turn was in vain. Mutates."""
        self._client_of[request_id] = client
        line = self._lines.setdefault(client, OrderedDict())
        line[request_id] = None
        if is_next:
            line.move_to_end(request_id, last=False)
            self._lines.move_to_end(client, last=False)

    def discard(self, request_id: bytes) -> bool:
        """Whether ``request_id`` waited here; it no longer does, and it is the next client's turn. Mutates."""
        client = self._client_of.pop(request_id, None)
        if client is None:
            return False
        del self._lines[client][request_id]
        self._lines.move_to_end(client)
        if not self._lines[client]:
            del self._lines[client]
        return True


class _RetryTime(NamedTuple):
    client: bytes
    at: float
    """The request is let in from this time until:"""
    lapses_at: float
    length: int
    made_at: float
    num: int
    """Number of requests of the same prompt."""


class RetryTimes:
    """When clients that an entry node refused may come again, and which ones came. A key stands for a prompt."""

    def __init__(self) -> None:
        self.held = Held()
        """Requests that came in time and wait."""
        self._pace = Pace()
        self._made: dict[bytes, _RetryTime] = {}
        self._lapses: list[tuple[float, bytes]] = []
        """A heap: when each lapses, also of those that were kept, up to 2 x MAX_RETRY_TIMES in total."""
        self._num_made = [0] * _NUM_LENGTHS
        self._num_of = Counter[bytes]()
        self._kept = [1.0] * _NUM_LENGTHS
        """Share of the last ones that came, by length."""
        self._next_at = 0.0
        """When the next prompt without a retry time may be let in."""

    def __len__(self) -> int:
        return sum(self._num_made)

    def wait_s(self, key: bytes, now: float) -> float | None:
        """Seconds until the retry time of ``key``, 0.0: now; None: it has none. Mutates: forgets lapsed ones."""
        had_any = bool(self._made)
        while self._lapses and self._lapses[0][0] < now:
            lapses_at, lapsed = heappop(self._lapses)
            if lapsed in self._made and self._made[lapsed].lapses_at == lapses_at:
                self._end(lapsed, is_kept=False)
        if had_any and not self._made and not self.held:
            self._pace.nobody_waits()  # (and nobody has waited since)
        found = self._made.get(key)
        return None if found is None else max(found.at - now, 0.0)

    def make(self, key: bytes, client: bytes, guess_s: float, now: float) -> float:
        """``key`` of ``client`` is refused: the seconds after which it shall come again. Mutates.

        guess_s: seconds between two places, before any was observed.
        """
        if key in self._made:  # (it came, and found no room)
            self._end(key, is_kept=True)
        self._pace.waits(now)
        wait_s = (1 + _SPACING * self._num_before(client)) * self._pace.seconds(now, guess_s)
        wait_s = min(max(wait_s, LEAST_AGAIN_S), MAX_RETRY_S)
        if has_room(self._num_of[client], len(self), MAX_RETRY_TIMES):
            lapses_at = now + wait_s + max(_LAPSE_S, _LAPSE_SHARE * wait_s)
            self._made[key] = _RetryTime(client, now + wait_s, lapses_at, _length(wait_s), now, num=1)
            self._count(self._made[key], 1)
            heappush(self._lapses, (lapses_at, key))
            if len(self._lapses) > 2 * MAX_RETRY_TIMES:
                self._lapses = sorted((made.lapses_at, key) for key, made in self._made.items())
        return wait_s

    def another(self, key: bytes, now: float) -> None:
        """One more request of ``key`` was refused or given up. If that was in the moment in which its retry time was
        made, it may also come then. Mutates."""
        made = self._made.get(key)
        if made is None or now >= made.made_at + _SAME_S:
            return
        if has_room(self._num_of[made.client], len(self), MAX_RETRY_TIMES):
            self._made[key] = made._replace(num=made.num + 1)
            self._count(made, 1)

    def nobody_else(self) -> None:
        """No other request is in flight: since this began, nothing but retry times has waited. Mutates."""
        if not self._made:
            self._pace.nobody_waits()

    def has_room(self, client: bytes) -> bool:
        return has_room(self.held.num_of(client), len(self.held), MAX_HELD)

    def come(self, key: bytes, now: float) -> None:
        """A request of ``key`` came in time and is let in. Mutates."""
        made = self._made[key]
        if made.num == 1:
            self._end(key, is_kept=True)
        else:
            self._made[key] = made._replace(num=made.num - 1)
            self._count(made, -1)
        self._let_in(now)

    def may_pass(self, now: float) -> bool:
        """Whether a prompt without a retry time may be let in: places are left over. Mutates: it is let in."""
        if self._made and now < self._next_at:
            return False
        self._let_in(now)
        return True

    def placed(self, now: float) -> None:
        """A node began with a request that entered here. Mutates."""
        self._pace.freed(now, somebody_waits=bool(self.held) or bool(self._made))

    def check_invariants(self) -> None:
        num_made = sum(made.num for made in self._made.values())
        assert sum(self._num_made) == sum(self._num_of.values()) == num_made <= MAX_RETRY_TIMES
        assert all(num > 0 for num in self._num_of.values())
        assert len(self.held) <= MAX_HELD
        assert sum(self.held.num_of(client) for client in self.held.clients) == len(self.held) == len(list(self.held))

    def _num_before(self, client: bytes) -> float:
        """Number of requests that get a place before the next one of ``client``."""
        expected, least_kept = 0.0, 1.0
        for num_made, kept in zip(self._num_made, self._kept, strict=True):
            least_kept = min(least_kept, kept)  # (clients that miss a short time miss a long one too)
            expected += num_made * least_kept
        share = expected / max(len(self), 1)
        own = self._num_of.get(client, 0) * share + self.held.num_of(client)
        before = own
        for other in self._num_of.keys() | self.held.clients:
            if other != client:
                before += min(self._num_of.get(other, 0) * share + self.held.num_of(other), own + 1)
        return before

    def _let_in(self, now: float) -> None:
        place_s = self._pace.seconds(now, 0.0)
        self._next_at = min(max(self._next_at, now) + place_s, now + _MAX_AHEAD * place_s)

    def _end(self, key: bytes, is_kept: bool) -> None:
        made = self._made.pop(key)
        self._kept[made.length] += (is_kept - self._kept[made.length]) * _KEPT_WEIGHT
        self._count(made, -made.num)

    def _count(self, made: _RetryTime, num: int) -> None:
        self._num_made[made.length] += num
        self._num_of[made.client] += num
        if not self._num_of[made.client]:
            del self._num_of[made.client]


def _length(wait_s: float) -> int:
    """The length class of a wait: powers of two, from 4 s on; ``wait_s`` is above 0."""
    return min(max(math.ceil(math.log2(wait_s)) - 2, 0), _NUM_LENGTHS - 1)
