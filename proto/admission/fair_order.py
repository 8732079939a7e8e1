"""Which share comes next, fair by the service each received: one level of ``fair_queue.py``, with the theory.

Invariants: a counter falls only by service that is given back. At most ``max_kept`` shares in which nothing waits are
remembered, preferably those that are ahead of a waiting one.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Generic, Protocol, TypeVar

OWNER, MEMBERS = b"", "members"
"""The keys of this node's own requests and of those of its private swarm. The first that waits of these comes before
all others whose counters are near its own, then the second."""
LEVEL_SHARE = 0.5
"""Share of the service by which the level rises. A client that sometimes asks an engine kept busy by eight others waits
8.7 s at 1 (instead of 5.9 s), 6.4 s at 1/2, 6.0 s at 1/4; there a client that is ahead may wait twice as long."""

Key = bytes | str


class Line(Protocol):
    """The waiting items of one share, in order."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


LineT = TypeVar("LineT", bound=Line)


@dataclass
class _Share(Generic[LineT]):
    line: LineT
    counter: float
    """Service received; comparable between shares of one order."""
    turn: int = 0
    """Orders shares by the moment since which their first item has been their next one."""


class FairOrder(Generic[LineT]):
    """Shares with counters, and the order in which their waiting items should start."""

    def __init__(self, slack: float, max_kept: int, new_line: Callable[[], LineT]) -> None:
        self._slack = slack
        self._max_kept = max_kept
        self._new_line = new_line
        self._shares: dict[Key, _Share[LineT]] = {}
        self._waiting: dict[Key, _Share[LineT]] = {}
        """The shares in which something waits."""
        self._level = 0.0
        """The level before it is clamped to the counters of the waiting shares."""
        self._last: Key | None = None
        """The share that started something last."""
        self._turns = itertools.count()

    def __len__(self) -> int:
        return sum(len(share.line) for share in self._waiting.values())

    def __iter__(self) -> Iterator[Any]:
        """The waiting items in the order in which they should start if no counter changed."""
        most = min((share.counter for share in self._waiting.values()), default=0.0) + self._slack
        for key in (OWNER, MEMBERS):
            first = self._waiting.get(key)
            if first is not None and first.counter <= most:
                yield from list(first.line)
        others = [share for key, share in self._waiting.items() if key not in (OWNER, MEMBERS)]
        near = sorted((share for share in others if share.counter <= most), key=lambda share: share.turn)
        for items in zip_longest(*[list(share.line) for share in near]):
            yield from [item for item in items if item is not None]
        far = [share for share in self._waiting.values() if share.counter > most]
        for share in sorted(far, key=lambda share: (share.counter, share.turn)):
            yield from list(share.line)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def lines(self) -> Iterator[LineT]:
        """The lines of the shares in which something waits, in any order."""
        return (share.line for share in self._waiting.values())

    def line(self, key: Key) -> LineT | None:
        """The line of a share; None if nothing waits in it."""
        share = self._waiting.get(key)
        return share.line if share else None

    def known(self, key: Key) -> LineT:
        """The line of a share, in which the caller may only change counters. Mutates: adds the share."""
        return self._known(key).line

    def entered(self, key: Key) -> LineT:
        """The line of a share, into which the caller puts an item now. Mutates."""
        if key in self._waiting:
            return self._waiting[key].line
        floor = self._floor()
        share = self._known(key)
        share.counter = max(share.counter, floor)
        share.turn = next(self._turns)
        self._waiting[key] = share
        return share.line

    def lifted(self, key: Key) -> LineT:
        """The line of a share that begins to wait elsewhere: its counter rises as if it waited here. Mutates."""
        floor = self._floor()
        share = self._known(key)
        share.counter = max(share.counter, floor)
        return share.line

    def returned(self, key: Key, is_next: bool) -> LineT:
        """Like ``entered`` for an item that had started: the counter stays. is_next: it comes first of all. Mutates."""
        share = self._known(key)
        if is_next:
            share.turn = -1
        elif key not in self._waiting:
            share.turn = next(self._turns)
        self._waiting[key] = share
        return share.line

    def left(self, key: Key, was_first: bool) -> None:
        """The caller took an item out of a share's line. was_first: it was the share's next one. Mutates."""
        share = self._waiting[key]
        if was_first:
            share.turn = next(self._turns)
        if not len(share.line):
            del self._waiting[key]

    def starts(self, key: Key) -> None:
        """Call before the starting item leaves its line. Mutates."""
        self._level = self._floor()
        self._last = key

    def passed(self, key: Key, service: float) -> LineT:
        """The line of a share whose item starts at once, and receives ``service``, while nothing waits in this order:
        ``entered``, ``starts``, ``left`` and ``charge`` in one. Mutates."""
        floor = self._floor()
        share = self._known(key)
        counter = max(share.counter, floor)
        self._last, self._level = key, counter + LEVEL_SHARE * max(service, 0.0)
        share.counter = counter + service
        return share.line

    def charge(self, key: Key, service: float) -> None:
        """A share received service; below 0: gives it back. Mutates."""
        self._known(key).counter += service
        num_others = len(self._waiting) - (key in self._waiting)
        self._level += LEVEL_SHARE * max(service, 0.0) / (num_others + 1)

    def counter(self, key: Key) -> float:
        share = self._shares.get(key)
        return share.counter if share else self._floor()

    def check_invariants(self) -> None:
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
        """The least counter of a share in which something begins to wait: the level, if any share waits."""
        if self._waiting:
            counters = [share.counter for share in self._waiting.values()]
            return min(max(self._level, min(counters)), max(counters))
        last = self._shares.get(self._last) if self._last is not None else None
        return last.counter if last else 0.0

    def _forget(self) -> None:
        """Forget the idle shares that gain nothing by it, or else the one that gains least."""
        least = min((share.counter for share in self._waiting.values()), default=self._floor())
        idle = {key: share.counter for key, share in self._shares.items() if not len(share.line) and key != self._last}
        gone = [key for key, counter in idle.items() if counter <= least]
        for key in gone or sorted(idle, key=lambda key: idle[key])[:1]:
            del self._shares[key]
