"""The text of an answer with the control tokens of the model's format spelled, for clients that read the format.

Answers travel between nodes without control tokens: their text is that of the tokens (``answers/spelling.py``). But in
some formats only control tokens say where a thought ends or a call begins. The entry node knows the tokens, and so
spells those that belong to the format, for a client that asks for it (``Ask.reads_format``).
"""

from collections.abc import Mapping, Sequence

import msgspec

from mycelia.node.formats.families import format_named
from mycelia.proto.answers.spelling import Vocabulary
from mycelia.proto.wire.messages import Logprob, TokenLogprobs

_PROMPT_END_TOKENS = 32
"""Tokens at a prompt's end in which the mark is looked for that begins the answer."""


class SpelledText:
    def __init__(self, format_name: str, vocabulary: Vocabulary, spellings: Mapping[int, str]) -> None:
        """spellings: the control tokens of the format."""
        self.format_name = format_name
        self._vocabulary = vocabulary
        self._spellings = {token: text.encode() for token, text in spellings.items()}

    def opened_by(self, prompt: Sequence[int]) -> str:
        """See ``Route.opened``."""
        end = b"".join(self._piece(token) for token in prompt[-_PROMPT_END_TOKENS:])
        return format_named(self.format_name).opened_by(end.decode("utf-8", "replace"))

    def spelled(self, text: bytes, tokens: Sequence[int]) -> bytes:
        """``text`` with the control tokens among its ``tokens``. Text withheld by an earlier attempt may come before
        that of the tokens, and at the end of an answer their text may be cut."""
        if self._spellings.keys().isdisjoint(tokens):
            return text
        said = self._vocabulary.text_of(tokens)
        if text.endswith(said):
            return text[: len(text) - len(said)] + b"".join(map(self._piece, tokens))
        parts, left = list[bytes](), len(text)
        for token in tokens:
            piece = self._vocabulary.piece(token)
            if len(piece) > left:
                break
            parts.append(self._spellings.get(token, piece))
            left -= len(piece)
        return b"".join(parts) + text[len(text) - left :]

    def logprobs(self, entries: tuple[TokenLogprobs, ...]) -> tuple[TokenLogprobs, ...]:
        """The same with the texts of these tokens."""
        return tuple(
            msgspec.structs.replace(entry, chosen=self._logprob(entry.chosen), top=tuple(map(self._logprob, entry.top)))
            for entry in entries
        )

    def _logprob(self, entry: Logprob) -> Logprob:
        text = self._spellings.get(entry.token)
        return msgspec.structs.replace(entry, text=text) if text else entry

    def _piece(self, token: int) -> bytes:
        return self._spellings.get(token) or self._vocabulary.piece(token)
