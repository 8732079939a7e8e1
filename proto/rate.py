"""A measured rate: a sum that forgets exponentially."""

import math


class DecayingRate:
    """Amounts a second over about the last ``window_s`` seconds."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._rate = 0.0
        self._updated = 0.0

    def add(self, amount: float, now: float) -> None:
        self._rate = self.at(now) + amount / self._window_s
        self._updated = now

    def at(self, now: float) -> float:
        """The rate now; does not mutate."""
        return self._rate * math.exp((self._updated - now) / self._window_s)
