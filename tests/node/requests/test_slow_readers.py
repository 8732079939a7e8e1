"""Answers that are read more slowly than they are written: the waiting frames are bounded."""

import msgspec
import pytest
import trio
import trio.testing

from mycelia.node.requests import answer_frames
from mycelia.node.requests.answer_frames import AnswerFrames
from mycelia.node.requests.entry import TOO_SLOW
from mycelia.proto.admission.byte_shares import ByteShares
from mycelia.proto.wire.messages import Answered, EntryFrame, Failed, Logprob, Text, TokenLogprobs
from tests.node.members import an_ask, frames_of, open_members, text_of

PIECE = Text(text="x" * 1_000)


def fill(frames: AnswerFrames) -> int:
    """The number of frames for which there was room."""
    num_put = 0
    while frames.put(PIECE):
        num_put += 1
    return num_put


async def test_what_waits_of_one_answer_is_bounded_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_frames, "MAX_ANSWER_BYTES", 100_000)
    shares = ByteShares(1_000_000)
    frames = AnswerFrames(shares, "client")
    num_put = fill(frames)
    assert 60 <= num_put <= 100 and shares.total > 90_000
    frames.close()
    assert [frame async for frame in frames] == [PIECE] * (num_put + 1), "none is lost"
    assert shares.total == 0
    left = AnswerFrames(shares, "client")
    fill(left)
    left.leave()
    assert shares.total == 0 and not left


async def test_all_answers_of_a_client_have_one_share() -> None:
    shares = ByteShares(1_000_000)
    greedy = [AnswerFrames(shares, "greedy") for _ in range(10)]
    for frames in greedy:
        fill(frames)
    assert 450_000 < shares.total < 550_000
    assert fill(AnswerFrames(shares, "honest")) > 50


async def test_alternatives_count() -> None:
    entry = Logprob(token=1, text=b"x", logprob=-0.1)
    shares = ByteShares(1_000_000)
    AnswerFrames(shares, "").put(
        msgspec.structs.replace(PIECE, logprobs=(TokenLogprobs(chosen=entry, top=(entry,) * 20),) * 10)
    )
    assert shares.total > 20_000


async def test_an_answer_that_is_not_read_ends_with_what_is_wrong(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_frames, "MAX_ANSWER_BYTES", 20_000)
    ask = an_ask("hello", 400)
    async with open_members(1, decode_rate=10.0) as (_, members):
        async with members[0].node.ask(ask) as stream:
            await trio.sleep(100)  # (of virtual time, in which it would end)
            frames: list[EntryFrame] = [frame async for frame in stream]
        ended = frames[-1]
        assert isinstance(ended, Failed) and ended.message == TOO_SLOW and not ended.retryable
        assert 5 < len(frames) < 60 and text_of(frames)
        assert members[0].engine.vitals().active_requests == 0, "the engine stopped as well"
        assert isinstance((await frames_of(members[0], ask))[-1], Answered), "read in time, it comes whole"
