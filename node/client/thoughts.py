"""Splits an answer's text into what is for the user and what the model thought, by the format that Route names."""

from collections.abc import Iterable

import msgspec

from mycelia.node.formats.families import format_named
from mycelia.node.formats.pieces import Content, Piece, Thought, WasThought
from mycelia.node.formats.reader import AnswerReader
from mycelia.node.views.frames import AnsweredView, FailedView, FrameView, RouteView, TextView


class ThoughtSplitter:
    """Follows one answer, also over the loss of its entry node."""

    def __init__(self) -> None:
        self._reader: AnswerReader | None = None

    def split(self, frame: FrameView) -> list[FrameView]:
        """The frames that stand for ``frame``: in texts, thoughts have a field of their own."""
        match frame:
            case RouteView():
                self._reader = self._reader or AnswerReader(format_named(frame.format), opened=frame.opened)
                return [frame]
            case TextView() if self._reader is not None:
                first, *more = _texts(self._reader.feed(frame.text))
                first = msgspec.structs.replace(first, logprobs=frame.logprobs, tokens=frame.tokens)
                return [first, *more] if first.text or first.thought or first.tokens or first.logprobs else []
            case AnsweredView() | FailedView() if self._reader is not None:
                reader, self._reader = self._reader, None
                return [*(text for text in _texts(reader.end()) if text.text or text.thought), frame]
            case _:
                return [frame]


def _texts(pieces: Iterable[Piece]) -> list[TextView]:
    """At least one text; each has its thought before its content."""
    texts = [TextView("")]
    for piece in pieces:
        last = texts[-1]
        match piece:
            case Thought() if last.text:
                texts.append(TextView("", thought=piece.text))
            case Thought():
                texts[-1] = TextView("", thought=last.thought + piece.text)
            case Content() | WasThought():
                texts[-1] = TextView(last.text + piece.text, thought=last.thought)
            case _:
                pass  # (without functions there are no calls)
    return texts
