"""Serving nodes that lie: their frames are not passed on, and the answer comes from another node."""

import msgspec
import pytest
import trio

from mycelia.node.network.network import MessageStream
from mycelia.node.requests.entry import GENERATE
from mycelia.proto.wire.blocks import pack_tokens, unpack_tokens
from mycelia.proto.wire.messages import (
    Accepted,
    Answered,
    Failed,
    Final,
    Generate,
    Route,
    Sampling,
    Text,
    Tokens,
    Usage,
)
from tests.node.members import LONG, Member, an_ask, frames_of, open_members, text_of

USAGE = Usage(prompt_tokens=1, cached_tokens=1, completion_tokens=1, queue_ms=0, prefill_ms=0, decode_ms=0)


async def lured(one: Member, two: Member) -> None:
    """Announces that ``two`` holds LONG."""
    await frames_of(two, an_ask(LONG, max_tokens=1))
    await trio.sleep(3)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (list(b"abc"), b"\x1b[2J EVIL"),
        (list(b"abc"), b"abd"),
        (list(b"abc"), b""),
        ([1_000], b""),
    ],
    ids=["more", "other", "none", "no token"],
)
async def test_text_that_tokens_do_not_say_moves_the_answer(
    tokens: list[int], text: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_members(2) as (_, (one, two)):
        await lured(one, two)

        async def lie(stream: MessageStream) -> None:
            assert isinstance(await stream.receive(), Generate)
            await stream.send(Accepted(cached_tokens=256, vitals=two.engine.vitals()))
            await stream.send(Tokens(position=0, tokens=pack_tokens(tokens), text=text))
            await stream.send(Final(reason="stop", usage=USAGE, vitals=two.engine.vitals()))
            await stream.aclose()

        two.network.serve(GENERATE, lie)
        frames = await frames_of(one, an_ask(LONG, max_tokens=8))
        refused = one.node.state().refused
    assert isinstance(frames[0], Route) and frames[0].chosen == two.peer
    answered = frames[-1]
    assert isinstance(answered, Answered) and answered.served_by == one.peer
    assert "EVIL" not in text_of(frames) and refused == {"wrong_frame": 1}


async def test_a_stop_string_that_never_came_moves_the_answer(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2) as (_, (one, two)):
        await lured(one, two)

        async def lie(stream: MessageStream) -> None:
            assert isinstance(await stream.receive(), Generate)
            await stream.send(Accepted(cached_tokens=256, vitals=two.engine.vitals()))
            await stream.send(Tokens(position=0, tokens=pack_tokens(list(b"abc")), text=b"ab"))
            await stream.send(Final(reason="stop", usage=USAGE, vitals=two.engine.vitals()))
            await stream.aclose()

        two.network.serve(GENERATE, lie)
        sampling = Sampling(max_tokens=8, stop=("xyz",))
        frames = await frames_of(one, msgspec.structs.replace(an_ask(LONG), sampling=sampling))
        refused = one.node.state().refused
    assert isinstance(frames[-1], Answered) and frames[-1].served_by == one.peer and refused == {"wrong_frame": 1}
    assert not any(isinstance(frame, Failed) for frame in frames)
    told = [frame for frame in frames if isinstance(frame, Text)]
    assert text_of(frames).encode() == bytes(token for frame in told for token in unpack_tokens(frame.tokens))
    assert text_of(frames).startswith("abc") and len(text_of(frames)) == 8
