"""What stands for a model: every token is a function of all tokens before it. A token is a byte, or frames a turn."""

from collections.abc import Sequence

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from mycelia.node.engine.engine import EngineTokens
from mycelia.proto.answers.spelling import Vocabulary
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.messages import Logprob, Sampling, TokenLogprobs

NUM_VOCAB = 258
TURN_TOKEN, END_TOKEN = 256, 257
"""The tokens that frame a turn. Tokens below 256 are bytes."""
_LETTERS = b"abcdefghijklmnopqrstuvwxyz     "
_NUM_LETTERS = 26
_STOP_ONE_IN = 64


def counts_of(tokens: Sequence[int]) -> NDArray[np.float32]:
    """The frequencies of eight kinds of token, as a vector of length 1."""
    counts = np.bincount(np.asarray(tokens) % 8, minlength=8).astype(np.float32)
    vector: NDArray[np.float32] = counts / np.linalg.norm(counts)
    return vector


def overlap_of(tokens: Sequence[int]) -> NDArray[np.float32]:
    """The share of a query's words that its document has."""
    place = next((place for place, token in enumerate(tokens) if token == END_TOKEN), len(tokens))
    query, document = (b"".join(map(piece, part)).split() for part in (tokens[:place], tokens[place:]))
    return np.array([sum(word in document for word in query) / max(len(query), 1)], np.float32)


def piece(token: int) -> bytes:
    return bytes([token]) if token < TURN_TOKEN else b""


VOCABULARY = Vocabulary.of([piece(token) for token in range(NUM_VOCAB)])


def item_of(token: int, text: bytes, sampling: Sampling) -> EngineTokens:
    """An item; its logprobs, if any, only say that the next letters are less likely."""
    if not sampling.logprobs:
        return EngineTokens([token], text)
    return EngineTokens([token], text, (logprobs_of(token, sampling.logprobs),))


def logprobs_of(token: int, count: int) -> TokenLogprobs:
    others = [token, *((token + i) % TURN_TOKEN for i in range(1, count))]
    top = [Logprob(token=other, text=piece(other), logprob=-float(i)) for i, other in enumerate(others)]
    return TokenLogprobs(chosen=top[0], top=tuple(top))


def next_token(tokens: Sequence[int], sampling: Sampling, is_first: bool) -> int:
    """The token after ``tokens``: a hash of all of them, and of the seed if the temperature is above 0. is_first: it is
    an answer's first token, which is a letter, so that every answer shows something."""
    seed = sampling.seed.to_bytes(4, "little") if sampling.temperature > 0 else b""
    digest = blake3(pack_tokens(tokens) + seed).digest(length=4)
    if is_first:
        return _LETTERS[digest[2] % _NUM_LETTERS]
    if int.from_bytes(digest[:2], "little") % _STOP_ONE_IN == 0:
        return END_TOKEN
    return _LETTERS[digest[2] % len(_LETTERS)]
