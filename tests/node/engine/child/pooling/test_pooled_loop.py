"""The step loop of a model that only reads texts: replies, refusals and load, without llama.cpp."""

import os
from collections.abc import Iterator

import pytest

from mycelia.node.engine import ipc, pipe
from mycelia.node.engine.child.loop import Close, TextRead
from mycelia.node.engine.child.pooling.embedding_queue import EmbeddingQueue
from mycelia.node.engine.child.pooling.loop import PooledLoop
from mycelia.proto.wire.messages import Sampling
from tests.node.engine.child.pooling.test_embedding import OTHER, STRANGER, VOCAB, CountingEmbedder, embed


class Loop:
    """A loop, what it said, and its embedder."""

    def __init__(self, read: int, write: int, slots: int = 2) -> None:
        self.embedder = CountingEmbedder()
        texts = EmbeddingQueue(self.embedder, 8, VOCAB)
        self.loop = PooledLoop(texts, slots, pipe.Replies(write), "it writes no text")
        self._read = read
        self._frames = pipe.FrameBuffer()

    def step(self, *messages: object) -> list[ipc.FromChild]:
        """What one step says after these messages."""
        for message in messages:
            self.loop.inbox.put(message)  # type: ignore[arg-type]
        self.loop.step()
        data = b""
        os.set_blocking(self._read, False)
        try:
            while piece := os.read(self._read, 65_536):
                data += piece
        except BlockingIOError:
            pass
        return self._frames.feed(data)


@pytest.fixture
def loop() -> Iterator[Loop]:
    read, write = os.pipe()
    yield Loop(read, write)
    os.close(read)
    os.close(write)


def test_texts_are_computed_in_steps_and_the_load_is_told(loop: Loop) -> None:
    (load,) = loop.step(embed(1, [1, 2, 3]), embed(2, [4]), embed(3, [5]))
    assert isinstance(load, ipc.LoadChanged)
    assert (load.vitals.active_requests, load.vitals.waiting_requests, load.vitals.queued_tokens) == (2, 1, 3)
    said = [*loop.step(), *loop.step(), *loop.step()]
    assert [message.key for message in said if isinstance(message, ipc.Embedded)] == [1, 2, 3]
    last = said[-1]
    assert isinstance(last, ipc.LoadChanged) and last.vitals.queued_tokens == 0 and last.vitals.prefill_rate > 0
    assert not loop.embedder.is_open, "no memory is kept while nothing waits"


def test_what_it_refuses(loop: Loop) -> None:
    refused, *_ = loop.step(ipc.Submit(1, b"", Sampling(max_tokens=1), 0))
    assert isinstance(refused, ipc.Refused) and refused.message == "it writes no text" and not refused.retryable
    wrong, *_ = loop.step(embed(2, [VOCAB]))
    assert isinstance(wrong, ipc.Embedded) and wrong.error and not wrong.is_busy


def test_clients_pay_for_their_texts_and_for_reading_them(loop: Loop) -> None:
    loop.step(embed(1, [1] * 2, client=STRANGER))
    said = loop.step(
        embed(2, [1], client=STRANGER), embed(3, [1], client=OTHER), embed(4, [1]), TextRead(STRANGER, "", 60.0)
    )
    said += [*loop.step(), *loop.step()]
    keys = [message.key for message in said if isinstance(message, ipc.Embedded)]
    assert keys.index(3) < keys.index(2), "who has paid less comes first"


def test_a_cancelled_text_and_the_end(loop: Loop) -> None:
    assert loop.loop.pulse() == (False, 0.0)
    loop.step(embed(1, [1] * 8), embed(2, [2]))
    said = loop.step(ipc.Cancel(1), ipc.Resize(0))
    assert [message.key for message in said if isinstance(message, ipc.Embedded)] == [2]
    loop.loop.interrupt(1)
    loop.step(Close())
    assert loop.loop.closed.is_set() and not loop.loop.saves_at_end
    loop.loop.run()
