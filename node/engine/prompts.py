"""How long a prompt may be, found out before the work is done, and tokenized in pieces.

No token is longer than the longest of the vocabulary, so a text of more bytes than the context has tokens, times that,
cannot fit: it is refused unread. What may fit is tokenized piece by piece, and no further once the pieces have more
tokens than the context.

A piece is also what bounds the time: llama.cpp looks for every spelling of a control token in all that is left of a
text, for each one that it found, so that 520 kB of them take 5 s in one call, and 0.3 s in pieces. Texts of up to
PIECE_CHARS are one piece; longer ones are cut where words meet, where the tokens of nearly all vocabularies do too.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mycelia.proto.wire.errors import LocalError

PIECE_CHARS = 8_192
_LAST_CHARS = 1_024
"""Of a piece: where the place to cut is looked for."""
_PLACES = tuple(re.compile(pattern, re.DOTALL) for pattern in (r".*\w(?=[ ]\w)", r".*\S(?=\s)", r".+(?=<)"))
"""Where to cut, the best first: between words, before other white space, before what may be a control token."""

Tokenize = Callable[[str, bool], list[int]]
"""(text, whether control tokens count) -> tokens."""


class TooLongError(LocalError):
    """The prompt does not fit the model's context."""


@dataclass(frozen=True)
class PromptLimit:
    """What fits the context of a model."""

    context_tokens: int
    token_bytes: int
    """The longest token's."""

    def check_size(self, num_bytes: int) -> None:
        """Raise TooLongError for a text that cannot fit, whatever it says. num_bytes: of it, or fewer."""
        if num_bytes > self.context_tokens * self.token_bytes:
            raise TooLongError(
                f"the prompt has {num_bytes} bytes, of which no {self.context_tokens} tokens can be made: the model's"
                " context; shorten the prompt or serve a model with a longer context"
            )

    def check_tokens(self, num_tokens: int) -> None:
        """Raise TooLongError when that many, of a prompt or its beginning, do not fit."""
        if num_tokens > self.context_tokens:
            raise TooLongError(
                f"the prompt has more than {self.context_tokens} tokens with its template, the model's context;"
                " shorten the prompt or serve a model with a longer context"
            )


def pieces(text: str) -> Iterator[str]:
    """``text``, cut. Where the cuts are depends on what is before them alone: a longer text that begins with this one
    is cut alike."""
    start = 0
    while len(text) - start >= PIECE_CHARS + 2:
        last = text[start + PIECE_CHARS - _LAST_CHARS : start + PIECE_CHARS + 2]
        found = next((match for pattern in _PLACES if (match := pattern.match(last))), None)
        end = start + PIECE_CHARS - (_LAST_CHARS - found.end() if found else 0)
        yield text[start:end]
        start = end
    yield text[start:]
