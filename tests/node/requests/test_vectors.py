"""Vectors and ranks from peers: over the in-memory network, with fake engines."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
import trio
from numpy.typing import NDArray

from mycelia.node.app import Node
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.settings import FakeSettings
from mycelia.node.engine.kinds import EMBEDDING, RERANK, TEXT
from mycelia.node.errors import BusyError, FailedError
from mycelia.node.network.network import MessageStream
from mycelia.node.queries.questions import answer_of
from mycelia.node.queries.uses import VECTORS
from mycelia.node.requests import vectors
from mycelia.node.requests.vectors import MAX_SENT_CHARS
from mycelia.node.swarms import Swarms
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import MAX_TEXTS, Answered, EmbedTexts, Failed, Message, TextVectors
from tests.node.members import AwayEngine, Member, an_ask, frames_of, open_members

DOCUMENTS = ["a dog", "the cat sat", "a cat"]
QUERY = "a cat"


class CountingEngine(FakeEngine):
    """Counts what is asked, and may refuse it."""

    def __init__(self, model: str, kind: str) -> None:
        super().__init__(FakeSettings(model_name=model, kind=kind, prefill_rate=100.0))
        self.clients: list[bytes] = []
        self.is_busy = False

    async def embed(
        self, texts: Sequence[Sequence[int]], client: bytes = b"", subnet: str = ""
    ) -> list[NDArray[np.float32]]:
        self.clients.append(client)
        if self.is_busy:
            raise BusyError("too many wait", 7.0)
        return await super().embed(texts, client, subnet)


class AwayCountingEngine(AwayEngine, CountingEngine):
    pass


@asynccontextmanager
async def open_ranker(kind: str = RERANK) -> AsyncIterator[tuple[Member, Member, CountingEngine]]:
    """A node with the model a, a node with b and a model of ``kind`` called r, and the engine of r."""
    async with open_members(2, models=("a", "b")) as (_, (one, other)):
        engine = CountingEngine("r", kind)
        await other.node.serve(engine)
        await trio.sleep(2)  # (of virtual time: the peer hears of it)
        yield one, other, engine


def ranks_of(made: list[NDArray[np.float32]]) -> list[float]:
    return [round(float(vector[0]), 3) for vector in made]


async def test_documents_are_ranked_by_a_peer_and_texts_embedded(autojump_clock: trio.testing.MockClock) -> None:
    async with open_ranker() as (one, other, engine):
        for member, client in ((other, b""), (one, one.peer)):
            made = await member.node.rank(QUERY, DOCUMENTS, model="r")
            assert ranks_of(made.vectors) == [0.5, 0.5, 1.0] and made.num_tokens == 3 * 6 + sum(map(len, DOCUMENTS))
            assert engine.clients.pop() == client, "the peer pays"
    async with open_ranker(EMBEDDING) as (one, other, engine):
        here, there = [await member.node.embed(DOCUMENTS, model="r") for member in (other, one)]
        assert np.array_equal(here.vectors, there.vectors) and here.num_tokens == there.num_tokens
        assert engine.clients == [b"", one.peer]


async def test_many_texts_go_in_parts_and_come_back_in_order(autojump_clock: trio.testing.MockClock) -> None:
    async with open_ranker() as (one, _, engine):
        documents = ["a cat" if number % 7 == 3 else "nothing" for number in range(100)]
        documents[5] = "a cat " + "x" * (MAX_SENT_CHARS + 10)  # (its end is not sent)
        made = await one.node.rank(QUERY, documents, model="r")
        assert ranks_of(made.vectors) == [float(document.startswith("a cat")) for document in documents]
        assert len(engine.clients) >= 100 // MAX_TEXTS
        with pytest.raises(FailedError, match="characters"):
            await one.node.rank("x" * (MAX_SENT_CHARS + 1), documents, model="r")
        with pytest.raises(FailedError, match="characters"):
            await one.node.embed(["x" * (MAX_SENT_CHARS + 1)], model="b")


async def test_a_busy_node_asks_a_peer_with_the_same_weights(autojump_clock: trio.testing.MockClock) -> None:
    async with open_ranker() as (one, _, engine):
        own = CountingEngine("r", RERANK)
        await one.node.serve(own)
        await trio.sleep(2)
        await one.node.rank(QUERY, DOCUMENTS, model="r")
        assert (len(own.clients), len(engine.clients)) == (1, 0), "its own engine comes first"
        own.is_busy = True
        assert ranks_of((await one.node.rank(QUERY, DOCUMENTS)).vectors) == [0.5, 0.5, 1.0]
        assert (len(own.clients), len(engine.clients)) == (2, 1)
        engine.is_busy = True
        with pytest.raises(BusyError) as refused:
            await one.node.rank(QUERY, DOCUMENTS, model="r")
        assert refused.value.retry_s == 7.0


async def test_a_model_that_is_not_loaded_is_asked_where_it_begins_sooner(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_ranker() as (one, _, engine):
        away = AwayCountingEngine("r", RERANK)
        await one.node.serve(away)
        await trio.sleep(2)
        await one.node.rank(QUERY, DOCUMENTS, model="r")
        assert (len(away.clients), len(engine.clients)) == (0, 1)
        engine.is_busy = True
        await one.node.rank(QUERY, DOCUMENTS, model="r")
        assert (len(away.clients), len(engine.clients)) == (1, 2), "it is loaded here if the peer has no room"


async def test_tokens_of_a_model_that_is_not_loaded_are_read_here(autojump_clock: trio.testing.MockClock) -> None:
    async with open_ranker(EMBEDDING) as (one, _, there):
        here = AwayCountingEngine("r", EMBEDDING)
        await one.node.serve(here)
        await trio.sleep(2)
        made = await one.node.embed([[5, 6, 7]], model="r")
        assert len(made.vectors) == 1 and (here.clients, there.clients) == ([b""], [])


async def test_each_kind_of_model_says_what_it_is_not_for(autojump_clock: trio.testing.MockClock) -> None:
    async with open_ranker() as (one, other, _):
        for member in (one, other):
            with pytest.raises(LocalError, match="'r' is a reranking model: it makes no embeddings"):
                await member.node.embed(["a"], model="r")
            with pytest.raises(LocalError, match="'b' is a text model: it ranks no documents"):
                await member.node.rank("a", ["b"], model="b")
            failed = (await frames_of(member, an_ask("hi", model="r")))[-1]
            assert isinstance(failed, Failed) and failed.code == "bad_request"
            assert failed.message == "'r' is a reranking model: it writes no text, and is asked at /v1/rerank"
        with pytest.raises(LocalError, match="serves no reranking model"):
            await one.node.rank("a", ["b"])
        with pytest.raises(FailedError) as unknown:
            await one.node.rank("a", ["b"], model="missing")
        assert unknown.value.code == "unknown_model" and "`missing`" in str(unknown.value)
        with pytest.raises(LocalError, match="token ids"):
            await one.node.embed([[1, 2]], model="b")
        assert [row.kind for row in other.node.state().served] == [TEXT, RERANK]
        assert {row.model: row.kind for row in await one.node.models()} == {"a": TEXT, "b": TEXT, "r": RERANK}
        assert isinstance((await frames_of(one, an_ask("hi")))[-1], Answered)


async def test_the_usual_model_of_each_kind(autojump_clock: trio.testing.MockClock) -> None:
    async with open_ranker(EMBEDDING) as (one, other, _):
        assert [one.node.model_for(kind) for kind in (EMBEDDING, RERANK)] == ["a", ""]
        assert [other.node.model_for(kind) for kind in (EMBEDDING, RERANK)] == ["r", ""]
        swarms = Swarms(other.node, aliases={"text-embedding-3-small": "r"})
        assert (await swarms.embed(["a"], model="text-embedding-3-small")).num_tokens == 1
        assert (await swarms.embed(["a"], model="r@public")).num_tokens == 1


async def test_a_name_of_the_catalogue_means_its_model_here_at_a_peer_and_at_its_peer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_members(3, models=("a", "b", "c"), links=((0, 1), (1, 2))) as (_, (one, two, three)):
        for member, kind, model in (
            (one, EMBEDDING, "nomic-embed-text-v1.5.Q8_0"),
            (three, RERANK, "bge-reranker-v2-m3-Q8_0"),
        ):
            await member.node.serve(CountingEngine(model, kind))
        await trio.sleep(2)
        vectors = [await member.node.embed(["a"], model="nomic-embed-text-v1.5") for member in (one, two)]
        assert np.array_equal(vectors[0].vectors, vectors[1].vectors)
        for member in (three, two):
            made = await member.node.rank(QUERY, DOCUMENTS, model="bge-reranker-v2-m3")
            assert ranks_of(made.vectors) == [0.5, 0.5, 1.0]
        passed_on = await ask(one, two, model="bge-reranker-v2-m3")
        assert isinstance(passed_on, TextVectors)
        swarms = Swarms(one.node, aliases={"text-embedding-3-small": "nomic-embed-text-v1.5"})
        names = ["text-embedding-3-small", "nomic-embed-text-v1.5", "a", "none", "nomic-embed-text-v1.5@public"]
        assert list(map(swarms.name_of, names)) == [*["nomic-embed-text-v1.5.Q8_0"] * 2, *names[2:]]


async def test_a_text_that_is_too_long_is_refused_as_such_here_and_by_a_peer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_members(2, models=("a", "b"), cells=100) as (_, (one, other)):
        for member in (other, one):
            with pytest.raises(FailedError, match=r"maximum context length is 100 tokens.* text 20 of the input") as no:
                await member.node.embed(["x"] * 20 + ["x" * 101], model="b")
            assert no.value.code == "too_long"
            with pytest.raises(FailedError, match=r"^text 18 of the input: This model's maximum context length is 100"):
                await member.node.embed(["x"] * 18 + ["x" * 1_001], model="b")


async def test_a_peer_of_both_passes_a_question_on_once(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(3, models=("a", "b", "c"), links=((0, 1), (1, 2))) as (swarm, (one, two, three)):
        engine = CountingEngine("r", RERANK)
        await three.node.serve(engine)
        await trio.sleep(2)
        swarm.behind_routers.add(three.peer)
        await one.node.models()  # (it asks its peers what they know)
        made = await one.node.rank(QUERY, DOCUMENTS, model="r")
        assert ranks_of(made.vectors) == [0.5, 0.5, 1.0] and engine.clients == [two.peer]
        stream = await one.network.open(two.peer, VECTORS)
        await stream.send(EmbedTexts(model="r", namespace=b"", query="q", texts=("a",), is_passed_on=True))
        answer = await stream.receive()
        assert isinstance(answer, Failed) and answer.code == "unknown_model"


async def ask(one: Member, other: Member, **changed: object) -> Message:
    question = {"model": "r", "namespace": b"", "query": "q", "texts": ("a",), "is_passed_on": False} | changed
    stream = await one.network.open(other.peer, VECTORS)
    await stream.send(EmbedTexts(**question))  # type: ignore[arg-type]
    return await stream.receive()


class StuckEngine(CountingEngine):
    async def embed(
        self, texts: Sequence[Sequence[int]], client: bytes = b"", subnet: str = ""
    ) -> list[NDArray[np.float32]]:
        self.clients.append(client)
        await trio.sleep_forever()
        raise AssertionError("unreachable")


async def test_questions_of_peers_leave_a_node_room_for_prompts_to_the_same_peer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    links = ((0, 1), (1, 2), (1, 3), (1, 4))
    async with open_members(5, models=("s", "m", "a", "b", "c"), links=links) as (_, (server, two, *askers)):
        engine = StuckEngine("r", RERANK)
        await server.node.serve(engine)
        await trio.sleep(2)
        refused = list[Message]()
        question = EmbedTexts(model="r", namespace=b"", query="q", texts=("a",), is_passed_on=False)

        async def ask_two(asker: Member) -> None:
            refused.append(await answer_of(asker.network, VECTORS, question, two.peer))

        async with trio.open_nursery() as nursery:
            for asker in askers:
                for _ in range(vectors.MAX_ASKED_PER_KEY):
                    nursery.start_soon(ask_two, asker)
            await trio.sleep(1)
            assert len(engine.clients) == vectors.MAX_PASSED_TO_PEER
            assert len(refused) == 3 * vectors.MAX_ASKED_PER_KEY - vectors.MAX_PASSED_TO_PEER
            assert all(isinstance(one, Failed) and one.code == "overloaded" and one.retryable for one in refused)
            nursery.cancel_scope.cancel()
        await trio.sleep(1)
        with trio.move_on_after(1):
            await ask_two(askers[0])
        assert len(engine.clients) == vectors.MAX_PASSED_TO_PEER + 1, "the places are free again"


async def test_what_a_node_refuses_a_peer(autojump_clock: trio.testing.MockClock) -> None:
    async with open_ranker() as (one, other, engine):
        assert isinstance(await ask(one, other), TextVectors)
        wrong = await ask(one, other, namespace=bytes(16))
        assert isinstance(wrong, Failed) and wrong.code == "unknown_model"
        wrong = await ask(one, other, query="")
        assert isinstance(wrong, Failed) and wrong.code == "bad_request" and not wrong.retryable
        engine.is_busy = True
        busy = await ask(one, other)
        assert isinstance(busy, Failed) and (busy.code, busy.retry_after_ms) == ("overloaded", 7_000)
        other.node.pause(True)
        paused = await ask(one, other)
        assert isinstance(paused, Failed) and paused.code == "leaving" and paused.retryable


@pytest.mark.parametrize("num_numbers", [0, 1, 2, 4])
async def test_a_peer_that_answers_nonsense_is_not_believed(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, num_numbers: int
) -> None:
    monkeypatch.setattr(vectors, "PATIENCE_S", 5.0)
    async with open_ranker() as (one, other, engine):

        async def lying(stream: MessageStream) -> None:
            await stream.receive()
            if not num_numbers:
                await trio.sleep_forever()
            data = np.full(num_numbers, 2.0 if num_numbers == 2 else 0.5, "<f4").tobytes()
            await stream.send(TextVectors(namespace=engine.info.namespace, vectors=data, num_tokens=1))

        other.network.serve(VECTORS, lying)
        with pytest.raises(FailedError) as failed:
            await one.node.rank(QUERY, ["a", "b"], model="r")
        assert failed.value.code == "no_peer"


@pytest.mark.parametrize("refuses", [True, False])
async def test_one_peer_alone_can_neither_refuse_all_nor_hold_up_each(
    autojump_clock: trio.testing.MockClock, refuses: bool
) -> None:
    async with open_members(3, models=("a", "b", "c")) as (_, (one, *others)):
        for member in others:
            await member.node.serve(CountingEngine("r", RERANK))
        await trio.sleep(2)
        first = one.node.swarm_models.servers("r")[0]
        liar = next(member for member in others if member.peer == first)
        num_asked = 0

        async def lie(stream: MessageStream) -> None:
            nonlocal num_asked
            num_asked += isinstance(await stream.receive(), EmbedTexts)
            if not refuses:
                await trio.sleep_forever()
            await stream.send(Failed(code="bad_request", message="no", retryable=False))

        liar.network.serve(VECTORS, lie)
        began = trio.current_time()
        for _ in range(30):
            assert ranks_of((await one.node.rank(QUERY, DOCUMENTS, model="r")).vectors) == [0.5, 0.5, 1.0]
        waited_s = trio.current_time() - began
        assert waited_s < 1.5 * vectors.PATIENCE_S and (refuses or num_asked <= 1)


async def test_a_client_that_leaves_cancels_the_work_at_the_peer(autojump_clock: trio.testing.MockClock) -> None:
    begun, ended = trio.Event(), trio.Event()

    class SlowEngine(CountingEngine):
        async def embed(
            self, texts: Sequence[Sequence[int]], client: bytes = b"", subnet: str = ""
        ) -> list[NDArray[np.float32]]:
            begun.set()
            try:
                await trio.sleep_forever()
            finally:
                ended.set()
            raise AssertionError("not reached")

    async with open_members(2, models=("a", "b")) as (_, (one, other)), trio.open_nursery() as nursery:
        await other.node.serve(SlowEngine("r", RERANK))
        await trio.sleep(2)

        async def rank(node: Node) -> None:
            await node.rank(QUERY, DOCUMENTS, model="r")

        nursery.start_soon(rank, one.node)
        await begun.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.fail_after(10):
            await ended.wait()
