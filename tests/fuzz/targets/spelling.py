"""Frames of an answer that a peer made up: the text passed on is a beginning of the tokens' text, without a stop
string, and everything else is the peer's offence."""

import random

from mycelia.proto.answers.spelling import Spelling, Vocabulary
from mycelia.proto.wire.errors import RemoteError

_PIECES = [b"", *(bytes([byte]) for byte in range(256)), *(bit.encode() for bit in ("ab", "\n\n", "é€", "a😀b", "aab"))]
_VOCABULARY = Vocabulary.of(_PIECES)
_STOPS = ("a", "ab", "\n\n", "b😀", "é", "aabaab")

Item = tuple[list[str], list[tuple[list[int], bytes]], str]
"""Stop strings, frames and the reason of the end."""


class Spellings:
    """Each frame's text is that of its tokens, or a part of it, or has another byte."""

    name = "spelling"

    def make(self, rng: random.Random) -> Item:
        frames = []
        for _ in range(rng.randint(1, 5)):
            few = rng.random() < 0.9
            tokens = [
                rng.choice((98, 99, 258, 259, rng.randrange(len(_PIECES) + (not few))))
                for _ in range(rng.randint(1, 6))
            ]
            text = _VOCABULARY.text_of([token % len(_PIECES) for token in tokens])
            way = rng.randrange(6)
            if way == 0:
                text = text[: rng.randint(0, len(text))]
            elif way == 1 and text:
                at = rng.randrange(len(text))
                text = text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
            elif way == 2:
                text += rng.randbytes(rng.randint(0, 3))
            frames.append((tokens, text))
        return rng.sample(_STOPS, rng.randint(0, 3)), frames, rng.choice(("stop", "length"))

    def check(self, item: Item) -> bool:
        stops, frames, reason = item
        spelling, said, told = Spelling(_VOCABULARY, stops), b"", b""
        try:
            for tokens, text in frames:
                told += spelling.add(tokens, text)
                said += _VOCABULARY.text_of(tokens)
                assert said.startswith(told)
                assert not any(stop.encode() in told for stop in stops)
            spelling.end(reason)
        except RemoteError:
            return False
        return True
