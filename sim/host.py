"""One machine under several engines: the more of them compute at the same moment, the longer each takes.

An engine computes while it has any work here. All computing engines have the same speed, measured for every number of
them: on two cores, two engines of one thread run at full speed each, and four at half speed. The caller gives the time.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

Call = Callable[[float, Callable[[], None]], None]
"""(when, what): calls ``what`` at that time."""


@dataclass(eq=False)
class Work:
    """A piece of unfinished work."""

    owner: Hashable
    """The engine."""
    left_s: float
    """Seconds left at full speed, as of the last change."""
    then: Callable[[float], None]


class Host:
    """The machine, see above. ``now`` never goes back."""

    def __init__(self, speeds: Sequence[float], at: Call) -> None:
        """speeds: of each engine, relative to one alone, while 1, 2, ... of them compute. More engines share what the
        last number does together. Raises ValueError for invalid speeds."""
        if not speeds or not all(speed > 0 for speed in speeds):
            raise ValueError("speeds must be more than 0, one for each number of engines")
        self._speeds = tuple(speeds)
        self._at = at
        self._works: list[Work] = []
        self._changed_s = 0.0
        self._num_changes = 0

    def speed(self) -> float:
        """Speed of each engine that computes now, or of the first one that begins."""
        count = max(len({work.owner for work in self._works}), 1)
        last = len(self._speeds)
        return self._speeds[count - 1] if count <= last else self._speeds[-1] * last / count

    def begin(self, owner: Hashable, seconds: float, then: Callable[[float], None], now: float) -> Work:
        """Work that one engine alone would do in ``seconds``. When done, ``then`` is called with the time."""
        self._advance(now)
        work = Work(owner, seconds, then)
        self._works.append(work)
        self._plan()
        return work

    def drop(self, work: Work, now: float) -> None:
        """The work is not wanted any more. Does nothing if it is done."""
        if work in self._works:
            self._advance(now)
            self._works.remove(work)
            self._plan()

    def left_s(self, work: Work, now: float) -> float:
        """Seconds that the work would take alone from now on."""
        return max(0.0, work.left_s - (now - self._changed_s) * self.speed()) if work in self._works else 0.0

    def _advance(self, now: float) -> None:
        done_s = (now - self._changed_s) * self.speed()
        for work in self._works:
            work.left_s = max(0.0, work.left_s - done_s)
        self._changed_s = now

    def _plan(self) -> None:
        self._num_changes += 1
        if not self._works:
            return
        number = self._num_changes
        first = min(self._works, key=lambda work: work.left_s)
        due = self._changed_s + first.left_s / self.speed()

        def finish() -> None:
            if number == self._num_changes:  # (otherwise work began or was dropped meanwhile)
                self._advance(due)
                self._works.remove(first)
                self._plan()
                first.then(due)

        self._at(due, finish)
