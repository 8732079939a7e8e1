"""Whether the text of an answer is the text of its tokens.

A serving node sends tokens and their text. The namespace names the model file, so the entry node has the same
vocabulary and knows the text byte for byte: a node that sends another text lies.

Only at the end of an answer may tokens lack (part of) their text (``Tokens``). The *withheld* text is then a stop
string and the rest of the last token's text, or the beginning of a character that was never finished; before a stop
string, both. So withheld text is bounded at every moment, and can be checked once the answer ends.
"""

from array import array
from collections.abc import Sequence

from mycelia.proto.wire.blocks import pack_tokens, token_array
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import MAX_TEXT_BYTES_PER_TOKEN, TokenLogprobs

_MOST_UNFINISHED = 3
"""Bytes of a UTF-8 character that is not whole."""


class Vocabulary:
    """The bytes of every token of a model; empty for control tokens. In two arrays: 250,000 tokens take 3 MB."""

    def __init__(self, ends: bytes, text: bytes) -> None:
        """Takes what ``packed`` returns. Raises RemoteError for anything else."""
        self._starts = array("I", [0])
        self._starts.extend(token_array(ends))
        self._text = text

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> "Vocabulary":
        """pieces: the text of each token, in the order of their ids."""
        ends, end = array("I"), 0
        for piece in pieces:
            end += len(piece)
            ends.append(end)
        return cls(pack_tokens(ends), b"".join(pieces))

    def packed(self) -> tuple[bytes, bytes]:
        """(where each token's text ends, 32 bits each; the text of all tokens)."""
        return pack_tokens(self._starts[1:]), self._text

    def __len__(self) -> int:
        return len(self._starts) - 1

    def piece(self, token: int) -> bytes:
        return self._text[self._starts[token] : self._starts[token + 1]]

    def text_of(self, tokens: Sequence[int]) -> bytes:
        text, starts = self._text, self._starts
        return b"".join([text[starts[token] : starts[token + 1]] for token in tokens])


class Spelling:
    """Follows the text of one answer over all attempts. Errors are the serving node's."""

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str], generated: Sequence[int] = ()) -> None:
        """generated: earlier tokens of the answer. Raises RemoteError for tokens outside the vocabulary."""
        self._vocabulary = vocabulary
        self._stops = [stop.encode() for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._tail = b""
        """The last bytes of text, which a stop string may continue."""
        self._withheld = b""
        """Text withheld by the running attempt."""
        self._owed = b""
        """Text withheld by broken attempts: part of the answer if it continues, otherwise its withheld end."""
        self._remember(self._said(generated))

    def begin_attempt(self) -> None:
        """A node continues after all tokens so far. Mutates."""
        self._owed, self._withheld = self._owed + self._withheld, b""

    def add(
        self, tokens: Sequence[int], text: bytes, logprobs: Sequence[TokenLogprobs] = (), is_own: bool = False
    ) -> bytes:
        """The next tokens of the running attempt, at least one, and the text that came with them. Returns the text to
        deliver. Raises RemoteError, and changes nothing, if the text is not theirs. is_own: not checked, because this
        node's own engine made it. Mutates."""
        said = self._said(tokens)
        if not is_own:
            self.check_logprobs(logprobs)
            self._withheld = self._checked(tokens, text, said)
        self._remember(said)
        if text and self._owed:
            text, self._owed = self._owed + text, b""
        return text

    def end(self, reason: str) -> None:
        """The last frame of the running attempt has this ``reason``. Raises RemoteError for wrongly withheld text."""
        withheld = self._withheld
        if not withheld or _is_unfinished(withheld):
            return
        starts = [num for num in range(_MOST_UNFINISHED + 1) if not num or _is_unfinished(withheld[:num])]
        if reason == "stop" and any(withheld.startswith(stop, start) for start in starts for stop in self._stops):
            return
        raise RemoteError("tokens without their text at the end")

    def _checked(self, tokens: Sequence[int], text: bytes, said: bytes) -> bytes:
        """The text withheld after these tokens. Raises RemoteError if ``text`` is not theirs."""
        if self._withheld and text:
            raise RemoteError("text after its end")
        if not said.startswith(text):
            raise RemoteError("text that its tokens do not say")
        if text and any(stop in self._tail + text for stop in self._stops):
            raise RemoteError("text that goes on after a stop string")
        withheld = self._withheld + said[len(text) :]
        before_last = len(withheld) - len(self._vocabulary.piece(tokens[-1]))
        if before_last >= max(self._longest, 1) + _MOST_UNFINISHED or (
            not self._longest and withheld and not _is_unfinished(withheld)
        ):
            raise RemoteError("tokens without their text")
        return withheld

    def _said(self, tokens: Sequence[int]) -> bytes:
        if tokens and max(tokens) >= len(self._vocabulary):
            raise RemoteError("a token that is not in the vocabulary")
        return self._vocabulary.text_of(tokens)

    def _remember(self, said: bytes) -> None:
        if self._longest > 1:
            self._tail = (self._tail + said)[1 - self._longest :]

    def check_logprobs(self, logprobs: Sequence[TokenLogprobs]) -> None:
        """Raises RemoteError if a text is not its token's."""
        for entry in logprobs:
            for one in (entry.chosen, *entry.top):
                if one.token >= len(self._vocabulary):
                    raise RemoteError("a token that is not in the vocabulary")
                if one.text != self._vocabulary.piece(one.token)[:MAX_TEXT_BYTES_PER_TOKEN]:
                    raise RemoteError("text that its token does not say")


def _is_unfinished(data: bytes) -> bool:
    """Whether ``data`` is the incomplete beginning of one UTF-8 character."""
    return 0 < len(data) < character_length(data[0]) and all(byte & 0b1100_0000 == 0b1000_0000 for byte in data[1:])


def character_length(first: int) -> int:
    """Bytes of the UTF-8 character that begins with ``first``; 1 if none does."""
    if 0xC2 <= first <= 0xDF:
        return 2
    if 0xE0 <= first <= 0xEF:
        return 3
    return 4 if 0xF0 <= first <= 0xF4 else 1
