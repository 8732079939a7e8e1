"""Embedding and reranking models: what the engine gives is what llama.cpp itself gives for the same file."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trio
from numpy.typing import NDArray

from mycelia.node.engine.child.llama.bindings import L
from mycelia.node.engine.child.llama.models import model_kind, open_model
from mycelia.node.engine.child.llama.pooled import PooledModel
from mycelia.node.engine.child.pooling.embedder import STEP_TOKENS, Embedder
from mycelia.node.engine.child.pooling.texts import PooledTexts
from mycelia.node.engine.engine import EngineFailed, EngineRequest
from mycelia.node.engine.kinds import EMBEDDING, RERANK
from mycelia.node.engine.process import open_engine
from mycelia.node.engine.prompts import PromptLimit, TooLongError
from mycelia.node.engine.settings import EngineSettings
from mycelia.node.engine.sizing import Offload
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import ChatMessage, Conversation, Sampling
from tests.node.engine.child.pooling.pooled_models import (
    CLS,
    CONTEXT,
    FIRST,
    LAST,
    MEAN,
    RANK,
    SEP,
    write_bert,
    write_qwen3,
)

Write = Callable[[Path, int], Path]


def opened(path: Path) -> PooledModel:
    return PooledModel(open_model(path, Offload(0)))


def computed(embedder: Embedder, tokens: list[int]) -> tuple[NDArray[np.float32], int]:
    """(vector, number of steps)."""
    embedder.begin(tokens)
    num_steps = 1
    while (vector := embedder.step()) is None:
        num_steps += 1
    return vector, num_steps


def llama_cpps_own(model: PooledModel, tokens: list[int], count: int) -> NDArray[np.float32]:
    """The first numbers that llama.cpp gives for a sequence in one call, with the pooling that the file names."""
    context = model.open_side_context(n_ctx=128, n_batch=128, n_ubatch=128, embeddings=True)
    batch = L.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place], batch.n_seq_id[place], batch.logits[place] = token, place, 1, 1
        batch.seq_id[place][0] = 0
    try:
        assert L.llama_decode(context, batch) == 0
        return np.ctypeslib.as_array(L.llama_get_embeddings_seq(context, 0), (count,)).copy()
    finally:
        L.llama_batch_free(batch)
        L.llama_free(context)


@pytest.mark.parametrize("write", [write_bert, write_qwen3])
@pytest.mark.parametrize("pooling", [MEAN, FIRST, LAST])
def test_vectors_are_llama_cpps_own_with_the_pooling_of_the_file(tmp_path: Path, write: Write, pooling: int) -> None:
    model = opened(write(tmp_path / "model.gguf", pooling))
    embedder = Embedder(model, 1, model.is_whole)
    assert model_kind(model.model) == EMBEDDING and embedder.max_tokens == CONTEXT
    for size in (1, 7, CONTEXT):
        tokens = [4 + (7 * place + size) % 70 for place in range(size)]
        vector, num_steps = computed(embedder, tokens)
        theirs = llama_cpps_own(model, tokens, len(vector))
        assert float(vector @ theirs / np.linalg.norm(theirs)) > 0.9999
        assert num_steps == (1 if model.is_whole else -(-size // STEP_TOKENS))
    embedder.close()


@pytest.mark.parametrize("write", [write_bert, write_qwen3])
def test_ranks_are_llama_cpps_own(tmp_path: Path, write: Write) -> None:
    model = opened(write(tmp_path / "model.gguf", RANK))
    embedder = Embedder(model, 1, model.is_whole)
    assert model_kind(model.model) == RERANK
    for size in (2, 30, CONTEXT):
        tokens = [4 + (5 * place + size) % 70 for place in range(size)]
        (rank,), _ = computed(embedder, tokens)
        theirs = float(llama_cpps_own(model, tokens, 1)[0])
        # (of Qwen3 llama.cpp gives the probability of "yes", of BERT a number without bounds)
        assert rank == pytest.approx(theirs if write is write_qwen3 else 1 / (1 + math.exp(-theirs)), abs=1e-3)
    embedder.close()


def texts_of(model: PooledModel, max_tokens: int = CONTEXT) -> PooledTexts:
    return PooledTexts(model, PromptLimit(max_tokens, model.longest_piece()), "it writes no text")


def test_a_text_has_the_tokens_around_it_that_its_model_wants(tmp_path: Path) -> None:
    bert = opened(write_bert(tmp_path / "bert.gguf", MEAN))
    tokens = texts_of(bert).text_tokens("a cat")
    assert (tokens[0], tokens[-1]) == (CLS, SEP) and tokens[1:-1] == bert.tokenize("a cat", False)
    qwen3 = opened(write_qwen3(tmp_path / "qwen3.gguf", LAST))
    assert texts_of(qwen3).text_tokens("a cat") == [*qwen3.tokenize("a cat", False), 2]
    for model in (bert, qwen3):
        with pytest.raises(TooLongError):
            texts_of(model).text_tokens("a b " * CONTEXT)


def test_pairs_without_a_template_are_those_of_llama_server(tmp_path: Path) -> None:
    bert = opened(write_bert(tmp_path / "bert.gguf", RANK))
    query, document = bert.tokenize("a cat?", False), bert.tokenize("cats.", False)
    assert texts_of(bert).pair_tokens("a cat?", "cats.") == [CLS, *query, SEP, *document]
    qwen3 = opened(write_qwen3(tmp_path / "qwen3.gguf", RANK, template=""))
    query, document = qwen3.tokenize("a cat?", False), qwen3.tokenize("cats.", False)
    assert texts_of(qwen3).pair_tokens("a cat?", "cats.") == [*query, 2, *document, 2]


def test_pairs_by_the_template_of_the_file(tmp_path: Path) -> None:
    model = opened(write_qwen3(tmp_path / "model.gguf", RANK))
    whole = "<|im_start|>Judge.<|im_end|><Query>: a {document}\n<Document>: b {query}<|im_end|>"
    assert texts_of(model).pair_tokens("a {document}", "b {query}") == model.tokenize(whole, True)


@pytest.mark.parametrize("write", [write_bert, write_qwen3])
def test_nobody_spells_control_tokens_in_a_pair(tmp_path: Path, write: Write) -> None:
    model = opened(write(tmp_path / "model.gguf", RANK))
    texts, controls = texts_of(model), model.control_tokens()
    plain = [token for token in texts.pair_tokens("a", "b") if token in controls]
    for spelled in ("[SEP]", "<|im_end|>", "</s>", "<|im_", "x<|im_start|>y[CLS]"):
        for pair in ((spelled, "b"), ("a", spelled), (spelled, spelled)):
            assert [token for token in texts.pair_tokens(*pair) if token in controls] == plain


@pytest.mark.parametrize("write", [write_bert, write_qwen3])
def test_a_document_that_does_not_fit_is_cut_and_a_query_is_not(tmp_path: Path, write: Write) -> None:
    model = opened(write(tmp_path / "model.gguf", RANK))
    texts = texts_of(model)
    short = texts.pair_tokens("who?", "it")
    for document in ("it was the cat. " * 100, "it" + "\u00e9" * 400 + "a" * 400, "it " + "x" * 2_000_000):
        tokens = texts.pair_tokens("who?", document)
        assert CONTEXT // 2 < len(tokens) <= CONTEXT and tokens[:8] == short[:8]
    assert texts.pair_tokens("who?", "it was the cat. " * 100)[-1:] == short[-1:] or write is write_bert
    with pytest.raises(TooLongError, match="in the query"):
        texts.pair_tokens("who? " * CONTEXT, "it")


async def test_an_engine_ranks_and_refuses_what_its_model_cannot_do(tmp_path: Path) -> None:
    path = write_qwen3(tmp_path / "ranker.gguf", RANK)
    with trio.fail_after(60):
        async with open_engine(EngineSettings(path, "ranker", threads=1)) as engine:
            assert engine.info.kind == RERANK and engine.info.context_tokens == CONTEXT and engine.vitals().slots
            pairs = [await engine.tokenize_pair("who?", document) for document in ("a cat", "a dog", "a cat")]
            ranks = [float(rank[0]) for rank in await engine.embed(pairs)]
            assert ranks[0] == ranks[2] != ranks[1] and all(0 <= rank <= 1 for rank in ranks)
            for failing in (
                engine.tokenize_chat(Conversation((ChatMessage(role="user", content="hi"),))),
                engine.embed([]),
            ):
                with pytest.raises(LocalError):
                    await failing
            for too_long in (engine.embed([[5] * (CONTEXT + 1)]), engine.tokenize_pair("who? " * CONTEXT, "it")):
                with pytest.raises(TooLongError, match=f"maximum context length is {CONTEXT} tokens"):
                    await too_long
            request = EngineRequest(request_id=bytes(16), prompt=[5], sampling=Sampling(max_tokens=1))
            async with engine.generate(request) as items:
                (item,) = [item async for item in items]
            assert isinstance(item, EngineFailed) and not item.retryable
            assert item.message == "'ranker' is a reranking model: it writes no text, and is asked at /v1/rerank"
            assert await engine.detokenize([pairs[0]]) != [""]
            while engine.vitals().queued_tokens or not engine.vitals().prefill_rate:
                await engine.vitals_changes()


async def test_an_engine_embeds_by_a_model_of_berts_kind(tmp_path: Path) -> None:
    path = write_bert(tmp_path / "embedder.gguf", MEAN)
    model = opened(path)
    with trio.fail_after(60):
        async with open_engine(EngineSettings(path, threads=1)) as engine:
            assert (engine.info.kind, engine.info.reuse) == (EMBEDDING, "none")
            tokens = await engine.tokenize_text("a cat")
            (vector,) = await engine.embed([tokens])
            theirs = llama_cpps_own(model, list(tokens), len(vector))
            assert np.allclose(vector, theirs / np.linalg.norm(theirs), atol=1e-5)
            with pytest.raises(LocalError, match="an embedding model: it ranks no documents"):
                await engine.tokenize_pair("a", "b")
