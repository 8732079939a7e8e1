"""The time that the protocol runs on: Unix seconds that never go back."""

import time

import trio


class SteadyClock:
    """Starts at the wall clock and advances with trio's, so that a corrected wall clock does not move deadlines."""

    def __init__(self) -> None:
        self._offset_s = time.time() - trio.current_time()

    def now(self) -> float:
        return trio.current_time() + self._offset_s

    def to_trio(self, at: float) -> float:
        """The same instant on trio's clock, for deadlines."""
        return at - self._offset_s
