"""The bounds of a prompt, checked before the work, and the cut of long texts into pieces.

A text with more bytes than the context's tokens times the length of the longest token cannot fit: it is refused unread.
Any other text is tokenized piece by piece, until the pieces have more tokens than the context.

Pieces also bound the time. For each control token that llama.cpp finds, it searches the rest of the text for all of
them again, so 520 kB of control tokens take 5 s in one call, and 0.3 s in pieces. A text of up to PIECE_CHARS is one
piece. Longer texts are cut between words, where tokens end in nearly all vocabularies.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mycelia.proto.wire.errors import LocalError

PIECE_CHARS = 8_192
_LAST_CHARS = 1_024
"""The end of a piece in which the place to cut is searched."""
_PLACES = tuple(re.compile(pattern, re.DOTALL) for pattern in (r".*\w(?=[ ]\w)", r".*\S(?=\s)", r".+(?=<)"))
"""Places to cut, the best first: between words, before other white space, before a possible control token."""

Tokenize = Callable[[str, bool], list[int]]
"""(text, whether control tokens count) -> tokens."""


class TooLongError(LocalError):
    """The prompt does not fit the model's context."""


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


def pieces(text: str) -> Iterator[str]:
    """The pieces of ``text``. A cut depends only on the text around it and before it, so texts with the same beginning
    have the same cuts there."""
    start = 0
    while len(text) - start >= PIECE_CHARS + 2:
        last = text[start + PIECE_CHARS - _LAST_CHARS : start + PIECE_CHARS + 2]
        found = next((match for pattern in _PLACES if (match := pattern.match(last))), None)
        end = start + PIECE_CHARS - (_LAST_CHARS - found.end() if found else 0)
        yield text[start:end]
        start = end
    yield text[start:]
