"""The choice of the tokens of one answer. The owner thread only."""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mycelia.node.engine.child.llama.bindings import Candidates, L
from mycelia.proto.wire.biases import unpack_biases
from mycelia.proto.wire.messages import MAX_TEXT_BYTES_PER_TOKEN, MIN_LOGPROB, Logprob, Sampling, TokenLogprobs

MIN_TEMPERATURE = 0.001
"""Below this, sampling is greedy: a division by less overflows to NaN."""

MAX_SEED = 2**32 - 2
"""With a larger seed llama.cpp takes a random one: the answer could be neither repeated nor resumed."""

FEW = 1024
"""So few candidates take the chain 0.01 ms."""
BLOCK = 64
"""Tokens of which the likeliest is found first, when the likeliest of the vocabulary are searched."""


class Outputs(Protocol):
    num_vocab: int

    def logits(self, output: int) -> NDArray[np.float32]: ...

    def sample(self, chain: Any, output: int) -> int: ...


class Sampler:
    """llama.cpp's sampler chain for one answer: logit bias, penalties, then greedy at temperature 0, else top-k, top-p,
    min-p, temperature and a seeded draw. Each choice takes exactly one random number, so a resumed answer goes on in
    the same stream of random numbers."""

    def __init__(self, llama: Outputs, sampling: Sampling, prompt: Sequence[int], resumed: int) -> None:
        self._llama = llama
        self._chain = L.llama_sampler_chain_init(L.llama_sampler_chain_default_params())
        biases = unpack_biases(sampling.logit_bias)
        if len(biases):
            pointer = ctypes.cast(biases.ctypes.data, ctypes.POINTER(L.llama_logit_bias))  # (llama.cpp copies them)
            self._add(L.llama_sampler_init_logit_bias(llama.num_vocab, len(biases), pointer))
        penalties = sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
        self._moves_logits = len(biases) > 0
        """Whether the likeliest tokens of the chain may be others than those of the model."""
        self._penalizes = penalties != (1.0, 0.0, 0.0) and sampling.repeat_last_n > 0
        if self._penalizes:
            self._moves_logits = True
            self._add(L.llama_sampler_init_penalties(llama.num_vocab, sampling.repeat_last_n, *penalties))
        self._candidates_needed = 1
        """Number of likeliest allowed tokens that the chain reads; 0: all tokens."""
        if not sampling.temperature >= MIN_TEMPERATURE:  # Also for NaN.
            self._add(L.llama_sampler_init_greedy())
        else:
            self._candidates_needed = sampling.top_k
            # Cutting to few candidates first also makes a draw several times cheaper.
            self._add(L.llama_sampler_init_top_k(sampling.top_k))
            self._add(L.llama_sampler_init_top_p(sampling.top_p, 1))
            self._add(L.llama_sampler_init_min_p(sampling.min_p, 1))
            self._add(L.llama_sampler_init_temp(sampling.temperature))
            dist, coin = L.llama_sampler_init_dist(min(sampling.seed, MAX_SEED)), Candidates(np.arange(2), np.zeros(2))
            for _ in range(resumed):
                L.llama_sampler_apply(dist, ctypes.byref(coin.array))
            self._add(dist)
        if self._penalizes:
            for token in prompt[-sampling.repeat_last_n :]:
                L.llama_sampler_accept(self._chain, token)

    def _add(self, sampler: Any) -> None:
        L.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, output: int) -> int:
        """Choose the token after the row with this output index of ``decode``. Raises ValueError for no output."""
        return self._llama.sample(self._chain, output)

    def choose(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_]) -> int | None:
        """Choose among the tokens that a grammar allows, by their ids; None when it allows none. The chain sees these
        tokens alone, as if the others did not exist."""
        # Fewer candidates are cheaper. Penalties and biases change which are the likeliest.
        tokens = np.flatnonzero(allowed if self._moves_logits else _near(logits, allowed, self._candidates_needed))
        if not len(tokens):
            return None
        token = self._choose(tokens, logits[tokens])
        L.llama_sampler_accept(self._chain, token)
        return token

    def _choose(self, tokens: NDArray[np.int64], logits: NDArray[np.float32]) -> int:
        candidates = Candidates(tokens, logits)
        L.llama_sampler_apply(self._chain, ctypes.byref(candidates.array))
        return int(candidates.data["id"][candidates.array.selected])

    def close(self) -> None:
        """Free the chain; the sampler must not be used afterwards."""
        if self._chain:
            L.llama_sampler_free(self._chain)
            self._chain = None


def _near(logits: NDArray[np.float32], allowed: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """The allowed tokens without most of those that are not among the ``count`` likeliest allowed ones; 0: all."""
    num_blocks = len(logits) // BLOCK
    if not 0 < count < num_blocks or np.count_nonzero(allowed) <= FEW:
        return allowed
    masked = np.where(allowed, logits, np.float32(-np.inf))
    best = masked[: num_blocks * BLOCK].reshape(num_blocks, BLOCK).max(axis=1)
    # ``count`` blocks have a token that is as likely as this: so likely are the wanted ones at least.
    bound = np.partition(best, num_blocks - count)[num_blocks - count]
    return allowed & (masked >= bound) if bound > -np.inf else allowed


def logprobs(row: NDArray[np.float32], token: int, count: int, piece: Callable[[int], bytes]) -> TokenLogprobs:
    """Log probabilities by a ``row`` of logits: of ``token``, and of the ``count`` likeliest tokens. piece: the bytes
    of a token."""
    logits = row.astype(np.float64)
    logits -= logits.max()
    logits -= np.log(np.exp(logits).sum())
    likeliest = np.argpartition(logits, -count)[-count:]
    # Equal values are ordered by id, so that the order does not depend on the partition.
    likeliest = likeliest[np.lexsort((likeliest, -logits[likeliest]))]
    top = tuple(_logprob(int(other), logits, piece) for other in likeliest)
    return TokenLogprobs(chosen=_logprob(token, logits, piece), top=top)


def _logprob(token: int, logprobs: NDArray[np.float64], piece: Callable[[int], bytes]) -> Logprob:
    # Rounded to the 32 bits of the wire. NaN, which a broken model may give, becomes the bound.
    value = float(np.float32(logprobs[token]))
    value = min(value, 0.0) if value >= MIN_LOGPROB else MIN_LOGPROB
    return Logprob(token=token, text=piece(token)[:MAX_TEXT_BYTES_PER_TOKEN], logprob=value)
