"""The thought before what a grammar describes: the model thinks freely, and the grammar begins after the thought.

A thought ends with a mark, such as ``</think>``. The prompt may have begun it; otherwise the answer may begin with the
opening mark, or with what the grammar describes: the model chooses.
"""

from collections.abc import Callable, Sequence
from enum import Enum

import numpy as np
from numpy.typing import NDArray


class _State(Enum):
    OPENING = "the answer may begin with the opening mark"
    FREE = "in the thought"
    OVER = "the grammar has begun"


class ThoughtFirst:
    """Follows one answer up to the end of its thought."""

    def __init__(self, opening: Sequence[int], closing: bytes, spelling: Callable[[int], bytes]) -> None:
        """opening: the tokens of the opening mark; none: the answer begins in the thought. closing: see
        ``Sampling.thought_closing``. spelling: the bytes of a token, control tokens as they are spelled."""
        self._opening = opening
        self._num_opened = 0
        self._closing = closing.split(b"{...}")
        """The parts of the closing mark that did not come yet."""
        self._spelling = spelling
        self._tail = b""
        self._state = _State.OPENING if opening else _State.FREE

    @property
    def is_over(self) -> bool:
        return self._state is _State.OVER

    @property
    def needs_grammar(self) -> bool:
        """Whether the next token may be one that the grammar allows."""
        return self.is_over or (self._state is _State.OPENING and not self._num_opened)

    def accept(self, token: int) -> bool:
        """Whether ``token`` belongs to the thought or its marks; otherwise the grammar has begun with it. Mutates."""
        if self._state is _State.OPENING:
            if token != self._opening[self._num_opened]:
                self._state = _State.OVER
                return False
            self._num_opened += 1
            if self._num_opened == len(self._opening):
                self._state = _State.FREE
            return True
        if self._state is _State.FREE:
            self._tail += self._spelling(token)
            while self._closing and self._closing[0] in self._tail:
                self._tail = self._tail.partition(self._closing.pop(0))[2]
            if not self._closing:
                self._state = _State.OVER
            else:
                self._tail = self._tail[-len(self._closing[0]) :]
            return True
        return False

    def widen(self, mask: NDArray[np.bool_], ending: NDArray[np.intp]) -> None:
        """Allow in ``mask``, as of ``Grammar.allowed``, what a thought may have here. ending: the tokens that end an
        answer, which a thought does not. Mutates ``mask``."""
        if self._state is _State.FREE:
            mask[:-1] = True
            mask[ending] = mask[-1] = False
        elif self._state is _State.OPENING:
            if self._num_opened:
                mask[:] = False
            mask[self._opening[self._num_opened]] = True
