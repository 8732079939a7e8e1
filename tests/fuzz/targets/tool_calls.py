"""Hostile answers for ``ToolCallReader``, which takes any text as text or calls, however it is cut."""

import random

from mycelia.node.serve.openai.tool_calls import ToolCallReader

_NAMES = ("weather", "time")
_MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<tool_", "{", "}", "[", "]", ",", " ", "\n")
_VALUES = (
    '{"name": "time"}',
    '{"name": "time", "arguments": {"a": [1, 2.5e300, null]}}',
    '{"name": "weather", "parameters": "{}"}',
    '{"name": ["time"]}',
    '{"name": {"time": 1}, "arguments": 1}',
    '{"name": "unknown"}',
    '"\\ud800"',
    "1e999",
    "\u2028\x00é😀",
)
_CALLS = [f"<tool_call>{value}</tool_call>" for value in _VALUES]

Item = tuple[str, int]
"""The text, and the characters of each piece."""


class ToolCalls:
    """The text of an answer that may call functions."""

    name = "tool_calls"
    weight = 0.5

    def make(self, rng: random.Random) -> Item:
        if rng.random() < 0.02:
            depth = rng.randrange(800, 1_200)
            body = rng.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth))
            text = f'{rng.choice(_MARKS)}{{"name": "time", "arguments": {body}}}{rng.choice(_MARKS)}'
        else:
            text = "".join(rng.choice((*_MARKS, *_VALUES, *_CALLS)) for _ in range(rng.randrange(1, 16)))
        if rng.random() < 0.3:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(_MARKS) + text[at + rng.randrange(4) :]
        return text, rng.choice((1, 2, 7, len(text)))

    def check(self, item: Item) -> bool:
        text, size = item
        said, called = _read(text, len(text))
        assert _read(text, size) == (said, called), "where it is cut makes a difference"
        assert len(said) <= len(text) and all(name in _NAMES for name, _ in called)
        return bool(called)


def _read(text: str, size: int) -> tuple[str, list[tuple[str, str]]]:
    reader = ToolCallReader(_NAMES)
    said = "".join(reader.feed(text[at : at + size]) for at in range(0, len(text), size)) + reader.end()
    return said, [(call.name, call.arguments) for call in reader.calls]
