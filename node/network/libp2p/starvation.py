"""Whether this process could run when it wanted to. A starved process hears late, and would blame its peers for it."""

from collections import deque

STARVED_S = 1.0
"""A silence proves nothing if this process could not run for that long meanwhile."""


class Starvation:
    """Measures for how long this process could not run, for want of a processor or because the machine slept."""

    MIN_LATE_S = 0.05

    def __init__(self) -> None:
        self._late: deque[tuple[float, float]] = deque(maxlen=256)
        """(the time of a delay, its length), the latest delays."""

    def note(self, now: float, late_s: float) -> None:
        """A task ran ``late_s`` after its time. Mutates."""
        if late_s > self.MIN_LATE_S:
            self._late.append((now, late_s))

    def late_s(self, since: float) -> float:
        """Seconds for which the process could not run, since the time ``since``."""
        return sum(late_s for at, late_s in self._late if at >= since)
