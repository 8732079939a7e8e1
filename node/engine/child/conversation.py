"""A conversation in the form that a chat template reads, and other forms of one that the template refuses."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, TypeVar

import msgspec

from mycelia.node.engine.child.abilities import THOUGHT_FIELDS, Abilities, thinking_parts
from mycelia.node.engine.child.tools import call_in_words, check_calls, result_in_words, with_tools
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import ChatMessage

_ROLE = re.compile(r"[A-Za-z0-9_-]{1,32}")
_MAX_JSON_VALUES, _MAX_JSON_DEPTH = 10_000, 64
"""Bounds for the tools, extras and options of one conversation."""
_PARTS = "content_parts"
"""An extra: the number of characters of each part of the content. The API's clients send contents in parts."""
_RESERVED = frozenset(("messages", "tools", "bos_token", "eos_token"))
_BETWEEN_TURNS = "\n\n"

Turn = dict[str, Any]
"""A turn as templates read it, but its content is a list of texts, or None."""

_Parsed = TypeVar("_Parsed", list[Any], dict[str, Any])


def read_turns(messages: Sequence[ChatMessage]) -> list[Turn]:
    """Raises LocalError for no messages, a role that is not a word, or invalid extras."""
    if not messages:
        raise LocalError("a conversation needs at least one message")
    turns = [_turn(message) for message in messages]
    check_values(turns)
    return turns


def read_options(options: str) -> dict[str, Any]:
    """``Ask.template_options``. Raises LocalError for what is no JSON object, or has a name that is not an option."""
    read = parsed("template options", options, dict)
    taken = sorted(_RESERVED & read.keys())
    if taken:
        raise LocalError(f"{taken[0]} is not an option of a chat template")
    check_values([read])
    return read


def parsed(name: str, text: str, kind: type[_Parsed]) -> _Parsed:
    """``text`` as JSON, empty for none. Raises LocalError."""
    try:
        return msgspec.json.decode(text, type=kind) if text else kind()
    except (msgspec.DecodeError, RecursionError, UnicodeError) as exc:
        raise LocalError(f"the {name} of the conversation are not valid: {exc}") from exc


def check_values(values: Iterable[Any]) -> None:
    """Raise LocalError when there are too many values in total, or too deeply nested ones."""
    num_values, level = 0, list(values)
    for _ in range(_MAX_JSON_DEPTH):
        num_values += len(level)
        if not level or num_values > _MAX_JSON_VALUES:
            break
        holders = [value for value in level if isinstance(value, dict | list)]
        level = [item for holder in holders for item in (holder.values() if isinstance(holder, dict) else holder)]
    if level:
        raise LocalError(
            f"tools, extras and options have over {_MAX_JSON_VALUES} values, or some {_MAX_JSON_DEPTH} deep"
        )


def _turn(message: ChatMessage) -> Turn:
    if not _ROLE.fullmatch(message.role):
        raise LocalError(f"role {message.role[:64]!r} is not a word of letters, digits, _ and -")
    extras = parsed("extras", message.extras, dict)
    check_calls(extras.get("tool_calls"))
    is_null = not message.content and "content" in extras and extras["content"] is None
    content = None if is_null else _cut(message.content, extras.pop(_PARTS, None))
    return {**extras, "role": message.role, "content": content}


def _cut(text: str, lengths: Any) -> list[str]:
    if lengths is None:
        return [text]
    is_list = isinstance(lengths, list) and all(type(length) is int and length >= 0 for length in lengths)
    if not is_list or sum(lengths) != len(text):
        raise LocalError(f"{_PARTS} of a message are no lengths that add up to its content")
    parts, start = [], 0
    for length in lengths:
        parts.append(text[start : start + length])
        start += length
    return parts or [""]


def forms(
    turns: Sequence[Turn], functions: Sequence[Any], abilities: Abilities
) -> Iterator[tuple[list[Turn], list[Any]]]:
    """The turns and functions as the template reads them, and then, for a template that refuses them, in forms that say
    the same: one call a turn, one turn of a role at a time, no turn of the system, no thoughts, functions in words."""
    given = list(functions) if abilities.reads_tools else []
    for form in _forms(turns, functions, abilities):
        yield [_for_template(turn, abilities) for turn in form], given
    if given:
        for form in _forms(turns, functions, replace(abilities, reads_tools=False)):
            yield [_for_template(turn, abilities) for turn in form], []


def _forms(turns: Sequence[Turn], functions: Sequence[Any], abilities: Abilities) -> Iterator[list[Turn]]:
    said = list(turns)
    if not abilities.reads_calls:
        said = [call_in_words(turn) for turn in said]
    if not abilities.reads_results or not (abilities.reads_tools or abilities.reads_calls):
        said = [result_in_words(turn) for turn in said]
    if not abilities.reads_tools and functions:
        said = with_tools(said, functions)
    if not abilities.reads_system:
        said = _without_system(said)
    yield said
    said = _one_call_a_turn(said)
    yield said
    said = [turn if turn["role"] == "tool" else _without(turn, "name") for turn in said]
    yield _joined(said)
    yield _joined(_without_system(said))
    if any(_thoughts(turn) for turn in said):
        yield [_without(turn, *THOUGHT_FIELDS) for turn in said]


def _without(turn: Turn, *fields: str) -> Turn:
    return {key: turn[key] for key in turn if key not in fields}


def _for_template(turn: Turn, abilities: Abilities) -> Turn:
    turn = dict(turn)
    role, parts = turn["role"], turn["content"]
    thoughts = _thoughts(turn)
    if turn.get("tool_calls"):
        turn["tool_calls"] = [_with_arguments(call, abilities.arguments_are_text) for call in turn["tool_calls"]]
        is_null = abilities.needs_null if not any(parts or ()) else False
        parts = None if is_null or (parts is None and abilities.takes_null) else parts or [""]
    if thoughts and abilities.thoughts:
        turn[abilities.thoughts] = thoughts
        if parts is None:
            return {**turn, "content": None}
    parts = parts or [""]
    text = "".join(parts)
    if thoughts and not abilities.thoughts:
        turn["content"] = [one for one in thinking_parts(thoughts, text) if one.get("text") != ""]
    elif abilities.only_parts or (len(parts) > 1 and role in abilities.part_roles):
        texts = parts if role in abilities.part_roles else [text]
        turn["content"] = [{"type": "text", "text": one} for one in texts]
    else:
        turn["content"] = text
    return turn


def _thoughts(turn: Turn) -> str:
    thoughts = turn.get(THOUGHT_FIELDS[0])
    return thoughts if isinstance(thoughts, str) else ""


def _with_arguments(call: dict[str, Any], as_text: bool) -> dict[str, Any]:
    """The call with its arguments as JSON text, or as an object if they are one."""
    function = call.get("function", call)
    arguments = function.get("arguments")
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments, type=dict[str, Any])
            check_values([arguments])
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return call
    else:
        return call
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def _one_call_a_turn(turns: Sequence[Turn]) -> list[Turn]:
    """The turns, with each of several calls in a turn of its own before its result."""
    parted, place = [], 0
    while place < len(turns):
        turn, place = turns[place], place + 1
        calls = turn.get("tool_calls") or ()
        if len(calls) < 2:
            parted.append(turn)
            continue
        results = list(takewhile(lambda result: result["role"] == "tool", turns[place:]))
        place += len(results)
        for number, call in enumerate(calls):
            parted.append(turn | {"tool_calls": [call]} | ({"content": [""]} if number else {}))
            wanted = call.get("id")
            answers = [one for one in results if one.get("tool_call_id") == wanted] or results[:1]
            for answer in answers[:1]:
                parted.append(answer)
                results.remove(answer)
        parted += results
    return parted


def _joined(turns: Iterable[Turn]) -> list[Turn]:
    """The turns, with one in the place of neighbours of the same role that have nothing but a content."""
    joined: list[Turn] = []
    for turn in turns:
        before = joined[-1] if joined else None
        if before is not None and before["role"] == turn["role"] and len(before) == len(turn) == 2:
            joined[-1] = {"role": turn["role"], "content": [_text(before) + _BETWEEN_TURNS + _text(turn)]}
        else:
            joined.append(turn)
    return joined


def _without_system(turns: Sequence[Turn]) -> list[Turn]:
    """The turns, with the system's texts before them at the start of the user's first turn, and later ones as turns of
    the user."""
    num_first = next((place for place, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    first, rest = (
        turns[:num_first],
        [{**turn, "role": "user"} if turn["role"] == "system" else turn for turn in turns[num_first:]],
    )
    if not first:
        return rest
    told = _BETWEEN_TURNS.join(_text(turn) for turn in first)
    place = next((place for place, turn in enumerate(rest) if turn["role"] == "user"), None)
    if place is None:
        return [{"role": "user", "content": [told]}, *rest]
    user = rest[place]
    rest[place] = {**user, "content": [told + _BETWEEN_TURNS, *(user["content"] or [""])]}
    return rest


def _text(turn: Turn) -> str:
    return "".join(turn["content"] or ())
