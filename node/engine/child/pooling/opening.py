"""Opens an embedding or reranking model."""

from typing import NamedTuple

from mycelia.node.engine import ipc, pipe
from mycelia.node.engine.backends import no_gpu_reason
from mycelia.node.engine.child.llama.bindings import L
from mycelia.node.engine.child.llama.models import LoadedModel, list_backends
from mycelia.node.engine.child.llama.pooled import PooledModel
from mycelia.node.engine.child.loop import TextRead
from mycelia.node.engine.child.pooling.embedder import Embedder
from mycelia.node.engine.child.pooling.embedding_queue import EmbeddingQueue
from mycelia.node.engine.child.pooling.loop import PooledLoop
from mycelia.node.engine.child.pooling.texts import PooledTexts
from mycelia.node.engine.child.renders import Renders
from mycelia.node.engine.kinds import TEXT, cannot
from mycelia.node.engine.prompts import PromptLimit
from mycelia.node.engine.sizing import place_layers


class Pooled(NamedTuple):
    loop: PooledLoop
    renders: Renders
    loaded: ipc.Loaded


def open_pooled(
    message: ipc.Load, loaded: LoadedModel, kind: str, digest: bytes, kv_settings: str, replies: pipe.Replies
) -> Pooled:
    """The loop and the readers of texts for a model of ``kind``. digest, kv_settings: those of its namespace. Raises
    LocalError."""
    model, no_text = PooledModel(loaded), cannot(loaded.path.stem, kind, TEXT)
    embedder = Embedder(model, message.threads, model.is_whole)
    limit = PromptLimit(embedder.max_tokens, model.longest_piece())
    texts = EmbeddingQueue(embedder, message.max_waiting, model.num_vocab)
    loop = PooledLoop(texts, message.slots, replies, no_text, message.share)
    renders = Renders(
        PooledTexts(model, limit, no_text), model.spelling, replies, lambda *read: loop.inbox.put(TextRead(*read))
    )
    placement = place_layers(int(L.llama_model_n_layer(model.model)), loaded.offload, loaded.gpus)
    facts = ipc.Loaded(
        digest,
        embedder.max_tokens,
        model.num_vocab,
        "none",
        offload=placement.describe(),
        no_gpu="" if placement.offloaded or message.gpu_layers == 0 else no_gpu_reason(list_backends()),
        token_bytes=limit.token_bytes,
        begin_text=model.special_texts["bos_token"],
        end_text=model.special_texts["eos_token"],
        begin_token=model.bos_token,
        kv_settings=kv_settings,
        kind=kind,
    )
    return Pooled(loop, renders, facts)
