"""What a chat template can render, found by trying it once: templates differ in the shapes of messages that they read,
and most leave out in silence what they do not know."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mycelia.node.engine.child.template import RefusedError
from mycelia.proto.wire.errors import LocalError

_USER, _SYSTEM, _ANSWER = "Prompt7", "System7", "Answer7"
_THOUGHT, _FUNCTION, _KEY, _VALUE, _RESULT, _MORE = "Thought7", "function7", "key7", "value7", "Result7", "More7"
_CALL_ID = "call00007"  # (Mistral's templates want nine letters and digits)
_TOOL = {
    "type": "function",
    "function": {
        "name": _FUNCTION,
        "description": "Description7",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": "A text."}}},
    },
}
_RAW = re.compile(rf"\{{(?:[\"']type[\"']: [\"'](?:text|thinking)[\"']|'{_KEY}': '{_VALUE}')")
"""A part in the form of JSON or Python, or a call's arguments in Python's."""
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking", "thought")
"""The names that templates have for the thoughts of a turn, the most usual first."""
SWITCHES = ("enable_thinking", "thinking")
"""The names that templates have for the option to think."""

Turn = dict[str, Any]
Render = Callable[[dict[str, Any]], str]
"""Renders a context. Raises LocalError."""


@dataclass(frozen=True)
class Abilities:
    reads_system: bool = True
    """Otherwise it refuses a system's turn or leaves it out."""
    reads_tools: bool = True
    reads_calls: bool = True
    reads_results: bool = True
    arguments_are_text: bool = False
    """A call's arguments have to be JSON text, not an object."""
    takes_null: bool = False
    """The content of a turn with calls may be null."""
    needs_null: bool = False
    """It has to be null."""
    part_roles: frozenset[str] = frozenset()
    """Roles whose contents may be lists of several parts."""
    only_parts: bool = False
    """Contents have to be lists of parts."""
    tools_are_list: bool = False
    """Where there are no tools, they have to be an empty list."""
    thoughts: str = THOUGHT_FIELDS[0]
    """The field of a turn in which thoughts are; empty: they are a part of its content."""


def find_abilities(render: Render) -> Abilities:
    """render: called some 25 times."""
    trials = _Trials(render)
    user, system, answer = _turn("user", _USER), _turn("system", _SYSTEM), _turn("assistant", _ANSWER)
    result = {**_turn("tool", _RESULT), "name": _FUNCTION, "tool_call_id": _CALL_ID}
    if not trials.show(_USER, [user]) and not trials.show(_USER, [_in_parts(user)]):
        trials.no_tools = []
        if not trials.show(_USER, [user]):
            trials.no_tools = None
    only_parts = not trials.show(_USER, [user]) and trials.show(_USER, [_in_parts(user)])
    if only_parts:
        user, system, answer, result = map(_in_parts, (user, system, answer, result))
    calls = [
        {**_call(arguments), "content": content}
        for content in ("", None)
        for arguments in ({_KEY: _VALUE}, json.dumps({_KEY: _VALUE}))
    ]
    readable = [call for call in calls if trials.show(f"{_FUNCTION} {_VALUE}", [user, call, result], [_TOOL])]
    call = readable[0] if readable else calls[0]
    reads_system = trials.show(_SYSTEM, [system, user])
    conversations = {
        "user": (_USER, [_in_parts(user, _MORE)]),
        "system": (_SYSTEM, [_in_parts(system, _MORE), user]),
        "assistant": (_ANSWER, [user, _in_parts(answer, _MORE), user]),
        "tool": (_RESULT, [user, call, _in_parts(result, _MORE)]),
    }
    with_null = [user, {**call, "content": None}, result]
    return Abilities(
        reads_system=reads_system,
        reads_tools=trials.show(_FUNCTION, [user], [_TOOL]) or trials.show(_FUNCTION, [system, user], [_TOOL]),
        reads_calls=bool(readable),
        reads_results=trials.show(_RESULT, [user, call, result], [_TOOL]),
        arguments_are_text=isinstance(call["tool_calls"][0]["function"]["arguments"], str),
        takes_null=bool(readable) and trials.equal([user, call, result], with_null),
        needs_null=bool(readable) and call["content"] is None,
        part_roles=frozenset(
            role for role, (text, turns) in conversations.items() if trials.show(f"{text} {_MORE}", turns, [_TOOL])
        ),
        only_parts=only_parts,
        thoughts=_thoughts(trials, user, call, result),
        tools_are_list=trials.no_tools is not None,
    )


def _thoughts(trials: "_Trials", user: Turn, call: Turn, result: Turn) -> str:
    answer = _turn("assistant", _ANSWER)
    for field in THOUGHT_FIELDS:
        thought = {field: _THOUGHT}
        if trials.show(_THOUGHT, [user, {**call, **thought}, result], [_TOOL]):
            return field
        if trials.show(_THOUGHT, [user, {**answer, **thought}]):
            return field
    answer["content"] = thinking_parts(_THOUGHT, _ANSWER)
    return "" if trials.show(f"{_THOUGHT} {_ANSWER}", [user, answer, user]) else THOUGHT_FIELDS[0]


def thinking_parts(thoughts: str, text: str) -> list[dict[str, str]]:
    """A content with thoughts in it, in the form of Mistral's templates."""
    return [{"type": "thinking", "thinking": thoughts}, {"type": "text", "text": text}]


class _Trials:
    def __init__(self, render: Render) -> None:
        self._render = render
        self.no_tools: list[Any] | None = None
        self._is_endless = False
        """It exceeded a bound, so another trial would only take time."""

    def show(self, texts: str, messages: Sequence[Turn], tools: Sequence[Any] = ()) -> bool:
        """Whether the template renders ``messages`` with all words of ``texts``, and reads what it writes."""
        rendered = self._rendered(messages, tools)
        written = rendered.lower()  # (some templates change the case)
        return all(text in written for text in texts.lower().split()) and not _RAW.search(rendered)

    def equal(self, some: Sequence[Turn], others: Sequence[Turn]) -> bool:
        """Whether both are rendered, to texts that differ at most in line breaks."""
        texts = ["".join(self._rendered(turns, [_TOOL]).split()) for turns in (some, others)]
        return bool(texts[0]) and texts[0] == texts[1]

    def _rendered(self, messages: Sequence[Turn], tools: Sequence[Any]) -> str:
        """The text; empty if the template refuses ``messages``."""
        if self._is_endless:
            return ""
        options = dict.fromkeys([*SWITCHES, "add_thoughts"], True)
        try:
            return self._render({"messages": list(messages), "tools": list(tools) or self.no_tools, **options})
        except RefusedError:
            return ""
        except LocalError:
            self._is_endless = True
            return ""


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _call(arguments: object) -> Turn:
    call = {"id": _CALL_ID, "type": "function", "function": {"name": _FUNCTION, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _in_parts(turn: Turn, *more: str) -> Turn:
    content = turn["content"]
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return {**turn, "content": [*parts, *({"type": "text", "text": text} for text in more)]}
