"""Turns a request of an Anthropic client into one of an OpenAI client. Every function raises HttpError."""

from collections.abc import Iterator
from typing import Any

import msgspec

from mycelia.node.serve.anthropic.types import Block, Content, CountRequest, MessagesRequest, Tool, Turn
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.http.invalid import mistake
from mycelia.node.serve.openai.request_types import ChatRequest
from mycelia.node.serve.openai.unserved import refuse_used

_BILLING = "x-anthropic-billing-header:"
"""The first words of a part that Claude Code puts before its system prompt. It differs in every request, so that no
prefix would be the same, and says nothing to a model."""
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def to_chat(body: CountRequest) -> ChatRequest:
    """The same request in OpenAI's words."""
    refuse_used(body, "mcp_servers", "container")
    chat: dict[str, Any] = {"messages": list(_turns(body)), "model": body.model}
    if body.tools:
        chat["tools"] = [_tool(tool) for tool in body.tools]
    if (choice := body.tool_choice) is not None:
        chat["tool_choice"] = {"name": choice.name} if choice.type == "tool" else _CHOICES[choice.type]
        if choice.disable_parallel_tool_use is not None:
            chat["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    chat["continue_final_message"] = _is_begun(body.messages[-1])
    if body.thinking is not None:
        chat["enable_thinking"] = body.thinking.type != "disabled"
    if body.output_config is not None:
        chat["reasoning_effort"] = body.output_config.effort
    if isinstance(body, MessagesRequest):
        for name in ("max_tokens", "stream", "temperature", "top_p", "top_k", "timeout_s", "cache_salt"):
            chat[name] = getattr(body, name)
        chat["stop"] = body.stop_sequences
        form = body.output_format
        if form is None and body.output_config is not None:
            form = body.output_config.format
        if form is not None:
            chat["response_format"] = {"type": form.type, "json_schema": {"schema": form.schema}}
    try:
        return msgspec.convert(chat, ChatRequest)
    except msgspec.ValidationError as exc:
        raise HttpError(400, f"the request cannot be served: {mistake(exc, ChatRequest)}") from None


def _is_begun(turn: Turn) -> bool:
    """Whether the turn is the beginning of the answer."""
    calls = isinstance(turn.content, list) and any(block.type == "tool_use" for block in turn.content)
    return turn.role == "assistant" and not calls


def _turns(body: CountRequest) -> Iterator[dict[str, Any]]:
    if body.system is not None and (text := _text(body.system)):
        yield {"role": "system", "content": text}
    for turn in body.messages:
        if isinstance(turn.content, str):
            yield {"role": turn.role, "content": turn.content}
        elif turn.role == "assistant":
            yield _assistant(turn.content)
        else:
            yield from _others(turn.role, turn.content)


def _assistant(blocks: list[Block]) -> dict[str, Any]:
    calls = [
        {"id": block.id, "function": {"name": block.name, "arguments": block.input or {}}}
        for block in blocks
        if block.type == "tool_use"
    ]
    text = "".join(_said(block) for block in blocks if block.type not in _UNSAID)
    thoughts = "".join(block.thinking for block in blocks if block.type == "thinking")
    return {"role": "assistant", "content": text, "tool_calls": calls or None, "reasoning_content": thoughts or None}


_UNSAID = ("tool_use", "thinking", "redacted_thinking")


def _others(role: str, blocks: list[Block]) -> Iterator[dict[str, Any]]:
    """Results of tools are messages of their own in OpenAI's API."""
    texts: list[str] = []
    for block in blocks:
        if block.type == "tool_result":
            if texts:
                yield {"role": role, "content": "".join(texts)}
                texts = []
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content or "")}
        else:
            texts.append(_said(block))
    if texts or not blocks:
        yield {"role": role, "content": "".join(texts)}


def _text(content: Content) -> str:
    if isinstance(content, str):
        return content
    return "".join(text for block in content if not (text := _said(block)).startswith(_BILLING))


def _said(block: Block) -> str:
    if block.type == "text":
        return block.text
    if block.type == "document" and block.source is not None and block.source.type == "text":
        return block.source.data
    raise HttpError(400, f"a content of type {block.type[:64]!r} is not served: the models read text", param="messages")


def _tool(tool: Tool) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise HttpError(400, f"tools of type {tool.type[:64]!r} are not served: describe them by an input_schema")
    return {"function": {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}}
