"""A loaded embedding or reranking model. Contexts are opened for the texts that come (``pooling/embedder.py``)."""

from typing import Any

from mycelia.node.engine.child.llama.bindings import L
from mycelia.node.engine.child.llama.models import LoadedModel
from mycelia.node.engine.child.llama.vocabulary import ModelVocabulary

PROBE_TOKENS = 32


class PooledModel(ModelVocabulary):
    """The model with its vocabulary. The thread that owns llama.cpp opens contexts; see ``Llama`` for the rest."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Raises LocalError when llama.cpp opens no context of the model."""
        super().__init__(loaded.handle)
        self._loaded = loaded  # (kept: llama.cpp has pointers into it)
        self.context_tokens = max(int(L.llama_model_n_ctx_train(self.model)), 1)
        self.is_whole = self._probe()
        """Whether tokens attend to later ones, so that a text is computed in one call."""

    def open_side_context(self, **wanted: Any) -> Any:
        """See ``LoadedModel.open_context``."""
        return self._loaded.open_context(**wanted)

    def _probe(self) -> bool:
        size = min(PROBE_TOKENS, self.context_tokens)
        context = self.open_side_context(
            n_ctx=size,
            n_batch=size,
            n_ubatch=size,
            n_seq_max=1,
            embeddings=True,
            pooling_type=L.LLAMA_POOLING_TYPE_NONE,
        )
        try:
            return not (L.llama_get_memory(context) and L.llama_get_causal_attn(context))
        finally:
            L.llama_free(context)
