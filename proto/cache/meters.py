"""Meters for the vitals of an engine, the same for real and simulated engines. Pure: the caller has the clock."""

_HOLD_WEIGHT = 0.1
"""Weight of the newest request: about the last ten count, which follows a changed workload within about a minute."""


class HoldMeter:
    """Moving mean of the seconds from the start of a prefill to the last token."""

    def __init__(self) -> None:
        self._mean_s = 0.0
        self._has_any = False

    def add(self, seconds: float) -> None:
        self._mean_s += (seconds - self._mean_s) * (_HOLD_WEIGHT if self._has_any else 1.0)
        self._has_any = True

    @property
    def mean_ms(self) -> int:
        """The mean in ms; 0 before anything was measured."""
        return round(1000 * self._mean_s)


class TokenRateMeter:
    """Tokens per second over about the last ``window_tokens`` tokens.

    A ratio of decayed sums, not a mean of ratios: a step with one slow row then weighs one row, not one step.
    """

    def __init__(self, window_tokens: float) -> None:
        self._window_tokens = window_tokens
        self._tokens = 0.0
        self._seconds = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        keep = 0.5 ** (num_tokens / self._window_tokens)
        self._tokens = self._tokens * keep + num_tokens
        self._seconds = self._seconds * keep + seconds

    @property
    def rate(self) -> float:
        """Tokens per second; 0 before anything was measured."""
        return self._tokens / self._seconds if self._seconds > 0 else 0.0
