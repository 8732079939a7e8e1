"""Odd JSON made from valid values: other types, other keys, deep or wide ones, and text that is no JSON any more."""

import json
import random
from typing import Any

_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**53, 10**40, 1.5, 1e308, -0.0, "", "x", "a b", "<|im_end|>", "{{ 7 }}", "\x00",
    "\ud7ff", "😀", " \n", "name", [], {}, [[]], [None], {"": {}}, {"a": [1, {"b": 2}]}, "x" * 300,
)  # fmt: skip
_KEYS = (
    "", "a", "role", "content", "name", "type", "function", "arguments", "parameters", "properties", "items", "enum",
    "anyOf", "$ref", "const", "required", "tool_calls", "__class__", "get", "keys", "0", "<|im_end|>", "a b",
    "description",
)  # fmt: skip
_DEPTHS = (10, 63, 64, 65, 300, 900, 1_100, 20_000)


def odd_value(value: Any, rng: random.Random, wrongness: float) -> Any:
    """``value`` with something else at a share of its places."""
    if rng.random() < wrongness:
        return rng.choice(_ODD)
    if isinstance(value, list):
        items = [odd_value(item, rng, wrongness) for item in value]
        if rng.random() < wrongness:
            items.insert(rng.randrange(len(items) + 1), rng.choice(_ODD))
        return items * rng.choice((2, 30)) if rng.random() < wrongness / 10 else items
    if isinstance(value, dict):
        made = {key: odd_value(item, rng, wrongness) for key, item in value.items() if rng.random() >= wrongness / 3}
        if rng.random() < wrongness:
            made[rng.choice(_KEYS)] = rng.choice((*_ODD, value))
        return made
    return value


def odd_json(value: Any, rng: random.Random) -> str:
    """The text of ``value`` with no, some or only mistakes."""
    way = rng.random()
    if way < 0.04:
        return nested(rng)
    if way < 0.06:
        return json.dumps([0] * rng.choice((9_000, 12_000)))
    text = json.dumps(odd_value(value, rng, rng.choice((0.0, 0.02, 0.1, 0.4))), ensure_ascii=rng.random() < 0.5)
    if way < 0.16:
        at = rng.randrange(len(text) + 1)
        text = (
            text[:at]
            + rng.choice(("", '"', "[", "}", ",", "\\ud800", "\\", "NaN", "1e999", "9" * 4_200, "\x00"))
            + text[at + 1 :]
        )
    return text


def nested(rng: random.Random) -> str:
    """Brackets within brackets, closed or not."""
    depth = rng.choice(_DEPTHS)
    opening, inner, closing = rng.choice(
        (("[", "", "]"), ('{"a":', "1", "}"), ('{"items":', "{}", "}"), ("[{}, ", "0", "]"))
    )
    text = opening * depth + inner + closing * depth
    return text if rng.random() < 0.8 else opening * depth
