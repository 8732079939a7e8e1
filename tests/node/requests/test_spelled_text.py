"""Control tokens of a model's format in the text of an answer, for clients that read the format."""

import pytest
import trio

from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.requests.answer_frames import AnswerFrames
from mycelia.node.requests.running import RunningAnswer
from mycelia.node.requests.spelled_text import SpelledText
from mycelia.proto.admission.byte_shares import ByteShares
from mycelia.proto.answers.spelling import Vocabulary
from mycelia.proto.wire.messages import MAX_TEXT_BYTES_PER_FRAME, EntryFrame, Logprob, Text, TokenLogprobs

PIECES = [b"", b"Hm", b".", b"", b"Yes", "é".encode()[:1], "é".encode()[1:], b""]
OPEN, CLOSE, OTHER = 0, 3, 7
SPELLED = SpelledText("hermes+think", Vocabulary.of(PIECES), {OPEN: "<think>", CLOSE: "</think>"})


@pytest.mark.parametrize(
    ("text", "tokens", "spelled"),
    [
        (b"Yes", [4], b"Yes"),
        (b"Hm.Yes", [OPEN, 1, 2, CLOSE, 4], b"<think>Hm.</think>Yes"),
        (b"", [OPEN], b"<think>"),
        (b"", [], b""),
        (b"", [OTHER], b""),
        (b"owedYes", [CLOSE, 4], b"owed</think>Yes"),  # (withheld by an attempt that broke)
        (b"Hm.", [OPEN, 1, 2, 4, CLOSE], b"<think>Hm."),  # (cut at a stop string)
        (b"Hm", [OPEN, 1, 2, CLOSE], b"<think>Hm"),
        ("é".encode()[:1], [OPEN, 5], b"<think>" + "é".encode()[:1]),
    ],
)
def test_control_tokens_stand_where_the_model_wrote_them(text: bytes, tokens: list[int], spelled: bytes) -> None:
    assert SPELLED.spelled(text, tokens) == spelled


def test_a_text_that_became_longer_comes_in_several_frames() -> None:
    frames = AnswerFrames(ByteShares(1 << 24), "")
    running = RunningAnswer(FakeEngine(), frames, 0.0, None, b"", "", spelled=SPELLED)
    running.deliver(b"Hm" * 32_000, [OPEN] * 1_000 + [1] * 32_000)
    told = [frame for frame in drained(frames) if isinstance(frame, Text)]
    assert "".join(frame.text for frame in told) == "<think>" * 1_000 + "Hm" * 32_000
    assert all(len(frame.text) <= MAX_TEXT_BYTES_PER_FRAME for frame in told)


def drained(frames: AnswerFrames) -> list[EntryFrame]:
    async def read() -> list[EntryFrame]:
        frames.close()
        return [frame async for frame in frames]

    return trio.run(read)


def test_logprobs_have_the_same_texts() -> None:
    entry = TokenLogprobs(
        chosen=Logprob(token=CLOSE, text=b"", logprob=-0.1),
        top=(Logprob(token=CLOSE, text=b"", logprob=-0.1), Logprob(token=1, text=b"Hm", logprob=-3)),
    )
    (told,) = SPELLED.logprobs((entry,))
    assert [told.chosen.text, *(top.text for top in told.top)] == [b"</think>", b"</think>", b"Hm"]


def test_a_prompt_that_ends_in_a_thought() -> None:
    assert SPELLED.opened_by([1, 2, OPEN]) == "<think>"
    assert SPELLED.opened_by([OPEN, 1, CLOSE]) == SPELLED.opened_by([]) == ""
