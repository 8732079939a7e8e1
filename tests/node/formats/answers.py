"""Reads answers for tests."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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

TOOLS: dict[str, Any] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "c"},
            "days": {"type": "integer", "description": "d"},
            "ok": {"type": "boolean", "description": "b"},
            "deep": {"type": "object", "description": "e", "additionalProperties": {"type": "array"}},
            "tags": {"type": "array", "items": {"type": "string"}, "description": "t"},
        },
        "required": ["city"],
    },
    "now": {"type": "object", "properties": {}},
    "say": {"type": "object", "properties": {"text": {"type": "string", "description": "s"}}},
}


@dataclass
class Read:
    """What an answer says. Broken calls count as content."""

    content: str = ""
    thought: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    num_broken: int = 0


def cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def pieces_of(
    name: str, parts: Iterable[str], tools: Mapping[str, Any] | None = TOOLS, opened: str = ""
) -> list[Piece]:
    reader = AnswerReader(format_named(name), tools, opened)
    return [*(piece for part in parts for piece in reader.feed(part)), *reader.end()]


def gathered(pieces: Sequence[Piece]) -> Read:
    """Checks the order of the pieces, too."""
    read, arguments, name = Read(), "", ""
    for piece in pieces:
        match piece:
            case Content():
                assert piece.text and not name
                read.content += piece.text
            case Thought():
                assert piece.text and not name
                read.thought += piece.text
            case WasThought():
                read.thought, read.content = read.thought + read.content, ""
            case CallBegun():
                assert not name and piece.name
                name, arguments = piece.name, ""
                read.ids.append(piece.id)
            case CallArguments():
                assert name and piece.json
                arguments += piece.json
            case CallEnded():
                assert name
                read.calls.append((name, json.loads(arguments)))
                assert isinstance(read.calls[-1][1], dict)
                name = ""
            case CallBroken():
                assert name
                read.num_broken += 1
                read.content += piece.text
                name = ""
    assert not name
    return read


def read(name: str, text: str, tools: Mapping[str, Any] | None = TOOLS, opened: str = "") -> Read:
    """What the answer says; checks that it says the same however it is cut."""
    whole = gathered(pieces_of(name, [text], tools, opened))
    for size in (1, 2, 3, 5):
        assert gathered(pieces_of(name, cut(text, size), tools, opened)) == whole, size
    return whole
