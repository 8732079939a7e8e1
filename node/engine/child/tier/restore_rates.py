"""How fast cells are restored, and whether that is faster than computing them."""

from collections.abc import Sequence

from mycelia.proto.cache.meters import TokenRateMeter
from mycelia.proto.cache.tier import Piece

RATE_WINDOW_TOKENS = 8192
TRY_AGAIN_EVERY = 16
"""Number of restores judged too slow after which the rates are measured again: the disk may be fast again."""


class RestoreRates:
    """Tokens restored per second from memory and from disk, hashing included."""

    def __init__(self) -> None:
        self._num_slow = 0
        self._reset()

    def _reset(self) -> None:
        self._ram, self._disk = TokenRateMeter(RATE_WINDOW_TOKENS), TokenRateMeter(RATE_WINDOW_TOKENS)

    def add(self, num_tokens: int, seconds: float, *, from_disk: bool) -> None:
        (self._disk if from_disk else self._ram).add(num_tokens, seconds)

    def pays(self, pieces: Sequence[Piece], prefill_rate: float) -> bool:
        """Whether to restore ``pieces``, at least one, instead of computing them at ``prefill_rate`` tokens/s (0:
        unknown). Mutates: some pieces that seem too slow are restored to measure again."""
        seconds = 0.0
        for piece in pieces:
            rate = (self._disk if piece.edge.blob is None else self._ram).rate
            seconds += (piece.end - piece.start) / rate if rate else 0.0
        if not prefill_rate or seconds < (pieces[-1].end - pieces[0].start) / prefill_rate:
            return True
        self._num_slow += 1
        if self._num_slow % TRY_AGAIN_EVERY:
            return False
        self._reset()
        return True
