"""An answer whose entry node is lost continues through another one: each token comes exactly once."""

import dataclasses
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.settings import FakeSettings
from mycelia.node.network.identity import new_identity
from mycelia.node.network.memory import MemorySwarm
from mycelia.node.network.network import MessageStream, Network, NetworkError, NetworkSettings
from mycelia.node.requests.answer_frames import AnswerFrames
from mycelia.node.requests.entry import ASK, KEEP_ALIVE_S, Entry
from mycelia.node.requests.own_models import OwnModels
from mycelia.node.requests.rejoin import MAX_FRUITLESS, SILENCE_DEADLINE_S, AnswerSoFar, OpenEntry, rejoining
from mycelia.node.requests.running import RunningAnswer
from mycelia.node.requests.salts import Salts
from mycelia.node.telemetry.requests import RequestLog
from mycelia.proto.admission.byte_shares import ByteShares
from mycelia.proto.wire.blocks import pack_tokens, unpack_tokens
from mycelia.proto.wire.codec import MAX_MESSAGE_BYTES, fits
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import (
    KEEP_ALIVE,
    MAX_TEXT_TOKENS,
    Answered,
    Ask,
    ChatMessage,
    EntryFrame,
    Failed,
    Route,
    Text,
)
from tests.node.members import LONG, Member, an_ask, frames_of, open_members, text_of
from tests.proto.examples import LOGPROBS

ANSWER_TOKENS = 30


class LightClient:
    """Enters at the members in turn, and last at the one that it lost."""

    def __init__(self, network: Network, members: Sequence[Member]) -> None:
        self._network = network
        self._members = members
        self.entered: list[bytes] = []

    async def enter(self, ask: Ask, lost: bytes | None) -> MessageStream:
        for member in sorted(self._members, key=lambda member: member.peer == lost):
            try:
                stream: MessageStream = await self._network.open(member.peer, ASK)
            except NetworkError:
                continue
            await stream.send(ask)
            self.entered.append(member.peer)
            return stream
        raise NetworkError("nobody is left")


@asynccontextmanager
async def a_client(
    count: int, models: Sequence[str] = (), **engine_options: float
) -> AsyncIterator[tuple[MemorySwarm, list[Member], LightClient]]:
    options: dict[str, Any] = {"decode_rate": 10.0, **engine_options}
    async with open_members(count, models=models, **options) as (swarm, members):
        settings = NetworkSettings(identity=new_identity(), overlay=False)
        async with swarm.open_network(settings) as network:
            for member in members:
                swarm.link(network.peer_id, member.peer)
            yield swarm, members, LightClient(network, members)


def told_tokens(frames: Sequence[EntryFrame]) -> list[int]:
    return [token for frame in frames if isinstance(frame, Text) for token in unpack_tokens(frame.tokens)]


@pytest.mark.parametrize("lost_after", [0, 1, 5, 20, ANSWER_TOKENS - 1])
async def test_the_entry_node_vanishes_mid_answer(autojump_clock: trio.testing.MockClock, lost_after: int) -> None:
    """The lost node also served, so only what the client has is left."""
    ask = an_ask(LONG, ANSWER_TOKENS)
    async with a_client(3) as (swarm, members, client):
        expected = await frames_of(members[0], ask)
        frames: list[EntryFrame] = []
        with trio.fail_after(300):
            async with aclosing(rejoining(AnswerSoFar(ask), client.enter, math.inf)) as stream:
                async for frame in stream:
                    frames.append(frame)
                    if len(told_tokens(frames)) >= lost_after and len(client.entered) == 1:
                        swarm.cut(client.entered[0])
    answered, wanted = frames[-1], expected[-1]
    assert isinstance(answered, Answered) and isinstance(wanted, Answered), answered
    assert len(client.entered) == 2 and client.entered[0] != client.entered[1]
    assert text_of(frames) == text_of(expected) and told_tokens(frames) == told_tokens(expected)
    assert answered.usage.completion_tokens == wanted.usage.completion_tokens
    assert answered.resumed == (1 if lost_after else 0)


async def test_the_node_that_a_prompt_was_passed_on_to_vanishes(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(3, models=("small", "large", "large"), decode_rate=10.0) as (swarm, members):
        small = members[0]
        ask = an_ask(LONG, ANSWER_TOKENS, model="large")
        expected = await frames_of(small, ask)
        frames: list[EntryFrame] = []
        cut: list[bytes] = []
        with trio.fail_after(300):
            async with small.node.ask(ask) as stream:
                async for frame in stream:
                    frames.append(frame)
                    if len(told_tokens(frames)) >= 5 and not cut:
                        served_by = next(frame.chosen for frame in frames if isinstance(frame, Route))
                        cut.append(served_by)
                        swarm.cut(served_by)
    assert isinstance(frames[-1], Answered) and frames[-1].served_by not in cut
    assert text_of(frames) == text_of(expected)


async def until_the_end(ask: Ask, open_entry: OpenEntry, on_frame: Callable[[], None]) -> list[EntryFrame]:
    frames: list[EntryFrame] = []
    with trio.fail_after(2_000):
        async with aclosing(rejoining(AnswerSoFar(ask), open_entry, math.inf)) as stream:
            async for frame in stream:
                frames.append(frame)
                on_frame()
    return frames


async def test_a_prompt_with_no_room_for_what_was_answered_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The tokens that the client has are part of its next request."""
    content = "x" * (MAX_MESSAGE_BYTES // 2)
    messages = tuple(ChatMessage(role="user", content=content[: len(content) - cut]) for cut in (0, 170))
    ask = msgspec.structs.replace(an_ask(LONG, ANSWER_TOKENS), messages=messages)
    assert fits(ask)
    entered: list[Ask] = []

    class LostAfterSome:
        peer = new_identity().peer_id

        async def receive(self) -> EntryFrame:
            if len(entered) == 2:
                raise NetworkError("gone")
            entered.append(ask)
            return Text(text="some", tokens=pack_tokens(range(ANSWER_TOKENS)))

        async def reset(self) -> None:
            return

    async def enter(rest: Ask, lost: bytes | None) -> MessageStream:
        entered.append(rest)
        return LostAfterSome()  # type: ignore[return-value]

    frames = await until_the_end(ask, enter, lambda: None)
    assert isinstance(frames[-1], Failed) and frames[-1].code == "too_long" and not frames[-1].retryable
    assert len(entered) == 2, "nobody else is asked"


async def test_nobody_is_left(autojump_clock: trio.testing.MockClock) -> None:
    async with a_client(2) as (swarm, members, client):

        def cut_all() -> None:
            for member in members:
                swarm.cut(member.peer)

        with pytest.raises(NetworkError, match="nobody is left"):
            await until_the_end(an_ask(LONG), client.enter, cut_all)


async def test_entry_nodes_that_all_break_off_are_not_tried_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    async with a_client(2) as (_, _, client):

        async def enter_and_break(ask: Ask, lost: bytes | None) -> MessageStream:
            stream = await client.enter(ask, lost)
            await stream.reset()
            return stream

        with pytest.raises(NetworkError):
            await until_the_end(an_ask(LONG), enter_and_break, lambda: None)
    assert len(client.entered) == MAX_FRUITLESS


@pytest.mark.parametrize(
    ("answered", "max_tokens", "message"),
    [
        (b"123", 8, "multiple of 4"),
        (pack_tokens([9_999]), 8, "below"),
        (pack_tokens([97] * 9), 8, "than the request allows"),
    ],
)
async def test_impossible_answers_so_far_are_refused(
    autojump_clock: trio.testing.MockClock, answered: bytes, max_tokens: int, message: str
) -> None:
    async with open_members(1) as (_, (one,)):
        ask = msgspec.structs.replace(an_ask(LONG, max_tokens), answered=answered)
        (failed,) = await frames_of(one, ask)
    assert isinstance(failed, Failed) and failed.code == "bad_request" and message in failed.message
    assert not one.engine.requests


async def test_nobody_goes_on_with_another_models_answer(autojump_clock: trio.testing.MockClock) -> None:
    """The request names no model, so the first node's model answers."""
    async with a_client(2, models=("small", "large")) as (swarm, members, client):
        num_told = 0

        def cut_the_first() -> None:
            nonlocal num_told
            num_told += 1
            if num_told == 6:
                swarm.cut(members[0].peer)

        with pytest.raises(NetworkError, match="not the one that began"):
            await until_the_end(an_ask(LONG, ANSWER_TOKENS), client.enter, cut_the_first)
    assert not members[1].engine.requests


async def test_only_the_end_of_an_answer_was_lost(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, (one,)):
        whole = await frames_of(one, an_ask(LONG, 8))
        num_served = len(one.engine.requests)
        ask = msgspec.structs.replace(an_ask(LONG, 8), answered=pack_tokens(told_tokens(whole)))
        (end,) = await frames_of(one, ask)
    assert isinstance(end, Answered) and end.reason == "length" and end.usage.completion_tokens == 8
    assert len(one.engine.requests) == num_served


async def test_an_entry_node_cannot_send_more_than_was_asked_for(autojump_clock: trio.testing.MockClock) -> None:
    async with a_client(2) as (_, members, client):

        async def flood(stream: MessageStream) -> None:
            await stream.receive()
            while True:
                await stream.send(Text(text="", tokens=pack_tokens([1])))

        members[0].network.serve(ASK, flood)
        frames = await until_the_end(an_ask("x", 4), client.enter, lambda: None)
    assert isinstance(frames[-1], Failed) and "broke the protocol" in frames[-1].message and len(frames) == 5


@pytest.mark.parametrize("text", [Text(text="x" * 60_000), Text(text="", logprobs=(LOGPROBS,) * 32)])
async def test_an_entry_node_that_says_more_than_tokens_have_is_not_listened_to(
    autojump_clock: trio.testing.MockClock, text: Text
) -> None:
    """Tokens are optional, and a client that collects the answer would collect all of this."""

    async def flood(stream: MessageStream) -> None:
        await stream.receive()
        for _ in range(1_000):
            await stream.send(text)

    async with a_client(2) as (_, members, client):
        members[0].network.serve(ASK, flood)
        frames = await until_the_end(an_ask("x", 40), client.enter, lambda: None)
    assert isinstance(frames[-1], Failed) and "more text than" in frames[-1].message and len(frames) <= 3


@pytest.mark.parametrize("tells", [KEEP_ALIVE, None], ids=["still there", "nothing"])
async def test_an_entry_node_that_goes_on_with_nothing_is_left(
    autojump_clock: trio.testing.MockClock, tells: Text | None
) -> None:
    async def stall(stream: MessageStream) -> None:
        ask = await stream.receive()
        assert isinstance(ask, Ask)
        await stream.send(Route(chosen=b"me", reason="", prompt_tokens=1, candidates=(), namespace=namespace))
        await stream.send(Text(text=whole[:2], tokens=pack_tokens(list(whole[:2].encode()))))
        while tells:
            await trio.sleep(KEEP_ALIVE_S)
            await stream.send(tells)
        await trio.sleep_forever()

    async with a_client(2) as (_, members, client):
        whole = text_of(await frames_of(members[1], an_ask("x", 8)))
        namespace = members[1].engine.info.namespace
        members[0].network.serve(ASK, stall)
        frames = await until_the_end(an_ask("x", 8), client.enter, lambda: None)
    assert isinstance(frames[-1], Answered) and text_of(frames) == whole
    assert client.entered == [member.peer for member in members]


def test_the_tokens_so_far_are_bounded_and_whole() -> None:
    so_far = AnswerSoFar(an_ask("x", 2))
    so_far.routed(b"n" * 16)
    so_far.add(pack_tokens([1]))
    with pytest.raises(RemoteError):
        so_far.routed(b"m" * 16)
    for bad in (b"123", pack_tokens([1, 2])):
        with pytest.raises(RemoteError):
            AnswerSoFar(so_far.rest()).add(bad)
    assert (so_far.rest().answered, so_far.rest().namespace) == (pack_tokens([1]), b"n" * 16) and so_far.num_resumed(
        0
    ) == 0
    so_far.num_rejoins = 2
    assert so_far.num_resumed(1) == 2


@pytest.mark.parametrize("slow", [0, 1])
async def test_a_prompt_that_takes_long_is_no_loss_of_a_node(autojump_clock: trio.testing.MockClock, slow: int) -> None:
    """Laptops take minutes for thousands of tokens, at the entry node or behind it: clients get keep-alive messages."""
    async with a_client(2, prefill_rate=20.0, cells=16_384) as (_, members, client):
        engine = members[slow].engine  # (the prompt goes to the other one)
        engine.settings = dataclasses.replace(engine.settings, prefill_rate=2.0)
        await frames_of(members[slow], an_ask("x", 1))
        frames, told_at = list[EntryFrame](), [trio.current_time()]
        async with aclosing(rejoining(AnswerSoFar(an_ask(17 * LONG, 3)), client.enter, math.inf)) as stream:
            async for frame in stream:
                frames.append(frame)
                told_at.append(trio.current_time())
    answered = frames[-1]
    assert isinstance(answered, Answered) and answered.usage.completion_tokens == 3
    assert answered.served_by == members[1 - slow].peer and client.entered == [members[0].peer]
    assert told_at[-1] - told_at[0] > 2 * SILENCE_DEADLINE_S
    assert max(late - soon for soon, late in pairwise(told_at)) <= 2 * KEEP_ALIVE_S


async def test_who_has_only_just_come_is_told_nothing(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Otherwise a refusal a moment later could no longer be the status of the response."""
    engine = FakeEngine(FakeSettings())
    entry = Entry(OwnModels(engine), None, lambda event: None, lambda *_: 1.0, RequestLog(), Salts(bytes), str)  # type: ignore[arg-type]
    await nursery.start(entry.run)
    await trio.sleep(0.9 * KEEP_ALIVE_S)
    async with entry.ask(an_ask("a prompt that nobody ever answers")) as waiting:
        assert isinstance(waiting, AnswerFrames)
        await trio.sleep(KEEP_ALIVE_S)
        assert not waiting
        await trio.sleep(KEEP_ALIVE_S)
        assert await anext(waiting) == KEEP_ALIVE
        await trio.sleep(3 * KEEP_ALIVE_S)
        assert len(waiting) == 1, "as long as nobody reads, no more"


async def test_text_and_tokens_never_come_apart() -> None:
    """Frames may end inside a character, as those of a full batch do."""
    waiting = AnswerFrames(ByteShares(1_000_000), "")
    running = RunningAnswer(FakeEngine(), waiting, 0.0, None, b"", "")
    euro = "€".encode()
    for tokens, data in (([1], b"a" + euro[:1]), ([2], euro[1:] + b"b"), ([3], euro[:2]), ([4], b""), ([5], euro[2:])):
        running.deliver(data, tokens)
    running.deliver(b"c", [6] * (MAX_TEXT_TOKENS + 1))
    running.deliver(b"", is_last=True)
    waiting.close()
    frames = [frame async for frame in waiting]
    assert text_of(frames) == "a€b€c" and told_tokens(frames)[:5] == [1, 2, 3, 4, 5]
    assert [(f.text, unpack_tokens(f.tokens)) for f in frames if isinstance(f, Text)][:2] == [("a", []), ("€b", [1, 2])]
    assert len(told_tokens(frames)) == 5 + MAX_TEXT_TOKENS + 1
