"""Measured rates, as moving averages. Pure: the caller measures."""


class RateMeter:
    """Tokens per second over about the last ``window_tokens`` tokens.

    A ratio of decayed sums, not a mean of ratios: a step with one slow row then weighs one row, not one step.
    """

    def __init__(self, window_tokens: float) -> None:
        self._window_tokens = window_tokens
        self._tokens = 0.0
        self._seconds = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        """Note that ``num_tokens`` took ``seconds``."""
        keep = 0.5 ** (num_tokens / self._window_tokens)
        self._tokens = self._tokens * keep + num_tokens
        self._seconds = self._seconds * keep + seconds

    @property
    def rate(self) -> float:
        """Tokens per second; 0 before anything was measured."""
        return self._tokens / self._seconds if self._seconds > 0 else 0.0


FIRST_CHUNK_TOKENS = 256
"""Prefill of a step before the rate is known."""
MIN_CHUNK_TOKENS = 64
"""Below about 64 rows a chunk costs nearly as much as one of 64."""


def prefill_budget(rate: float, decoding: bool, batch_tokens: int, can_abort: bool = True) -> int:
    """Prefill tokens of the next step, so that a step stays short on any machine.

    A step is what a decoding request waits for its next token, and a new one for its turn: aim at 0.25 s while
    something decodes, 1 s otherwise. At 290 tokens/s (two cores, 135M parameters) that is 72 and 290 tokens.
    Where a running step cannot be ended (``can_abort`` False: on a GPU) it is also what a cancel waits for: 0.25 s
    always.
    """
    if not rate:
        return min(FIRST_CHUNK_TOKENS, batch_tokens)
    return int(max(MIN_CHUNK_TOKENS, min(rate * (0.25 if decoding or not can_abort else 1.0), batch_tokens)))
