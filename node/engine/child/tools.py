"""Descriptions of functions for chat templates without support for them: plain text in the form that Hermes and Qwen
models were trained on, and that small models follow best.
"""

import json
from collections.abc import Sequence
from typing import Any

from mycelia.proto.wire.errors import LocalError

_HEAD = (
    "You may call functions to answer. They are described here, one JSON object a line:\n<tools>\n{tools}\n</tools>\n"
    "To call one, write its name and its arguments as a JSON object between these marks, and nothing else:\n"
    '<tool_call>\n{{"name": "...", "arguments": {{...}}}}\n</tool_call>'
)

Turn = dict[str, Any]
"""See ``conversation.Turn``."""


def check_calls(calls: Any) -> None:
    """Raise LocalError unless ``calls``, the field tool_calls of a turn, is empty or a list of calls: as OpenAI's
    clients send them, or only the names and arguments of functions."""
    if not isinstance(calls, list | None):
        raise LocalError("tool_calls of a message is no list")
    for call in calls or ():
        if not isinstance(call, dict) or not isinstance(call.get("function", call), dict):
            raise LocalError("tool_calls of a message are objects, and so is the function of each")


def with_tools(turns: Sequence[Turn], tools: Sequence[Any]) -> list[Turn]:
    """``turns`` with ``tools`` described in the system's turn."""
    head = _HEAD.format(tools="\n".join(_json(tool) for tool in tools))
    if turns and turns[0]["role"] == "system":
        return [{"role": "system", "content": [*(turns[0]["content"] or ()), f"\n\n{head}"]}, *turns[1:]]
    return [{"role": "system", "content": [head]}, *turns]


def call_in_words(turn: Turn) -> Turn:
    """A turn with calls as one that tells them; any other turn unchanged."""
    if not turn.get("tool_calls"):
        return turn
    content = "".join(turn["content"] or ())
    told = "\n".join([*([content] if content else []), *map(_call, turn["tool_calls"])])
    return {key: value for key, value in turn.items() if key != "tool_calls"} | {"content": [told]}


def result_in_words(turn: Turn) -> Turn:
    """A call's result as a turn of the user; any other turn unchanged."""
    if turn["role"] != "tool":
        return turn
    content = "".join(turn["content"] or ())
    return {"role": "user", "content": [f"<tool_response>\n{content}\n</tool_response>"]}


def _call(call: dict[str, Any]) -> str:
    function = call.get("function", call)
    told = {"name": function.get("name", ""), "arguments": function.get("arguments", {})}
    return f"<tool_call>\n{_json(told)}\n</tool_call>"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
