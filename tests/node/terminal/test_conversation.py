"""A conversation, line by line, with a scripted swarm."""

import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path

import pytest
import trio
import trio.testing
from rich.console import Console

from mycelia.node.commands.chat import next_text
from mycelia.node.terminal.conversation import HELP, Chat
from mycelia.node.views.frames import AnsweredView, BegunView, FailedView, FrameView, RouteView, TextView
from mycelia.proto.wire.messages import MAX_CHAT_MESSAGES, Ask, ChatMessage, Sampling

ANSWERED = AnsweredView("peer", "stop", 3, 2, 1, 0, 0, 0, 0, 0)
ROUTE = RouteView("peer", "the only node", 3, [])


class Swarm:
    """Answers with ``frames``, and then waits for ever if they have no end."""

    def __init__(self) -> None:
        self.asked: list[Ask] = []
        self.frames: list[FrameView] = [ROUTE, BegunView("peer", 0), TextView("Hel"), TextView("lo"), ANSWERED]
        self.out = StringIO()
        self.chat = Chat(self.ask, Console(file=self.out, width=200), Sampling(max_tokens=5), system="Be brief.")

    @asynccontextmanager
    async def ask(self, ask: Ask) -> AsyncIterator[AsyncIterator[FrameView]]:
        self.asked.append(ask)
        send, receive = trio.open_memory_channel[FrameView](100)
        for frame in self.frames:
            send.send_nowait(frame)
        if isinstance(self.frames[-1], AnsweredView | FailedView):
            send.close()
        yield receive

    def said(self) -> list[tuple[str, str]]:
        return [(turn.role, turn.content) for turn in self.chat.turns]


@pytest.fixture
def swarm() -> Swarm:
    return Swarm()


async def test_every_turn_brings_all_before_it(swarm: Swarm, capsys: pytest.CaptureFixture[str]) -> None:
    assert await swarm.chat.take("One\n") and await swarm.chat.take("  \n") and await swarm.chat.take("Two\n")
    assert capsys.readouterr().out == "Hello\nHello\n"
    roles = [[turn.role for turn in ask.messages] for ask in swarm.asked]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"]]
    assert swarm.asked[1].messages[2].content == "Hello" and swarm.asked[1].messages[3].content == "Two"


async def test_a_prompt_that_failed_is_forgotten(swarm: Swarm) -> None:
    swarm.frames = [FailedView("no_peer", "nobody is there", True)]
    assert await swarm.chat.take("One")
    assert "nobody is there" in swarm.out.getvalue() and not swarm.said()
    swarm.frames = [TextView("Hal"), FailedView("too_long", "the prompt is too long", False)]
    assert await swarm.chat.take("Two")
    assert "/clear" in swarm.out.getvalue() and swarm.said() == [("user", "Two"), ("assistant", "Hal")]


async def test_an_answer_that_is_broken_off_stays_as_far_as_it_came(swarm: Swarm) -> None:
    swarm.frames = [TextView("Hel")]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(swarm.chat.take, "One")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert swarm.said() == [("user", "One"), ("assistant", "Hel")]


async def test_commands(swarm: Swarm, tmp_path: Path) -> None:
    chat = swarm.chat
    for line in ("/explain", "/help", "One", "/explain", "/history", "/model other", "Two", "/undo", "/nonsense"):
        assert await chat.take(line)
    told = swarm.out.getvalue()
    for text in ("no prompt yet", *HELP, "the only node", "user: One", "asking other", "unknown command /nonsense"):
        assert text in told
    assert swarm.asked[-1].model == "other" and swarm.said() == [("user", "One"), ("assistant", "Hello")]
    path = tmp_path / "talk.json"
    for _ in range(2):
        assert await chat.take(f"/save {path}")
    assert "File exists" in swarm.out.getvalue()
    saved = json.loads(path.read_text())
    assert [turn["role"] for turn in saved["messages"]] == ["system", "user", "assistant"] and saved["model"] == "other"
    assert await chat.take("/save") and await chat.take(f"/save {tmp_path}/none/x") and await chat.take("/clear")
    assert not swarm.said() and not await chat.take("/quit")


async def test_a_saved_conversation_goes_on(swarm: Swarm, tmp_path: Path) -> None:
    chat, path = swarm.chat, tmp_path / "talk.json"
    assert await chat.take(f"/save {path}") and not path.exists() and "nothing to save" in swarm.out.getvalue()
    assert await chat.take("/undo") and "nothing to remove" in swarm.out.getvalue()
    assert await chat.take("One") and await chat.take(f"/save {path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before, system = swarm.said(), chat.system
    chat.system = ""
    assert await chat.take("/clear") and await chat.take(f"/load {path}")
    assert swarm.said() == before and chat.system == system
    path.write_text("[]")
    for argument in ("", f" {path}", f" {tmp_path}/none"):
        assert await chat.take(f"/load{argument}")
    assert swarm.said() == before and "cannot read" in swarm.out.getvalue()


@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        (["One\n", "Two\n"], ["One\n", "Two\n"]),
        (['"""One\n', "  Two\n", 'Three"""\n', "Four\n"], ["One\n  Two\nThree", "Four\n"]),
        (['"""\n', "\n", "One\n", "\n", "Two\n", '"""\n'], ["One\n\nTwo"]),
        (['"""One"""\n'], ["One"]),
        (['"""One\n', "Two\n"], ["One\nTwo"]),
    ],
)
def test_three_quotes_begin_and_end_a_text_of_several_lines(lines: list[str], texts: list[str]) -> None:
    left = iter(lines)
    read = iter(lambda: next_text(lambda prompt: next(left, None)), None)
    assert list(read) == texts


async def test_a_conversation_has_an_end(swarm: Swarm) -> None:
    swarm.chat.turns = [ChatMessage(role="user", content="x")] * MAX_CHAT_MESSAGES
    assert await swarm.chat.take("One")
    assert not swarm.asked and "/clear" in swarm.out.getvalue()
