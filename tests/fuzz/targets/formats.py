"""Hostile answers for ``AnswerReader``, which takes any text as content, thoughts or calls, however it is cut."""

import json
import random
from typing import Any

from mycelia.node.formats.families import CALLS, THOUGHTS, format_named
from mycelia.node.formats.pieces import CallArguments, CallBegun, CallBroken, CallEnded, Piece, Thought
from mycelia.node.formats.reader import AnswerReader

_TOOLS: dict[str, Any] = {
    "time": None,
    "weather": {
        "$defs": {"place": {"type": "string"}, "loop": {"$ref": "#/$defs/loop"}},
        "properties": {
            "place": {"$ref": "#/$defs/place"},
            "days": {"type": ["integer", "null"]},
            "loop": {"$ref": "#/$defs/loop"},
            "more": {"anyOf": [{"type": "array"}, {"type": "object"}]},
        },
    },
}
_VALUES = (
    '{"name": "time"}',
    '{"name": "time", "arguments": {"a": [1, 2.5e300, null]}}',
    '{"arguments": {"place": "x"}, "name": "weather"}',
    "{'name': 'weather', 'arguments': {'place': 'it\\'s', 'days': None}}",
    '{"name": "weather", "parameters": "{}"}',
    '{"function": {"name": "time", "arguments": "x"}}',
    '{"name": ["time"]}',
    '{"name": {"time": 1}, "arguments": 1}',
    '{"name": "unknown"}',
    '"\\ud800"',
    "1e999",
    "\u2028\x00é😀",
    "weather(place='x', more=[1, {'a': True}])",
    '{place:<|"|>x<|"|>,days:3}',
    "time",
    "weather",
    "functions.time:0",
    "place",
    "days",
)
_JUNK = ("{", "}", "[", "]", "(", ")", ",", ":", "=", " ", "\n", '"', "'", "\\", "<", ">", "```", "<|", "|>", "x")
_MARKS = {name: sorted(format_named(f"{name}+{name}").token_texts()) for name in {*CALLS, *THOUGHTS}}
_BEGINS = {
    name: [
        begin.source.replace("{name}", "weather").replace("{_}", "\n").replace("{...}", "").replace("{id}", "i")
        for form in format_named(name).forms
        for begin in (*form.begins, *form.ends, *form.arguments)
    ]
    for name in CALLS
}

Item = tuple[str, str, int, str]
"""The format, the text, the characters of each piece, and the mark with which the prompt ended."""


class Formats:
    """The text of an answer, in any format."""

    name = "formats"
    weight = 1.0

    def make(self, rng: random.Random) -> Item:
        calls, thoughts = rng.choice(sorted(CALLS)), rng.choice(sorted(THOUGHTS))
        if rng.random() < 0.02:
            depth = rng.randrange(40, 2_000)
            body = rng.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth))
            text = f'{rng.choice(_BEGINS[calls])}{{"name": "time", "arguments": {body}}}'
        else:
            sources = (
                _VALUES,
                _JUNK,
                _BEGINS[calls],
                _BEGINS[calls],
                _MARKS[calls] or _JUNK,
                _MARKS[thoughts] or _JUNK,
            )
            text = "".join(rng.choice(rng.choice(sources)) for _ in range(rng.randrange(1, 24)))
        if rng.random() < 0.05:
            text = (text * rng.randrange(2, 200))[:20_000]
        if text and rng.random() < 0.3:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(_JUNK) + text[at + rng.randrange(4) :]
        if rng.random() < 0.005:  # (as much as a frame has: what takes the square of a length is a hang)
            unit = rng.choice(rng.choice((_JUNK, _BEGINS[calls], _MARKS[calls] or _JUNK))) or "a"
            text = rng.choice(("", *_BEGINS[calls])) + unit * (65_536 // len(unit))
            return f"{calls}+{thoughts}", text, len(text) // 2, ""
        opened = rng.choice(("", "", *THOUGHTS[thoughts].opens, THOUGHTS[thoughts].turn))
        return f"{calls}+{thoughts}", text, rng.choice((1, 2, 7, len(text) or 1)), opened

    def check(self, item: Item) -> bool:
        name, text, size, opened = item
        whole = _said(_read(name, text, len(text) or 1, opened))
        assert _said(_read(name, text, size, opened)) == whole, "where it is cut makes a difference"
        return any(kind == "call" for kind, _ in whole)


def _read(name: str, text: str, size: int, opened: str) -> list[Piece]:
    reader = AnswerReader(format_named(name), _TOOLS, opened)
    pieces = [piece for at in range(0, len(text), size) for piece in reader.feed(text[at : at + size])]
    return [*pieces, *reader.end()]


def _said(pieces: list[Piece]) -> list[tuple[str, str]]:
    """(kind, text) of the parts; neighbours of one kind joined. Checks that whole calls are calls."""
    parts: list[tuple[str, str]] = []
    running, arguments = "", ""
    for piece in pieces:
        match piece:
            case CallBegun():
                assert piece.name in _TOOLS and not running
                running, arguments = piece.name, ""
            case CallArguments():
                assert running
                arguments += piece.json
            case CallEnded():
                assert isinstance(json.loads(arguments), dict)
                parts.append(("call", f"{running} {arguments}"))
                running = ""
            case CallBroken():
                assert running
                parts.append(("broken", piece.text))
                running = ""
            case _:
                assert piece.text and not running
                kind = "thought" if isinstance(piece, Thought) else type(piece).__name__
                if parts and parts[-1][0] == kind:
                    parts[-1] = (kind, parts[-1][1] + piece.text)
                else:
                    parts.append((kind, piece.text))
    assert not running
    return parts
