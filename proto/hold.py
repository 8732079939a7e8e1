"""How long a request holds its slot: what vitals tell of it, measured alike by real and simulated engines."""

_WEIGHT = 0.1
"""Of the newest request: about the last ten count, which follows a change of what is asked within a minute or so."""


class HoldMeter:
    """Moving mean of the seconds from the start of a prefill to the last token."""

    def __init__(self) -> None:
        self._mean_s = 0.0
        self._has_any = False

    def add(self, seconds: float) -> None:
        """A request is over after so long. Mutates."""
        self._mean_s += (seconds - self._mean_s) * (_WEIGHT if self._has_any else 1.0)
        self._has_any = True

    @property
    def mean_ms(self) -> int:
        """0 before anything was measured."""
        return round(1000 * self._mean_s)
