"""Embeddings and ranks: one vector per text, pooled of the hidden states of the model's last layer, or one number.

They are computed in a context of their own, opened at the first request: answers keep their cells, and no state stays
after a text. The work is done in steps, so that steps of running answers can run in between. A model whose tokens
attend to later ones, as in BERT, computes a text in one step: llama.cpp ends the process over a part of one.

The pooling is the one that the model's file names (mean, first or last token, rank). Generative models name none; they
get the mean, as in Ollama and sentence-transformers. Vectors have length 1, as those of OpenAI. A rank is between 0 and
1, as those of Cohere and Jina: what the classification head gives goes through the logistic function, unless llama.cpp
has made a probability of it already.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mycelia.node.engine.child.llama.bindings import L
from mycelia.node.engine.child.llama.devices import read_metadata
from mycelia.proto.wire.errors import LocalError

STEP_TOKENS = 64
"""Tokens per step: one tile of llama.cpp's attention. llama.cpp computes logits over the vocabulary for each token, so
more tokens would take more memory: with a vocabulary of 262,144 tokens, 64 take 67 MB."""
MAX_EMBEDDED_TOKENS = 8_192
"""Maximum tokens of one text, as OpenAI allows; fewer if the model's context is shorter."""
MAX_WHOLE_TOKENS, MAX_LOGITS_BYTES = 2_048, 2**30
"""The same for a model that computes a text in one step. The first bounds how long other requests wait for a step, the
second the memory: llama.cpp reserves logits for each token, also where there are none. With a vocabulary of 250,000
tokens they allow 1,073."""
_SMALLEST_CONTEXT = 512
_RANKS_ARE_PROBABILITIES = ("qwen3", "qwen3vl")
"""Architectures for which llama.cpp applies softmax to the classes: the first one is "yes"."""


class Contexts(Protocol):
    """A loaded model that opens contexts."""

    model: Any
    context_tokens: int

    def open_side_context(self, **wanted: Any) -> Any: ...


class Embedder:
    """Embeds one text at a time: call ``begin``, then ``step`` until it returns the vector. The owner thread only."""

    def __init__(self, llama: Contexts, num_threads: int, is_whole: bool = False) -> None:
        """is_whole: a text is computed in one step. Allocates no memory before the first ``begin``."""
        self._llama = llama
        self._num_threads = num_threads
        self._context: Any = None
        self._context_tokens = 0
        num_vocab = int(L.llama_vocab_n_tokens(L.llama_model_get_vocab(llama.model)))
        most = min(MAX_WHOLE_TOKENS, MAX_LOGITS_BYTES // (4 * num_vocab)) if is_whole else MAX_EMBEDDED_TOKENS
        self.max_tokens = min(most, llama.context_tokens)
        self.step_tokens = self.max_tokens if is_whole else STEP_TOKENS
        self._is_whole = is_whole
        self._width = int(L.llama_model_n_embd_out(llama.model))
        self._architecture = read_metadata(L, llama.model, "general.architecture")
        self._pooling = _pooling_of(llama.model, self._architecture)
        self._tokens: Sequence[int] = ()
        self._done = 0
        self._sum = np.zeros(self._width)

    def begin(self, tokens: Sequence[int]) -> None:
        """Begin a text of 1 to ``max_tokens`` tokens of the vocabulary. Raises LocalError when memory is short."""
        self._open(len(tokens))
        memory = L.llama_get_memory(self._context)
        if memory:
            L.llama_memory_clear(memory, False)
        self._tokens, self._done = tokens, 0
        self._sum = np.zeros(self._width)

    def step(self) -> NDArray[np.float32] | None:
        """Compute the next tokens; returns the vector after the last ones. Raises LocalError when llama.cpp fails."""
        chunk = self._tokens[self._done : self._done + self.step_tokens]
        self._compute(chunk)
        is_first, self._done = not self._done, self._done + len(chunk)
        is_last = self._done == len(self._tokens)
        if self._pooling == L.LLAMA_POOLING_TYPE_RANK:
            return self._rank() if is_last else None
        states = np.ctypeslib.as_array(L.llama_get_embeddings(self._context), (len(chunk), self._width))
        if self._pooling == L.LLAMA_POOLING_TYPE_MEAN:
            self._sum += states.sum(axis=0, dtype=np.float64)
        elif self._pooling == L.LLAMA_POOLING_TYPE_CLS and is_first:
            self._sum += states[0]
        elif self._pooling == L.LLAMA_POOLING_TYPE_LAST and is_last:
            self._sum += states[-1]
        if not is_last:
            return None
        length = float(np.linalg.norm(self._sum))
        if not (np.isfinite(length) and length > 0):
            raise LocalError("the model gave no numbers for this text")
        return (self._sum / length).astype(np.float32)

    def _rank(self) -> NDArray[np.float32]:
        rank = float(L.llama_get_embeddings_seq(self._context, 0)[0])
        if not math.isfinite(rank):
            raise LocalError("the model gave no number for this text")
        if self._architecture not in _RANKS_ARE_PROBABILITIES:
            rank = 1 / (1 + math.exp(-rank)) if rank >= 0 else (small := math.exp(rank)) / (1 + small)
        return np.array([rank], np.float32)

    def _compute(self, chunk: Sequence[int]) -> None:
        size = len(chunk)
        batch = L.llama_batch_init(size, 0, 1)
        try:
            batch.n_tokens = size
            for i, token in enumerate(chunk):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, self._done + i, 1, 1
                batch.seq_id[i][0] = 0
            result = int(L.llama_decode(self._context, batch))
        finally:
            L.llama_batch_free(batch)
        if result != 0:
            raise LocalError(f"llama.cpp could not embed the text ({result})")

    def _open(self, num_tokens: int) -> None:
        """Open a context of at least ``num_tokens`` cells; sizes double, so that few contexts are ever opened."""
        wanted = _SMALLEST_CONTEXT
        while wanted < num_tokens:
            wanted *= 2
        if wanted <= self._context_tokens:
            return
        self.close()
        batch_tokens = wanted if self._is_whole else STEP_TOKENS
        ranks = self._pooling == L.LLAMA_POOLING_TYPE_RANK
        self._context = self._llama.open_side_context(
            n_ctx=wanted,
            n_batch=batch_tokens,
            n_ubatch=batch_tokens,
            n_seq_max=1,
            n_threads=self._num_threads,
            n_threads_batch=self._num_threads,
            no_perf=True,
            embeddings=True,
            pooling_type=L.LLAMA_POOLING_TYPE_RANK if ranks else L.LLAMA_POOLING_TYPE_NONE,
        )
        self._context_tokens = wanted

    def close(self) -> None:
        """Free the memory; ``begin`` allocates it again."""
        if self._context:
            L.llama_free(self._context)
            self._context, self._context_tokens = None, 0


def _pooling_of(model: Any, architecture: str) -> int:
    named = read_metadata(L, model, f"{architecture}.pooling_type")
    known = (
        L.LLAMA_POOLING_TYPE_MEAN,
        L.LLAMA_POOLING_TYPE_CLS,
        L.LLAMA_POOLING_TYPE_LAST,
        L.LLAMA_POOLING_TYPE_RANK,
    )
    return next((int(pooling) for pooling in known if named == str(pooling)), int(L.LLAMA_POOLING_TYPE_MEAN))
