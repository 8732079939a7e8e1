"""What one answer says, in the parts that OpenAI's API has: content, thoughts and calls of functions.

The format of the model is known with Route. The text is read here, at the client's side of the swarm, and not where the
prompt enters: so the streams between nodes carry plain text, which any client can read, a node of another version need
not know a format, and an answer that moves to another entry node is read on from where it was.
"""

import re
import secrets
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mycelia.node.formats.calls import MAX_CALLS
from mycelia.node.formats.families import format_named
from mycelia.node.formats.pieces import (
    CallArguments,
    CallBegun,
    CallBroken,
    CallEnded,
    Content,
    Piece,
    Thought,
    WasThought,
)
from mycelia.node.formats.reader import AnswerReader
from mycelia.node.serve.openai.logprobs import ContentLogprobs
from mycelia.proto.wire.messages import Route, TokenLogprobs

_ID_CHARS = string.ascii_letters + string.digits
_KIMI_ID = re.compile(r"functions\.[\w.:/@+-]{1,100}:[0-9]{1,6}")


@dataclass
class Call:
    """A call, or in a stream the next part of one."""

    index: int
    id: str = ""
    name: str = ""
    """Empty, like the id, in later parts."""
    arguments: str = ""


@dataclass
class AnswerPart:
    """The next part of an answer: only one of the first three is there."""

    content: str = ""
    thought: str = ""
    call: Call | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class ReadAnswer:
    """Follows one answer, and keeps it whole."""

    def __init__(
        self, tools: Mapping[str, Any], with_logprobs: bool, reads_format: bool = True, max_calls: int = MAX_CALLS
    ) -> None:
        """tools: the parameters of each function that may be called. reads_format: otherwise all is content. max_calls:
        later calls are left out."""
        self._reads_format = reads_format
        self._max_calls = max_calls
        self._tools = tools
        self._reader: AnswerReader | None = None
        self._content: list[str] = []
        self._thought: list[str] = []
        self.calls: list[Call] = []
        """The whole ones, and at the end the one that is running."""
        self.logprobs: list[TokenLogprobs] = []
        """Those of the content."""
        self._spans = ContentLogprobs() if with_logprobs else None
        self._num_begun = 0
        self._leaves_out = False
        self.is_broken = False
        """A call broke off."""

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def thought(self) -> str:
        return "".join(self._thought)

    def begin(self, route: Route) -> None:
        """The answer comes from a model that writes the format of ``route``. Later routes of an answer change nothing:
        the model is the same."""
        self._reader = self._reader or self._new_reader(route.format, route.opened)

    def feed(self, text: str, logprobs: Sequence[TokenLogprobs]) -> list[AnswerPart]:
        """What is certain with the next part of the answer's text."""
        if self._spans is not None:
            self._spans.add(text, logprobs)
        return self._parts(self._text_reader.feed(text))

    def end(self) -> list[AnswerPart]:
        parts = self._parts(self._text_reader.end())
        if self._spans is not None and (left := self._spans.end()):
            self.logprobs += left
            parts.append(AnswerPart(logprobs=left))
        return parts

    @property
    def _text_reader(self) -> AnswerReader:
        if self._reader is None:  # (no entry node sends text before a route)
            self._reader = self._new_reader()
        return self._reader

    def _new_reader(self, format_: str = "", opened: str = "") -> AnswerReader:
        if not self._reads_format:
            return AnswerReader(format_named(""))
        return AnswerReader(format_named(format_), self._tools, opened)

    def _parts(self, pieces: Iterable[Piece]) -> list[AnswerPart]:
        parts: list[AnswerPart] = []
        for piece in pieces:
            if self._is_left_out(piece):
                continue
            match piece:
                case Content():
                    self._content.append(piece.text)
                    parts.append(AnswerPart(content=piece.text, logprobs=self._logprobs(piece)))
                case Thought():
                    self._thought.append(piece.text)
                    parts.append(AnswerPart(thought=piece.text))
                case WasThought():
                    self._thought += self._content
                    self._content.clear()
                    parts.append(AnswerPart(content=piece.text, logprobs=self._logprobs(piece)))
                    self.logprobs.clear()
                case CallBegun():
                    call = Call(self._num_begun, _call_id(piece.id), piece.name)
                    self._num_begun += 1
                    self.calls.append(call)
                    parts.append(AnswerPart(call=Call(call.index, call.id, call.name)))
                case CallArguments():
                    self.calls[-1].arguments += piece.json
                    parts.append(AnswerPart(call=Call(self.calls[-1].index, arguments=piece.json)))
                case CallEnded():
                    pass
                case CallBroken():
                    self.is_broken = True
                    self.calls.pop()
                    self._content.append(piece.text)
                    self._logprobs(piece)
        return _joined(parts)

    def _is_left_out(self, piece: Piece) -> bool:
        """Whether the piece belongs to a call beyond those that the client wants."""
        if isinstance(piece, CallBegun) and self._num_begun >= self._max_calls:
            self._leaves_out = True
        leaves_out = self._leaves_out
        if isinstance(piece, CallEnded | CallBroken):
            self._leaves_out = False
        return leaves_out and isinstance(piece, CallBegun | CallArguments | CallEnded | CallBroken)

    def _logprobs(self, piece: Content | WasThought | CallBroken) -> list[TokenLogprobs]:
        if self._spans is None:
            return []
        logprobs = self._spans.of(piece.at, piece.text)
        self.logprobs += logprobs
        return logprobs


def _joined(parts: list[AnswerPart]) -> list[AnswerPart]:
    """Fewer parts that say the same."""
    if len(parts) < 2:
        return parts
    joined: list[AnswerPart] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is None:
            joined.append(part)
        elif part.thought and last.thought:
            last.thought += part.thought
        elif part.content and last.content:
            last.content += part.content
            last.logprobs += part.logprobs
        elif part.call is not None and last.call is not None and part.call.index == last.call.index:
            last.call.arguments += part.call.arguments
        else:
            joined.append(part)
    return joined


def _call_id(own: str) -> str:
    """The id of a call. own: that of the model, which is kept if the model's template needs it in later turns. Others
    are made here, of nine letters and digits, because the templates of Mistral refuse any other."""
    return own if _KIMI_ID.fullmatch(own) else "".join(secrets.choice(_ID_CHARS) for _ in range(9))
