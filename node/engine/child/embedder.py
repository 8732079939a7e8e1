"""Embeddings: one vector per text, the pooled hidden states of the model's last layer.

Embeddings are computed in a separate context, opened at the first request for embeddings: answers keep their cells, and
no state stays after a text. The work is done in steps, so that steps of running answers can run in between.

The pooling is the one that the model's file names (mean, first or last token). Generative models name none; they get
the mean, as in Ollama and sentence-transformers. Vectors have length 1, as those of OpenAI.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mycelia.node.engine.child.llama.bindings import L
from mycelia.node.engine.child.llama.devices import read_metadata
from mycelia.node.engine.child.llama.llama import Llama
from mycelia.proto.wire.errors import LocalError

STEP_TOKENS = 64
"""Tokens per step: one tile of llama.cpp's attention. llama.cpp computes logits over the vocabulary for each token, so
more tokens would take more memory: with a vocabulary of 262,144 tokens, 64 take 67 MB."""
MAX_EMBEDDED_TOKENS = 8_192
"""Maximum tokens of one text, as OpenAI allows; fewer if the model's context is shorter."""
_SMALLEST_CONTEXT = 512


class Embedder:
    """Embeds one text at a time: call ``begin``, then ``step`` until it returns the vector. The owner thread only."""

    def __init__(self, llama: Llama, num_threads: int) -> None:
        """Allocates no memory before the first ``begin``."""
        self._llama = llama
        self._num_threads = num_threads
        self._context: Any = None
        self._context_tokens = 0
        self.step_tokens = STEP_TOKENS
        self.max_tokens = min(MAX_EMBEDDED_TOKENS, llama.context_tokens)
        self._width = int(L.llama_model_n_embd_out(llama.model))
        self._pooling = _pooling_of(llama)
        self._tokens: Sequence[int] = ()
        self._done = 0
        self._sum = np.zeros(self._width)

    def begin(self, tokens: Sequence[int]) -> None:
        """Begin a text of 1 to ``max_tokens`` tokens of the vocabulary. Raises LocalError when memory is short."""
        self._open(len(tokens))
        L.llama_memory_clear(L.llama_get_memory(self._context), False)
        self._tokens, self._done = tokens, 0
        self._sum = np.zeros(self._width)

    def step(self) -> NDArray[np.float32] | None:
        """Compute the next tokens; returns the vector after the last ones. Raises LocalError when llama.cpp fails."""
        chunk = self._tokens[self._done : self._done + STEP_TOKENS]
        states = self._states(chunk)
        is_first, self._done = not self._done, self._done + len(chunk)
        is_last = self._done == len(self._tokens)
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

    def _states(self, chunk: Sequence[int]) -> NDArray[np.float32]:
        """Hidden states, shape (tokens, width)."""
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
        states = L.llama_get_embeddings(self._context)
        return np.ctypeslib.as_array(states, (size, self._width)).copy()

    def _open(self, num_tokens: int) -> None:
        """Open a context of at least ``num_tokens`` cells; sizes double, so that few contexts are ever opened."""
        wanted = _SMALLEST_CONTEXT
        while wanted < num_tokens:
            wanted *= 2
        if wanted <= self._context_tokens:
            return
        self.close()
        self._context = self._llama.open_side_context(
            n_ctx=wanted,
            n_batch=STEP_TOKENS,
            n_ubatch=STEP_TOKENS,
            n_seq_max=1,
            n_threads=self._num_threads,
            n_threads_batch=self._num_threads,
            no_perf=True,
            embeddings=True,
            pooling_type=L.LLAMA_POOLING_TYPE_NONE,
        )
        self._context_tokens = wanted

    def close(self) -> None:
        """Free the memory; ``begin`` allocates it again."""
        if self._context:
            L.llama_free(self._context)
            self._context, self._context_tokens = None, 0


def _pooling_of(llama: Llama) -> int:
    kind = read_metadata(L, llama.model, "general.architecture")
    named = read_metadata(L, llama.model, f"{kind}.pooling_type")
    known = (L.LLAMA_POOLING_TYPE_MEAN, L.LLAMA_POOLING_TYPE_CLS, L.LLAMA_POOLING_TYPE_LAST)
    return next((pooling for pooling in known if named == str(pooling)), int(L.LLAMA_POOLING_TYPE_MEAN))
