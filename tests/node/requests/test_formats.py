"""A client that reads the model's format learns it from the entry node, and no other client sees anything of it."""

import dataclasses
import math

import msgspec
import pytest
import trio.testing

from mycelia.node.engine.engine import ModelInfo
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.model import TURN_TOKEN
from mycelia.node.network.network import MessageStream
from mycelia.node.requests.entry import ASK
from mycelia.node.requests.failures import failed_of
from mycelia.node.requests.rejoin import AnswerSoFar, rejoining
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import Answered, Ask, ChatMessage, Route
from tests.node.members import an_ask, frames_of, open_members, text_of
from tests.node.requests.test_rejoin import a_client


@pytest.fixture
def thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake engines whose prompts end with the opening mark of a thought."""
    plain = vars(FakeEngine)["info"].fget

    def info(engine: FakeEngine) -> ModelInfo:
        known: ModelInfo = plain(engine)
        return dataclasses.replace(known, format="hermes+think", spellings={TURN_TOKEN: "<think>"})

    monkeypatch.setattr(FakeEngine, "info", property(info))


def asks(**options: object) -> Ask:
    return msgspec.structs.replace(an_ask("x", 4), **options)


@pytest.mark.usefixtures("thinking")
async def test_a_grammar_leaves_the_thought_free(autojump_clock: trio.testing.MockClock) -> None:
    plain = asks().sampling
    limited = msgspec.structs.replace(plain, grammar="{}", grammar_kind="json_schema")
    async with open_members(1) as (_, (member,)):
        for sampling, reads_format in ((plain, True), (limited, True), (limited, False)):
            await frames_of(member, asks(sampling=sampling, reads_format=reads_format))
        told = [request.sampling for request in member.engine.requests]
    assert [(one.thought_opening, one.thought_closing) for one in told] == [
        ("", ""),
        ("<think>", "</think>"),
        ("", ""),
    ]


@pytest.mark.usefixtures("thinking")
@pytest.mark.parametrize(
    ("content", "opened"),
    [("<think>Hm", "<think>"), ("<think>Hm</think>Well", ""), ("Well", ""), ("<think>A</think><think>B", "<think>")],
)
async def test_an_answer_that_the_client_has_begun(
    autojump_clock: trio.testing.MockClock, content: str, opened: str
) -> None:
    messages = (*asks().messages, ChatMessage(role="assistant", content=content))
    async with open_members(1) as (_, (member,)):
        frames = await frames_of(member, asks(messages=messages, continues_final=True, reads_format=True))
    assert isinstance(frames[0], Route) and frames[0].opened == opened


@pytest.mark.usefixtures("thinking")
async def test_only_who_asks_learns_the_format(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2) as (_, members):
        told = [await frames_of(member, asks(reads_format=reads)) for member in members for reads in (True, False)]
        tokens = [*b"x"]
        as_tokens = await frames_of(
            members[0], asks(messages=(), tokens=b"".join(t.to_bytes(4, "little") for t in tokens), reads_format=True)
        )
    formats = [next(frame.format for frame in frames if isinstance(frame, Route)) for frames in (*told, as_tokens)]
    assert formats == ["hermes+think", "", "hermes+think", "", ""]
    assert len({text_of(frames) for frames in told}) == 1


async def test_an_entry_node_that_knows_no_formats_is_asked_again_without(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_client(1) as (_, (member,), client):
        serve = member.node.ask

        async def older(stream: MessageStream) -> None:
            ask = await stream.receive()
            assert isinstance(ask, Ask)
            if ask.reads_format:
                await stream.send(failed_of(RemoteError("not a message: Object contains unknown field `14`")))
                return
            async with serve(ask) as frames:
                async for frame in frames:
                    await stream.send(frame)

        member.network.serve(ASK, older)
        frames = [frame async for frame in rejoining(AnswerSoFar(asks(reads_format=True)), client.enter, math.inf)]
    assert isinstance(frames[-1], Answered) and len(client.entered) == 2


async def test_a_bad_request_is_not_asked_again(autojump_clock: trio.testing.MockClock) -> None:
    async with a_client(1) as (_, _members, client):
        wanted = asks(reads_format=True, model="another")
        frames = [frame async for frame in rejoining(AnswerSoFar(wanted), client.enter, math.inf)]
    assert len(frames) == len(client.entered) == 1
