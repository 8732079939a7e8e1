"""Embeddings: who waits for what, and what the real model makes of texts."""

import numpy as np
import pytest
import trio
from numpy.typing import NDArray

from mycelia.node.engine import ipc
from mycelia.node.engine.child.embed_desk import EmbedDesk
from mycelia.node.engine.child.embedder import STEP_TOKENS, Embedder
from mycelia.node.engine.child.llama.llama import BatchRow, L, Llama
from mycelia.node.engine.models import resolve_model
from mycelia.node.engine.process import ProcessEngine, open_engine
from mycelia.node.engine.settings import EngineSettings
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.errors import LocalError
from tests.node.engine.test_process import answer, request

VOCAB = 50


class CountingEmbedder:
    """Two tokens a step; the vector is the text's length."""

    max_tokens = 8

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


def embed(key: int, *texts: list[int], client: bytes = b"") -> ipc.Embed:
    return ipc.Embed(key, [pack_tokens(text) for text in texts], client)


def until_reply(desk: EmbedDesk) -> tuple[ipc.Embedded, int]:
    """And after how many steps."""
    for num_steps in range(1, 100):
        if (reply := desk.step()) is not None:
            return reply, num_steps
    raise AssertionError("no reply")


def test_the_desk_works_in_steps_and_in_order() -> None:
    embedder = CountingEmbedder()
    desk = EmbedDesk(embedder, 4, VOCAB)
    assert desk.add(embed(1, [1, 2, 3], [4])) is None and desk.add(embed(2, [5])) is None
    assert len(desk) == 2 and desk.queued_tokens == 5
    reply, num_steps = until_reply(desk)
    assert (reply.key, num_steps) == (1, 3) and [np.frombuffer(v, np.float32)[0] for v in reply.vectors] == [3, 1]
    assert desk.queued_tokens == 1 and embedder.is_open
    assert until_reply(desk)[0].key == 2
    assert not desk and not embedder.is_open, "no memory is kept while nothing waits"


def test_what_the_desk_refuses() -> None:
    desk = EmbedDesk(CountingEmbedder(), 4, VOCAB)
    for texts, error in (([], "no text"), ([[]], "no text"), ([[1], [1] * 9], "text 1 has 9"), ([[VOCAB]], "below 50")):
        refusal = desk.add(embed(1, *texts))
        assert refusal is not None and error in refusal.error and not refusal.is_busy
    assert [desk.add(embed(key, [1])) is None for key in range(3)] == [True, True, False], "half for who comes first"
    assert desk.add(embed(3, [1], client=b"other")) is None
    refusal = desk.add(embed(4, [1]))
    assert refusal is not None and refusal.is_busy and len(desk) == 3


def test_cancelling_in_every_state() -> None:
    embedder = CountingEmbedder()
    desk = EmbedDesk(embedder, 8, VOCAB)
    for key in range(3):
        desk.add(embed(key, [key + 1] * 4))
    assert desk.step() is None
    assert desk.cancel(0) and desk.cancel(2) and not desk.cancel(2) and not desk.cancel(9)
    assert until_reply(desk)[0].key == 1 and embedder.texts == [[1] * 4, [2] * 4]


def test_a_failure_is_told_and_the_next_one_served() -> None:
    embedder = CountingEmbedder()
    desk = EmbedDesk(embedder, 4, VOCAB)
    desk.add(embed(1, [1], [2]))
    desk.add(embed(2, [3]))
    embedder.fails = True
    assert until_reply(desk)[0].error == "no memory"
    embedder.fails = False
    assert until_reply(desk)[0] == ipc.Embedded(2, [np.float32(1).tobytes()], "")


def whole(embedder: Embedder, tokens: list[int]) -> NDArray[np.float32]:
    embedder.begin(tokens)
    while (vector := embedder.step()) is None:
        pass
    return vector


def test_vectors_are_llama_cpps_own_mean() -> None:
    """Whatever the text's length in steps, and whatever the cells of the answers hold."""
    llama = Llama(resolve_model("smollm2"), num_cells=256, num_sequences=4, num_threads=1, batch_tokens=256)
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
    while engine.vitals().queued_tokens < 8_000:
        await engine.vitals_changes()
    scope.cancel()


async def test_an_engine_embeds_while_it_answers() -> None:
    texts = ["A cat sat on the mat.", "A kitten is sitting on a rug.", "The stock market fell by three percent today."]
    settings = EngineSettings(resolve_model("smollm2"), "smollm2", threads=1, check_idle=True)
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
            while engine.vitals().queued_tokens:  # (half a minute of work, had it not been cancelled)
                await engine.vitals_changes()
