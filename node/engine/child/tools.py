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


def check_calls(calls: Any) -> None:
    """Raise LocalError unless ``calls``, the field tool_calls of a turn, is empty or a list of calls: as OpenAI's
    clients send them, or only the names and arguments of functions."""
    if not isinstance(calls, list | None):
        raise LocalError("tool_calls of a message is no list")
    for call in calls or ():
        if not isinstance(call, dict) or not isinstance(call.get("function", call), dict):
            raise LocalError("tool_calls of a message are objects, and so is the function of each")


def told_in_words(turns: Sequence[dict[str, Any]], tools: Sequence[Any]) -> list[dict[str, Any]]:
    """``turns`` for a template that reads only role and content: the system's turn describes ``tools``, and calls and
    their results are texts in the turns of their roles."""
    told = [_in_words(turn) for turn in turns]
    if not tools:
        return told
    head = _HEAD.format(tools="\n".join(_json(tool) for tool in tools))
    if told and told[0]["role"] == "system":
        return [{"role": "system", "content": f"{told[0]['content']}\n\n{head}"}, *told[1:]]
    return [{"role": "system", "content": head}, *told]


def _in_words(turn: dict[str, Any]) -> dict[str, Any]:
    content = turn["content"]
    if turn["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = [_call(call) for call in turn.get("tool_calls") or ()]
    return {"role": turn["role"], "content": "\n".join([*([content] if content else []), *calls])}


def _call(call: dict[str, Any]) -> str:
    function = call.get("function", call)
    told = {"name": function.get("name", ""), "arguments": function.get("arguments", {})}
    return f"<tool_call>\n{_json(told)}\n</tool_call>"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
