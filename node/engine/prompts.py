"""The bounds of a prompt, checked before the work, and the cut of long texts into pieces.

A text with more bytes than the context's tokens times the length of the longest token cannot fit: it is refused unread.
Any other text is tokenized piece by piece, until the pieces have more tokens than the context.

Pieces also bound the time. For each control token that llama.cpp finds, it goes through all that it found before, so
520 kB of control tokens take 5 s in one call, and 0.3 s in pieces. A text of up to PIECE_CHARS is one piece. A longer
one is cut before a control token, where the pieces have the same tokens as the whole. A content of that length without
control tokens is cut between a letter and a blank, where tokens end in nearly all vocabularies: all that split texts
into words by a pattern first, and all of SentencePiece without tokens of several words. A text with neither in 4,096
characters is cut elsewhere, and the tokens at this place may differ from those of the whole.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mycelia.node.errors import FailedError

PIECE_CHARS = 8_192
_LAST_CHARS = 4_096
"""The end of a piece in which the place to cut is searched."""
_PLACES = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (r".*[^\W\d_](?=\s)", r".*[^\W\d_](?=[^\w\s])", r".*\S(?=\s)", r".+(?=<)")
)
"""Places to cut, the best first: after words, before other white space, before what may be a user-defined token."""


class TooLongError(FailedError):
    """The prompt does not fit the model's context."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "too_long")


@dataclass(frozen=True)
class PromptLimit:
    """The bounds that a model's context sets for a prompt."""

    context_tokens: int
    token_bytes: int
    """Length of the longest token."""

    def check_size(self, num_bytes: int) -> None:
        """Raise TooLongError for a text that cannot fit. num_bytes: its length or a lower bound."""
        if num_bytes > self.context_tokens * self.token_bytes:
            requested = f"more than {num_bytes // self.token_bytes} tokens ({num_bytes} bytes in the prompt)"
            raise TooLongError(over_context(self.context_tokens, requested))

    def check_tokens(self, num_tokens: int) -> None:
        """Raise TooLongError when a prompt that has, or begins with, so many tokens does not fit."""
        if num_tokens > self.context_tokens:
            requested = f"more than {self.context_tokens} tokens (all in the prompt with its template)"
            raise TooLongError(over_context(self.context_tokens, requested))


def over_context(context_tokens: int, requested: str) -> str:
    """The message for a prompt that does not fit, in the words of OpenAI (first) and Anthropic (last), by which clients
    know the case."""
    return (
        f"This model's maximum context length is {context_tokens} tokens. However, you requested {requested}. Please"
        " reduce the length of the messages, or use a model with a longer context: the prompt is too long."
    )


def prompt_over_context(context_tokens: int, num_tokens: int) -> str:
    """The same for a prompt of ``num_tokens``, which leaves no room for an answer."""
    requested = f"{num_tokens + 1} tokens ({num_tokens} in the prompt with its template, 1 in the completion)"
    return over_context(context_tokens, requested)


def pieces(text: str, controls: Sequence[tuple[int, int]] = ()) -> Iterator[tuple[str, bool]]:
    """The pieces of ``text``: (piece, whether it continues the text of the piece before). controls: where its control
    tokens are, in order. A cut depends only on the text around it and before it, so texts with the same beginning have
    the same cuts there."""
    start, continues = 0, False
    starts = [first for first, _ in controls]
    while len(text) - start >= PIECE_CHARS + 2:
        limit = start + PIECE_CHARS
        place = bisect_right(starts, limit) - 1
        if place >= 0 and starts[place] > limit - _LAST_CHARS:
            end, continued = starts[place], False
        else:
            last = text[limit - _LAST_CHARS : limit + 2]
            found = next((match for pattern in _PLACES if (match := pattern.match(last))), None)
            end, continued = limit - (_LAST_CHARS - found.end() if found else 0), True
        yield text[start:end], continues
        start, continues = end, continued
    yield text[start:], continues
