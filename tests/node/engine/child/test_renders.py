"""The threads that read texts: every error is an answer, and clients are charged for the time."""

import os
import queue
from collections.abc import Mapping

import pytest

from mycelia.node.engine import ipc, pipe
from mycelia.node.engine.child import renders
from mycelia.node.engine.child.chat import ChatTemplate
from mycelia.node.engine.child.controls import Controls
from mycelia.node.engine.child.renders import Renders
from mycelia.node.engine.prompts import PromptLimit
from mycelia.proto.wire.blocks import pack_tokens

LONG = "x" * (ipc.LONG_CHARS + 1)


class Bytes:
    bos_token = None
    controls = Controls([])
    special_texts: Mapping[str, str] = {}

    def tokenize(self, text: str, special: bool, continues: bool = False) -> list[int]:
        if "broken" in text:
            raise ZeroDivisionError("nobody expects this")
        return list(text.encode())


def piece(token: int) -> bytes:
    if token > 255:
        raise ValueError(f"token {token} is not in the vocabulary")
    return bytes([token])


class Read:
    """Renders with a pipe for replies, and the charges."""

    def __init__(self) -> None:
        self._fd, write_fd = os.pipe()
        self._frames = pipe.FrameBuffer()
        self._replies: list[ipc.FromChild] = []
        self.charged: queue.SimpleQueue[tuple[bytes, str]] = queue.SimpleQueue()
        template = ChatTemplate(None, Bytes(), limit=PromptLimit(60_000, 2))
        self.renders = Renders(
            template,
            piece,
            pipe.Replies(write_fd),
            lambda client, subnet, _: self.charged.put((client, subnet)),
        )

    def reply(self) -> ipc.FromChild:
        while not self._replies:
            self._replies += self._frames.feed(os.read(self._fd, 1 << 20))
        return self._replies.pop(0)


def test_whatever_goes_wrong_is_the_answer_to_its_question(capfd: pytest.CaptureFixture[str]) -> None:
    read = Read()
    read.renders.put(ipc.Parse(1, "broken"))
    read.renders.put(ipc.Render(2, [("user", "x", '{"tool_calls": 5}')]))
    read.renders.put(ipc.Spell(3, [pack_tokens([65]), pack_tokens([300])]))
    read.renders.put(ipc.Spell(4, [b"odd"]))
    read.renders.put(ipc.Parse(5, "x"))
    replies = [read.reply() for _ in range(5)]
    errors = [reply.error for reply in replies if isinstance(reply, ipc.Rendered | ipc.Spelled)]
    assert "ZeroDivisionError" in errors[0] and "tool_calls" in errors[1] and "300" in errors[2] and errors[3]
    assert replies[4] == ipc.Rendered(5, pack_tokens([ord("x")]), "")
    assert "nobody expects this" in capfd.readouterr().err, "a fault of ours is reported"
    read.renders.put(ipc.Parse(6, "x" * 60_001))
    too_long = read.reply()
    assert isinstance(too_long, ipc.Rendered) and too_long.is_too_long


def test_short_texts_pass_long_ones_and_what_takes_long_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renders, "CHARGED_S", 0.0)
    read = Read()
    read.renders.put(ipc.Parse(1, LONG, b"c" * 32, "subnet"))
    read.renders.put(ipc.Parse(2, "x", b"d" * 32))
    replies = [read.reply(), read.reply()]
    assert {reply.key for reply in replies if isinstance(reply, ipc.Rendered)} == {1, 2}
    charged = [read.charged.get(timeout=30), read.charged.get(timeout=30)]
    assert sorted(charged) == [(b"c" * 32, "subnet"), (b"d" * 32, "")]
