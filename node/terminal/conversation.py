"""``mycelia chat``: a conversation on the terminal. Each turn sends the whole conversation, most of which the swarm has
computed. It goes to the node that has it cached, so only the new text costs time."""

import json
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import click
import msgspec
from rich.console import Console

from mycelia.node.terminal.answer_text import AnswerText
from mycelia.node.terminal.tables import failure_text, printable, show_answered, show_route
from mycelia.node.views.frames import AnsweredView, FailedView, FrameView, RouteView, TextView
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import MAX_CHAT_MESSAGES, Ask, ChatMessage, Sampling

HELP = {
    "/help": "list these commands",
    "/explain": "show the candidate nodes of the last prompt, and why one was chosen",
    "/history": "show the conversation so far",
    "/undo": "remove the last prompt and its answer",
    "/clear": "start a new conversation",
    "/model NAME": "ask this model from now on; without a name, show the current one",
    "/save FILE": "write the conversation to a new file, as JSON",
    "/load FILE": "go on with the conversation of such a file",
    "/quit": "end the chat, like Ctrl-D",
}

AskSwarm = Callable[[Ask], AbstractAsyncContextManager[AsyncIterator[FrameView]]]


_MAX_SAVED_BYTES = 2**24


class _SavedTurn(msgspec.Struct):
    role: str
    content: str


class _Saved(msgspec.Struct):
    """What /save writes."""

    messages: list[_SavedTurn]
    model: str = ""


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@dataclass
class Chat:
    """One conversation. Lines go in through ``take``; answers go to stdout and everything else to ``console``."""

    ask: AskSwarm
    console: Console
    sampling: Sampling
    model: str = ""
    system: str = ""
    hides_thoughts: bool = False
    suffix: str = ""
    """Added to each model's name."""
    turns: list[ChatMessage] = field(default_factory=list)
    routes: list[RouteView] = field(default_factory=list)
    """The routes of the last prompt: several if it moved."""

    def greet(self) -> None:
        """Say at the start what is asked, and how."""
        model = self.model + self.suffix or "the model of the node that prompts enter at"
        self._say(f'asking {model} · /help lists commands · """ begins and ends several lines · Ctrl-D ends the chat')
        self._say("the nodes that answer can read what you write")

    async def take(self, line: str) -> bool:
        """Handle a line of input; False if it ends the conversation."""
        text = line.strip()
        if not text:
            return True
        if not text.startswith("/"):
            await self._answer(line.rstrip("\n"))
            return True
        name, _, argument = text.partition(" ")
        if name == "/quit":
            return False
        commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/explain": self._explain,
            "/history": self._history,
            "/undo": self._undo,
            "/clear": self._clear,
            "/model": self._model,
            "/save": self._save,
            "/load": self._load,
        }
        command = commands.get(name)
        if command is None:
            self._say(f"unknown command {name}; /help lists the commands")
        else:
            command(argument.strip())
        return True

    async def _answer(self, prompt: str) -> None:
        """Errors are shown, and their prompt is forgotten; of an answer that breaks off, the text so far is kept."""
        before = [ChatMessage(role="system", content=self.system)] if self.system else []
        user = ChatMessage(role="user", content=prompt)
        if len(before) + len(self.turns) >= MAX_CHAT_MESSAGES:
            self._say(f"a conversation has at most {MAX_CHAT_MESSAGES} messages; /clear starts a new one")
            return
        request = Ask(
            request_id=secrets.token_bytes(16),
            model=self.model + self.suffix,
            messages=(*before, *self.turns, user),
            sampling=self.sampling,
        )
        said: list[str] = []
        shown = AnswerText(self.hides_thoughts, is_safe=True)
        self.routes.clear()
        try:
            async with self.ask(request) as frames:
                async for frame in frames:
                    self._on_frame(frame, said, shown)
        except LocalError as exc:
            if said:
                click.echo()
            self._say(str(exc))
        finally:  # (also when cancelled)
            if said:
                self.turns += [user, ChatMessage(role="assistant", content="".join(said))]

    def _on_frame(self, frame: FrameView, said: list[str], shown: AnswerText) -> None:
        match frame:
            case TextView():
                if frame.text:
                    said.append(frame.text)
                shown.show(frame)
            case RouteView():
                self.routes.append(frame)
            case AnsweredView():
                click.echo()
                if note := shown.note(frame.finish_reason):
                    self._say(note)
                if self.console.is_terminal:
                    show_answered(self.console, frame)
            case FailedView(code="too_long"):
                raise LocalError(f"{frame.message}, or /clear")
            case FailedView():
                raise LocalError(failure_text(frame))
            case _:
                pass

    def _help(self, _: str) -> None:
        for command, meaning in HELP.items():
            self._say(f"{command:14} {meaning}")

    def _explain(self, _: str) -> None:
        if not self.routes:
            self._say("no prompt yet")
        for route in self.routes:
            show_route(self.console, route)

    def _history(self, _: str) -> None:
        for turn in self.turns:
            self._say(f"{turn.role}: {turn.content}")

    def _undo(self, _: str) -> None:
        if not self.turns:
            self._say("there is nothing to remove")
            return
        del self.turns[-2:]
        self._say(f"prompts left: {len(self.turns) // 2}")

    def _clear(self, _: str) -> None:
        self.turns.clear()
        self._say("a new conversation")

    def _model(self, name: str) -> None:
        if name:
            self.model = name
        self._say(f"asking {self.model or 'the model of the entry node'}")

    def _save(self, name: str) -> None:
        if not name:
            self._say("/save needs the name of a file")
            return
        if not self.turns:
            self._say("there is nothing to save yet")
            return
        path = Path(name).expanduser()
        turns = [ChatMessage(role="system", content=self.system)] if self.system else []
        told = [{"role": turn.role, "content": turn.content} for turn in (*turns, *self.turns)]
        try:
            with open(path, "x", encoding="utf-8", opener=_private) as file:
                json.dump({"model": self.model, "messages": told}, file, ensure_ascii=False, indent=2)
                file.write("\n")
        except (OSError, ValueError) as exc:
            self._say(f"cannot write {name}: {getattr(exc, 'strerror', None) or exc}")
        else:
            self._say(f"{len(self.turns)} messages written to {path}")

    def _load(self, name: str) -> None:
        if not name:
            self._say("/load needs the name of a file")
            return
        try:
            with Path(name).expanduser().open("rb") as file:
                saved = msgspec.json.decode(file.read(_MAX_SAVED_BYTES), type=_Saved)
        except (OSError, ValueError) as exc:
            self._say(f"cannot read {name}: {getattr(exc, 'strerror', None) or exc}")
            return
        turns = [ChatMessage(role=one.role, content=one.content) for one in saved.messages]
        self.system = turns[0].content if turns and turns[0].role == "system" else ""
        self.turns = turns[1:] if self.system else turns
        self._say(f"prompts so far: {len(self.turns) // 2}")

    def _say(self, text: str) -> None:
        self.console.print(printable(text), style="dim", soft_wrap=True)
