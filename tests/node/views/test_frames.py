import pytest

from mycelia.node.views.frames import frame_view, is_keep_alive
from mycelia.proto.wire.messages import KEEP_ALIVE, Begun, EntryFrame, Logprob, Text, TokenLogprobs

ENTRY = TokenLogprobs(chosen=Logprob(token=1, text=b"a", logprob=-0.5), top=())


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (KEEP_ALIVE, True),
        (Text(text="a"), False),
        (Text(text="", tokens=bytes(4)), False),
        (Text(text="", logprobs=(ENTRY,)), False),
        (Begun(served_by=b"peer", cached_tokens=0), False),
    ],
)
def test_only_a_frame_without_news_is_a_keep_alive(frame: EntryFrame, expected: bool) -> None:
    assert is_keep_alive(frame) is is_keep_alive(frame_view(frame)) is expected
