"""Which of several comes next, fair by the service that each received: one level of ``fair_queue.py``, with the theory.

Invariants: a counter never falls but by what is given back; of shares in which nothing waits at most ``max_kept`` are
remembered, those that are ahead of one that waits before others.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Generic, Protocol, TypeVar

OWNER = b""
"""The key of this node's own. It comes before all others whose counters are near its own."""
LEVEL_SHARE = 0.5
"""At 1 a client that asks now and then of an engine that eight others keep busy waits 8.7 s instead of 5.9 s, as it
begins in their middle; at a half 6.4 s. At a quarter 6.0 s, and a client that is ahead may wait twice as long as at a
half."""

Key = bytes | str


class Line(Protocol):
    """What waits in one share, in order."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


LineT = TypeVar("LineT", bound=Line)


@dataclass
class _Share(Generic[LineT]):
    line: LineT
    counter: float
    """Service received; comparable between shares of one order."""
    turn: int = 0
    """Orders shares by the moment since which their first one is the next of theirs."""


class FairOrder(Generic[LineT]):
    """Shares with counters, and the order in which what waits in them should start."""

    def __init__(self, slack: float, max_kept: int, new_line: Callable[[], LineT]) -> None:
        self._slack = slack
        self._max_kept = max_kept
        self._new_line = new_line
        self._shares: dict[Key, _Share[LineT]] = {}
        self._waiting: dict[Key, _Share[LineT]] = {}
        """Of those, the ones in which something waits."""
        self._level = 0.0
        """Not yet put between the counters of those that wait."""
        self._last: Key | None = None
        """The share of which something started last."""
        self._turns = itertools.count()

    def __len__(self) -> int:
        return sum(len(share.line) for share in self._waiting.values())

    def __iter__(self) -> Iterator[Any]:
        """What waits, in the order in which it should start if no counter changed; of one share in its line's order."""
        shares = [share for key, share in self._waiting.items() if key != OWNER]
        own = self._waiting.get(OWNER)
        most = min((share.counter for share in self._waiting.values()), default=0.0) + self._slack
        if own is not None and own.counter <= most:
            yield from list(own.line)
        elif own is not None:
            shares.append(own)
        near = sorted((share for share in shares if share.counter <= most), key=lambda share: share.turn)
        for items in zip_longest(*[list(share.line) for share in near]):
            yield from [item for item in items if item is not None]
        far = [share for share in shares if share.counter > most]
        for share in sorted(far, key=lambda share: (share.counter, share.turn)):
            yield from list(share.line)

    @property
    def num_waiting(self) -> int:
        """Shares in which something waits."""
        return len(self._waiting)

    def line(self, key: Key) -> LineT | None:
        """What waits in a share; None if nothing does."""
        share = self._waiting.get(key)
        return share.line if share else None

    def known(self, key: Key) -> LineT:
        """The line of a share, in which the caller changes no more than counters. Mutates: it is known then."""
        return self._known(key).line

    def entered(self, key: Key) -> LineT:
        """The line of a share, in which the caller puts something now. Mutates."""
        if key in self._waiting:
            return self._waiting[key].line
        floor = self._floor()
        share = self._known(key)
        share.counter = max(share.counter, floor)
        share.turn = next(self._turns)
        self._waiting[key] = share
        return share.line

    def lifted(self, key: Key) -> LineT:
        """The line of a share that begins to wait elsewhere: its counter becomes what it would be if the share waited
        here. Mutates."""
        floor = self._floor()
        share = self._known(key)
        share.counter = max(share.counter, floor)
        return share.line

    def returned(self, key: Key, is_next: bool) -> LineT:
        """As ``entered``, of what had started: the counter stays. is_next: its turn is before all others. Mutates."""
        share = self._known(key)
        if is_next:
            share.turn = -1
        elif key not in self._waiting:
            share.turn = next(self._turns)
        self._waiting[key] = share
        return share.line

    def left(self, key: Key, was_first: bool) -> None:
        """The caller took something out of a share's line. was_first: it was the next of that share. Mutates."""
        share = self._waiting[key]
        if was_first:
            share.turn = next(self._turns)
        if not len(share.line):
            del self._waiting[key]

    def starts(self, key: Key) -> None:
        """Call before what starts leaves its line. Mutates."""
        self._level = self._floor()
        self._last = key

    def charge(self, key: Key, service: float) -> None:
        """A share received service; below 0: gives it back. Mutates."""
        self._known(key).counter += service
        num_others = len(self._waiting) - (key in self._waiting)
        self._level += LEVEL_SHARE * max(service, 0.0) / (num_others + 1)

    def counter(self, key: Key) -> float:
        """The service that a share counts as having received."""
        share = self._shares.get(key)
        return share.counter if share else self._floor()

    def check_invariants(self) -> None:
        """Raises AssertionError when the books do not fit each other."""
        assert self._waiting == {key: share for key, share in self._shares.items() if len(share.line)}
        assert len(self._shares) <= self._max_kept + len(self._waiting) + 1

    def _known(self, key: Key) -> _Share[LineT]:
        if key not in self._shares:
            floor = self._floor()
            if len(self._shares) >= self._max_kept:
                self._forget()
            self._shares[key] = _Share(self._new_line(), floor)
        return self._shares[key]

    def _floor(self) -> float:
        """The counter that a share in which something begins to wait has at least: the level, if any waits."""
        if self._waiting:
            counters = [share.counter for share in self._waiting.values()]
            return min(max(self._level, min(counters)), max(counters))
        last = self._shares.get(self._last) if self._last is not None else None
        return last.counter if last else 0.0

    def _forget(self) -> None:
        """Of shares in which nothing waits those that gain nothing by it, else the one that gains least."""
        least = min((share.counter for share in self._waiting.values()), default=self._floor())
        idle = {key: share.counter for key, share in self._shares.items() if not len(share.line) and key != self._last}
        gone = [key for key, counter in idle.items() if counter <= least]
        for key in gone or sorted(idle, key=lambda key: idle[key])[:1]:
            del self._shares[key]
