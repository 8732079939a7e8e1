"""Framing between the node and its engine process."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.node.engine import ipc, pipe
from mycelia.proto.wire.errors import LimitExceeded, LocalError
from mycelia.proto.wire.messages import Logprob, Sampling, TokenLogprobs, Usage, Vitals

USAGE = Usage(prompt_tokens=1, cached_tokens=2, completion_tokens=3, queue_ms=4, prefill_ms=5, decode_ms=6)
LIKELY = Logprob(token=1, text=b"\xc3", logprob=-0.5)
VITALS = Vitals(queued_tokens=1, active_requests=2, waiting_requests=3, slots=4)
FROM_CHILD: list[ipc.FromChild] = [
    ipc.Loaded(b"n" * 16, 8192, 49152, "prefix"),
    ipc.Started(1, 20),
    ipc.Generated(1, b"\x01\0\0\0", b"\xc3"),
    ipc.Generated(1, b"\x01\0\0\0", b"\xc3", (TokenLogprobs(chosen=LIKELY, top=(LIKELY,)),)),
    ipc.Ended(1, "stop", USAGE),
    ipc.Refused(2, "too_long", "no", False),
    ipc.Rendered(3, b"", "refused"),
    ipc.Embedded(4, [b"\0\0\x80?"], ""),
    ipc.CacheDelta([1, 2], [ipc.StoredLeaf(3, b"\x01\0\0\0", 0, b"tag")], True),
    ipc.LoadChanged(VITALS),
    ipc.LoadFailed("bad file"),
]


@given(st.lists(st.integers(1, 200), max_size=20))
def test_messages_survive_any_chopping(sizes: list[int]) -> None:
    data = b"".join(pipe.encode(message) for message in FROM_CHILD)
    frames, messages = pipe.FrameBuffer(), []
    for size in [*sizes, len(data)]:
        messages += frames.feed(data[:size])
        data = data[size:]
    assert messages == FROM_CHILD


def test_the_child_reads_until_the_end() -> None:
    sent: list[ipc.ToChild] = [
        ipc.Submit(1, b"\x01\0\0\0", Sampling(max_tokens=4, temperature=0.5, seed=7, stop=("é",)), 0),
        ipc.Cancel(1),
        ipc.Embed(3, [b"\x01\0\0\0"]),
        ipc.Render(2, [("user", "hi" * 1_000_000, "")]),
    ]
    stream = io.BytesIO(b"".join(pipe.encode(message) for message in sent) + b"\x05\0\0\0ab")
    assert [pipe.read_message(stream) for _ in sent] == sent
    assert pipe.read_message(stream) is None


def test_frames_are_bounded_both_ways() -> None:
    with pytest.raises(LimitExceeded):
        pipe.encode(ipc.Submit(1, bytes(pipe.MAX_FRAME_BYTES), Sampling(max_tokens=1), 0))
    with pytest.raises(LocalError, match="claims"):
        pipe.FrameBuffer().feed(b"\xff\xff\xff\xff")
    with pytest.raises(LocalError, match="nonsense"):
        pipe.FrameBuffer().feed(b"\x01\0\0\0\xc1")
