"""Token buckets: how much of something one peer may do."""


class TokenBucket:
    """``rate`` tokens a second flow in, at most ``burst`` lie there. Time comes from the caller, in seconds."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._updated = now

    def take(self, now: float, tokens: float = 1.0) -> bool:
        """Whether there were enough; takes them if so."""
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True
