"""Nodes with several models: over the in-memory network, with fake engines."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.settings import FakeSettings
from mycelia.node.network.network import MessageStream
from mycelia.node.requests.entry import ASK, GENERATE
from mycelia.node.swarms import Swarms
from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Answered, Failed
from tests.node.members import LONG, AwayEngine, Member, an_ask, frames_of, open_members, text_of


@asynccontextmanager
async def open_two() -> AsyncIterator[tuple[Member, Member, FakeEngine]]:
    """A node with models a and b, a node with model c, and the engine of b."""
    async with open_members(2, models=("a", "c"), prefill_rate=100.0, decode_rate=100.0) as (_, (one, other)):
        second = FakeEngine(FakeSettings(model_name="b", prefill_rate=100.0, decode_rate=100.0))
        await one.node.serve(second)
        await trio.sleep(2)  # (of virtual time: the peer hears of it)
        yield one, other, second


async def test_each_model_is_asked_by_name_here_and_by_peers(autojump_clock: trio.testing.MockClock) -> None:
    async with open_two() as (one, other, second):
        for member, model, engine in (
            (one, "", one.engine),
            (one, "a", one.engine),
            (one, "b", second),
            (other, "b", second),
        ):
            before = len(engine.requests)
            frames = await frames_of(member, an_ask("hello", model=model))
            assert isinstance(frames[-1], Answered) and text_of(frames)
            assert frames[-1].served_by == one.peer and len(engine.requests) == before + 1
        missing = await frames_of(one, an_ask("hello", model="d"))
        assert isinstance(missing[-1], Failed) and missing[-1].code == "unknown_model"


async def test_models_and_state_name_all(autojump_clock: trio.testing.MockClock) -> None:
    async with open_two() as (one, other, _):
        assert [row.model for row in await one.node.models()] == ["a", "b", "c"]
        assert [row.model for row in await other.node.models()] == ["c", "a", "b"]
        state = Swarms(one.node).state()
        assert [(row.model, row.state) for row in state.served] == [("a", "loaded"), ("b", "loaded")]
        assert state.slots == 16 and state.model == "a"
        metrics = Swarms(one.node).metrics().decode()
        assert 'mycelia_model_loaded{model="b"} 1.0' in metrics
        assert other.node.state().peers[0].models == ["a", "b"]
        assert Swarms(one.node).own_models == ["a", "b"]


async def test_prefixes_of_two_models_are_kept_apart(autojump_clock: trio.testing.MockClock) -> None:
    async with open_two() as (one, _, second):
        await frames_of(one, an_ask(LONG, model="a"))
        answered = (await frames_of(one, an_ask(LONG, model="b")))[-1]
        assert isinstance(answered, Answered) and answered.usage.cached_tokens == 0
        again = (await frames_of(one, an_ask(LONG, model="b")))[-1]
        assert isinstance(again, Answered) and again.usage.cached_tokens >= STRIDE
        assert {row.model for row in await one.node.tree()} == {"a", "b"}
        assert await one.node.tokenize_text("x", model="b") == await second.tokenize_text("x")
        with pytest.raises(LocalError):
            await one.node.tokenize_text("x", model="c")


async def test_two_nodes_share_the_load_and_the_digests_of_a_second_model(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_two() as (one, other, second):
        theirs = FakeEngine(FakeSettings(model_name="b", prefill_rate=100.0, decode_rate=100.0))
        await other.node.serve(theirs)
        await trio.sleep(2)
        await frames_of(other, an_ask(LONG, model="b"))
        await trio.sleep(30)  # (of virtual time: until the digest is sent)
        answered = (await frames_of(one, an_ask(LONG, model="b")))[-1]
        assert isinstance(answered, Answered) and answered.served_by == other.peer
        assert answered.usage.cached_tokens >= STRIDE and not second.requests


async def test_a_model_can_be_served_once_only(autojump_clock: trio.testing.MockClock) -> None:
    async with open_two() as (one, _, _):
        with pytest.raises(LocalError, match="one name"):
            await one.node.serve(FakeEngine(FakeSettings(model_name="b")))


@pytest.mark.parametrize(("load_s", "is_relayed"), [(10.0, True), (0.0, False)])
async def test_a_model_that_is_not_loaded_here_is_asked_where_it_begins_sooner(
    autojump_clock: trio.testing.MockClock, load_s: float, is_relayed: bool
) -> None:
    async with open_members(2, models=("a", "b"), prefill_rate=100.0, decode_rate=100.0) as (_, (one, other)):
        away = AwayEngine(FakeSettings(model_name="b", prefill_rate=100.0, decode_rate=100.0))
        away.load_s = load_s
        await one.node.serve(away)
        await trio.sleep(2)
        answered = (await frames_of(one, an_ask("hello", model="b")))[-1]
        assert isinstance(answered, Answered)
        assert (answered.served_by == other.peer) == is_relayed
        # A peer's prompt does not come back: it loads the model, if it has to be here.
        assert len(away.requests) == (0 if is_relayed else 1)
        by_peer = (await frames_of(other, an_ask("hello again", model="b")))[-1]
        assert isinstance(by_peer, Answered) and by_peer.served_by == other.peer


async def test_a_model_that_is_not_loaded_here_is_loaded_if_the_peer_cannot_be_asked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_members(2, models=("a", "b"), prefill_rate=100.0, decode_rate=100.0) as (_, (one, other)):
        away = AwayEngine(FakeSettings(model_name="b", slots=8, prefill_rate=100.0, decode_rate=100.0))
        await one.node.serve(away)
        await trio.sleep(2)

        async def gone(stream: MessageStream) -> None:
            await stream.reset()

        for protocol in (ASK, GENERATE):
            other.network.serve(protocol, gone)
        answered = (await frames_of(one, an_ask("hello", model="b")))[-1]
        assert isinstance(answered, Answered) and answered.served_by == one.peer and len(away.requests) == 1


async def test_a_model_that_is_withdrawn_is_asked_elsewhere_and_may_come_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_two() as (one, other, second):
        one.node.prefer(second)
        assert one.node.state().model == "b" and [row.model for row in one.node.state().served] == ["b", "a"]
        await frames_of(one, an_ask(LONG))
        await one.node.withdraw(second)
        await trio.sleep(2)
        assert one.node.own_models == ["a"] and one.node.model == "a"
        assert other.node.state().peers[0].models == ["a"]
        missing = (await frames_of(one, an_ask("hello", model="b")))[-1]
        assert isinstance(missing, Failed) and missing.code == "unknown_model"
        await trio.sleep(120)  # (of virtual time: heartbeats and lookups of the other model go on)
        await one.node.serve(second)
        await trio.sleep(2)
        answered = (await frames_of(other, an_ask(LONG, model="b")))[-1]
        assert isinstance(answered, Answered) and answered.served_by == one.peer
        assert not one.node.state().refused and not other.node.state().refused


async def test_an_answer_that_has_begun_ends_after_its_model_was_withdrawn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_two() as (one, other, second):
        for member in (one, other):
            if second.info.name not in one.node.own_models:
                await one.node.serve(second)
            async with member.node.ask(an_ask("hello", max_tokens=50, model="b")) as frames:
                seen = [await anext(frames) for _ in range(3)]
                await one.node.withdraw(second)
                seen += [frame async for frame in frames]
            assert isinstance(seen[-1], Answered)
