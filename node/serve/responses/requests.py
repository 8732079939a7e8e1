"""Turns a request of the Responses API into one of chat completions. Every function raises HttpError."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.http.invalid import mistake
from mycelia.node.serve.openai.request_types import ChatRequest
from mycelia.node.serve.openai.unserved import refuse_used
from mycelia.node.serve.responses.types import Item, Parts, ResponsesRequest, Tool

CUSTOM_SCHEMA = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
"""A custom tool takes a text: for the model it is a function with one."""


def to_chat(body: ResponsesRequest, earlier: Sequence[Item]) -> ChatRequest:
    """The same request in the words of chat completions. earlier: the items before the input, see ``store.py``."""
    refuse_used(body, "background", "conversation", "prompt", "top_logprobs")
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    messages += _turns([*earlier, *items_of(body)])
    if not messages:
        raise HttpError(400, "input is empty", param="input")
    allowed = _allowed(body.tool_choice)
    chat: dict[str, Any] = {
        "messages": messages,
        "model": body.model,
        "max_completion_tokens": body.max_output_tokens,
        "stream": body.stream,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "tools": [_told(tool) for tool, _ in tools_of(body) if allowed is None or tool.name in allowed] or None,
        "tool_choice": _choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "timeout_s": body.timeout_s,
        "cache_salt": body.cache_salt,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
    }
    if body.text is not None and (form := body.text.format) is not None:
        chat["response_format"] = {"type": form.type, "json_schema": {"name": form.name, "schema": form.schema}}
    try:
        return msgspec.convert(chat, ChatRequest)
    except msgspec.ValidationError as exc:
        raise HttpError(400, f"the request cannot be served: {mistake(exc, ChatRequest)}") from None


def items_of(body: ResponsesRequest) -> list[Item]:
    return [Item(role="user", content=body.input)] if isinstance(body.input, str) else body.input


def tools_of(body: ResponsesRequest) -> Iterator[tuple[Tool, str]]:
    """The tools that the model gets, and their namespaces (empty: none). Others are those that OpenAI runs, such
    as web_search: clients offer them unasked, and a model that does not know them does not use them. Raises HttpError
    for those that clients never offer unasked, as they name what is to be searched or called."""
    for tool in body.tools or ():
        if tool.type in ("mcp", "file_search"):
            raise HttpError(400, f"tools of type {tool.type} are not served", param="tools")
        namespace = tool.name if tool.type == "namespace" else ""
        for one in (tool.tools or ()) if namespace else (tool,):
            if one.type in ("function", "custom"):
                yield one, namespace


def _turns(items: Iterable[Item]) -> Iterator[dict[str, Any]]:
    """Thoughts and calls that follow each other, and a text before them, are one turn of the assistant."""
    turn: dict[str, list[Any]] | None = None
    for item in items:
        if item.type in ("reasoning", "function_call", "custom_tool_call") or _is_assistant(item):
            has_ended = turn is not None and "tool_calls" in turn and item.type in ("reasoning", "message")
            if turn is None or has_ended:
                if turn is not None:
                    yield _assistant(turn)
                turn = {}
            _extend(turn, item)
            continue
        if turn is not None:
            yield _assistant(turn)
            turn = None
        if item.type in ("function_call_output", "custom_tool_call_output"):
            yield {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
        elif item.type == "message":
            yield {"role": item.role, "content": _text(item.content)}
        else:
            raise HttpError(400, f"an input of type {item.type[:64]!r} is not served", param="input")
    if turn is not None:
        yield _assistant(turn)


def _assistant(turn: dict[str, list[Any]]) -> dict[str, Any]:
    """turn: the parts of each field."""
    return {"role": "assistant"} | {name: one if name == "tool_calls" else "".join(one) for name, one in turn.items()}


def _is_assistant(item: Item) -> bool:
    return item.type == "message" and item.role == "assistant"


def _extend(turn: dict[str, list[Any]], item: Item) -> None:
    """Adds what ``item`` says to the assistant's turn. Mutates."""
    if item.type == "message":
        turn.setdefault("content", []).append(_text(item.content))
    elif item.type == "reasoning":
        if thoughts := _text(item.content):  # (what is encrypted is not ours, and a summary is not what was thought)
            turn.setdefault("reasoning_content", []).append(thoughts)
    else:
        is_custom = item.type == "custom_tool_call"
        arguments: Any = {"input": item.input} if is_custom else item.arguments
        call = {"id": item.call_id, "function": {"name": item.name, "arguments": arguments}}
        turn.setdefault("tool_calls", []).append(call)


def _text(content: str | Parts | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type not in ("input_text", "output_text", "reasoning_text", "text", "refusal"):
            told = f"a content of type {part.type[:64]!r} is not served: the models read text"
            raise HttpError(400, told, param="input")
    return "".join(part.text or part.refusal for part in content)


def _choice(wanted: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """In the words of chat completions."""
    if isinstance(wanted, dict):
        if wanted.get("type") == "custom":
            return {"name": wanted.get("name")}
        if wanted.get("type") == "allowed_tools":
            return str(wanted.get("mode", "auto"))
    return wanted


def _allowed(wanted: str | dict[str, Any] | None) -> set[str] | None:
    """The names of the only tools that the model gets; None: it gets all."""
    if not isinstance(wanted, dict) or wanted.get("type") != "allowed_tools":
        return None
    tools = wanted.get("tools")
    named = [tool.get("name") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return {name for name in named if isinstance(name, str)}


def _told(tool: Tool) -> dict[str, Any]:
    parameters = CUSTOM_SCHEMA if tool.type == "custom" else tool.parameters
    return {"function": {"name": tool.name, "description": tool.description, "parameters": parameters}}
