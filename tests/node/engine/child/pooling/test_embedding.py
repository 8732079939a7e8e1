"""Embeddings: the order of the queue, and the vectors of the real model."""

import numpy as np
import pytest
import trio
from numpy.typing import NDArray

from mycelia.node.engine import ipc
from mycelia.node.engine.child.llama.batch import BatchRow
from mycelia.node.engine.child.llama.bindings import L
from mycelia.node.engine.child.llama.llama import Llama
from mycelia.node.engine.child.pooling import embedding_queue
from mycelia.node.engine.child.pooling.embedder import STEP_TOKENS, Embedder
from mycelia.node.engine.child.pooling.embedding_queue import EmbeddingQueue
from mycelia.node.engine.process import ProcessEngine, open_engine
from mycelia.node.engine.settings import EngineSettings
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.errors import LocalError
from tests.node.engine.gguf_files import quick_model
from tests.node.engine.test_process import answer, request

VOCAB = 50
STRANGER, OTHER = b"stranger", b"other"


class CountingEmbedder:
    """Computes two tokens a step; the vector is the text's length."""

    max_tokens = 8
    step_tokens = 2

    def __init__(self) -> None:
        self.left: list[int] = []
        self.texts: list[list[int]] = []
        self.is_open = False
        self.fails = False

    def begin(self, tokens: list[int]) -> None:
        self.left, self.is_open = list(tokens), True
        self.texts.append(list(tokens))

    def step(self) -> NDArray[np.float32] | None:
        if self.fails:
            raise LocalError("no memory")
        self.left = self.left[2:]
        return None if self.left else np.array([len(self.texts[-1])], np.float32)

    def close(self) -> None:
        self.is_open = False


def embed(key: int, *texts: list[int], client: bytes = b"", subnet: str = "") -> ipc.Embed:
    return ipc.Embed(key, [pack_tokens(text) for text in texts], client, subnet)


class Queue(EmbeddingQueue):
    """The queue of an engine without other work."""

    def __init__(self, embedder: CountingEmbedder, num_places: int) -> None:
        super().__init__(embedder, num_places, VOCAB)

    def take(self, message: ipc.Embed, now: float = 0.0) -> ipc.Embedded | None:
        return self.add(message, now, 100.0)

    def until_reply(self) -> tuple[ipc.Embedded, int]:
        """(next reply, number of steps until it)."""
        for num_steps in range(1, 1_000):
            if (reply := self.step(next(iter(self)), 0.0).reply) is not None:
                return reply, num_steps
        raise AssertionError("no reply")


def test_texts_are_embedded_in_steps_and_in_order() -> None:
    embedder = CountingEmbedder()
    queue = Queue(embedder, 4)
    assert queue.take(embed(1, [1, 2, 3], [4])) is None and queue.take(embed(2, [5])) is None
    assert len(queue) == 2 and queue.queued_tokens == 5
    reply, num_steps = queue.until_reply()
    assert (reply.key, num_steps) == (1, 3) and [np.frombuffer(v, np.float32)[0] for v in reply.vectors] == [3, 1]
    assert queue.queued_tokens == 1 and embedder.is_open
    assert queue.until_reply()[0].key == 2
    assert not queue and not embedder.is_open, "no memory is kept while nothing waits"


def test_what_is_refused() -> None:
    queue = Queue(CountingEmbedder(), 4)
    for texts, error in (
        ([], "no text"),
        ([[]], "no text"),
        ([[1], [1] * 9], "requested 9 tokens (in text 1"),
        ([[VOCAB]], "below 50"),
    ):
        refusal = queue.take(embed(1, *texts))
        assert refusal is not None and error in refusal.error and not refusal.is_busy
        assert refusal.is_too_long == ("requested" in error)
    taken = [queue.take(embed(key, [1], client=STRANGER)) is None for key in range(3)]
    assert taken == [True, True, False], "half for who comes first"
    assert queue.take(embed(3, [1], client=OTHER)) is None
    refusal = queue.take(embed(4, [1], client=STRANGER))
    assert refusal is not None and refusal.is_busy and refusal.retry_after_s > 0 and len(queue) == 3


def test_a_refused_client_is_told_by_the_pace_of_finished_requests() -> None:
    queue = Queue(CountingEmbedder(), 2)
    queue.take(embed(1, [1], client=STRANGER))
    queue.step(next(iter(queue)), 5.0)
    queue.take(embed(2, [1], client=STRANGER), 5.0)
    queue.take(embed(3, [1], client=OTHER), 5.0)
    refusal = queue.take(embed(4, [1], client=STRANGER), 5.0)
    assert refusal is not None and refusal.is_busy and 5.0 <= refusal.retry_after_s <= 20.0


def test_the_tokens_that_a_client_has_waiting_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_queue, "MAX_WAITING_TOKENS", 32)
    queue = Queue(CountingEmbedder(), 64)
    assert queue.take(embed(1, *[[1] * 8] * 2, client=STRANGER)) is None
    refusal = queue.take(embed(2, *[[1] * 8] * 2, client=STRANGER))
    assert refusal is not None and refusal.is_busy and refusal.retry_after_s > 0
    assert queue.take(embed(3, [1] * 7, client=OTHER)) is None


def test_the_tokens_of_one_request_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_queue, "MAX_REQUEST_TOKENS", 32)
    queue = Queue(CountingEmbedder(), 64)
    assert queue.take(embed(1, *[[1] * 8] * 4)) is None
    refusal = queue.take(embed(2, *[[1] * 8] * 4, [1]))
    assert refusal is not None and "33 tokens" in refusal.error and not refusal.is_busy


def test_a_client_with_few_texts_waits_for_one_text_of_another_and_the_owner_too() -> None:
    for client in (OTHER, b""):
        queue = Queue(CountingEmbedder(), 8)
        queue.take(embed(1, *[[1] * 8] * 256, client=STRANGER))
        for _ in range(4 * 128 + 1):
            queue.step(next(iter(queue)), 0.0)
        queue.take(embed(2, [2] * 2, client=client))
        reply, num_steps = queue.until_reply()
        assert (reply.key, num_steps) == (2, 4), "the rest of that text, and its own"


def test_cancelling_in_every_state() -> None:
    embedder = CountingEmbedder()
    queue = Queue(embedder, 8)
    for key in range(3):
        queue.take(embed(key, [key + 1] * 4))
    assert queue.step(next(iter(queue)), 0.0).reply is None
    assert queue.cancel(0) and queue.cancel(2) and not queue.cancel(2) and not queue.cancel(9)
    assert queue.until_reply()[0].key == 1 and embedder.texts == [[1] * 4, [2] * 4]
    queue.take(embed(3, [4] * 4))
    queue.step(next(iter(queue)), 0.0)
    assert queue.cancel(3) and not embedder.is_open


def test_a_failure_is_told_and_the_next_one_served() -> None:
    embedder = CountingEmbedder()
    queue = Queue(embedder, 4)
    queue.take(embed(1, [1], [2]))
    queue.take(embed(2, [3]))
    embedder.fails = True
    assert queue.until_reply()[0].error == "no memory"
    embedder.fails = False
    assert queue.until_reply()[0] == ipc.Embedded(2, [np.float32(1).tobytes()], "")


def whole(embedder: Embedder, tokens: list[int]) -> NDArray[np.float32]:
    embedder.begin(tokens)
    while (vector := embedder.step()) is None:
        pass
    return vector


def test_vectors_are_llama_cpps_own_mean() -> None:
    """For any length of the text in steps, and any content of the answers' cells."""
    llama = Llama(quick_model(), num_cells=256, num_sequences=4, num_threads=1, batch_tokens=256)
    text = llama.tokenize("The ship left the harbour at dawn. " * 20, False)
    assert len(text) > 2 * STEP_TOKENS
    embedder = Embedder(llama, 1)
    short, long = whole(embedder, text[:5]), whole(embedder, text)
    llama.decode([BatchRow(0, 0, text[:40], True)])
    assert np.array_equal(whole(embedder, text[:5]), short), "the same again, after a longer one and beside an answer"
    embedder.close()
    for vector, tokens in ((short, text[:5]), (long, text)):
        context = llama.open_side_context(
            n_ctx=512, n_batch=512, n_ubatch=512, embeddings=True, pooling_type=L.LLAMA_POOLING_TYPE_MEAN
        )
        batch = L.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        assert L.llama_decode(context, batch) == 0
        theirs = np.ctypeslib.as_array(L.llama_get_embeddings_seq(context, 0), (len(vector),)).copy()
        L.llama_batch_free(batch)
        L.llama_free(context)
        assert float(vector @ theirs / np.linalg.norm(theirs)) > 0.9999 and abs(np.linalg.norm(vector) - 1) < 1e-5


async def leave_when_queued(engine: ProcessEngine, scope: trio.CancelScope) -> None:
    while engine.vitals().queued_tokens < 4_000:
        await engine.vitals_changes()
    scope.cancel()


async def test_an_engine_embeds_while_it_answers() -> None:
    texts = ["A cat sat on the mat.", "A kitten is sitting on a rug.", "The stock market fell by three percent today."]
    settings = EngineSettings(quick_model(), "smollm2", threads=1, check_idle=True)
    with trio.fail_after(120):
        async with open_engine(settings) as engine, trio.open_nursery() as nursery:
            prompt = await engine.tokenize_text(texts[0])
            nursery.start_soon(answer, engine, request(prompt, 20))
            vectors = await engine.embed([await engine.tokenize_text(text) for text in texts])
            likeness = np.array(vectors) @ np.array(vectors).T
            assert likeness[0, 1] > likeness[0, 2], "two sentences of the same meaning are nearer than two of others"
            with pytest.raises(LocalError, match="no text"):
                await engine.embed([[]])
            with trio.CancelScope() as leaving:
                nursery.start_soon(leave_when_queued, engine, leaving)
                await engine.embed([[5] * 8_000])
            assert leaving.cancelled_caught
            assert len(await engine.embed([prompt])) == 1
            while engine.vitals().queued_tokens:  # (half a minute of work if it were not cancelled)
                await engine.vitals_changes()
