"""Answers in Anthropic's shape: whole, or as its typed events."""

from collections.abc import Sequence

import msgspec

from mycelia.node.serve.anthropic.types import (
    BlockDelta,
    BlockStart,
    BlockStop,
    Error,
    Errors,
    JsonDelta,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    OutBlock,
    StopDelta,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)
from mycelia.node.serve.anthropic.types import Usage as MessageUsage
from mycelia.node.serve.openai.errors import status_of
from mycelia.node.serve.openai.reading import AnswerPart
from mycelia.node.serve.openai.response_types import Usage
from mycelia.node.serve.openai.shapes import Choice, Shape, event
from mycelia.proto.wire.messages import Failed

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class MessageShape(Shape):
    """For one choice. A stream has one open block at a time."""

    prefix = "msg"
    id_headers = (b"x-request-id", b"request-id")
    _num_blocks = 0
    _open = ""
    """The type of the open block; empty: none is open."""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Message:
        (choice,) = choices
        reading = choice.reading
        content: list[OutBlock] = []
        if reading.thought:
            content.append(ThinkingBlock(reading.thought))
        if reading.content or not (reading.thought or reading.calls):
            content.append(TextBlock(reading.content))
        content += [ToolUseBlock(call.id, call.name, _input(call.arguments)) for call in reading.calls]
        return Message(self.id, self.model, content, _usage(usage), _STOP_REASONS[choice.finish_reason])

    def opening(self, choice: Choice) -> bytes:
        cached = choice.begun.cached_tokens if choice.begun else 0
        prompt = choice.route.prompt_tokens if choice.route else 0
        usage = MessageUsage(max(prompt - cached, 0), 0, cached)
        return _event(MessageStart(Message(self.id, self.model, [], usage)))

    def piece(self, choice: Choice, said: AnswerPart, is_prompt: bool = False) -> bytes:
        if (call := said.call) is not None:
            begin = b""
            if call.name:
                begin = self._begin("tool_use", ToolUseBlock(call.id, call.name, {}))
            return begin + (self._delta(JsonDelta(call.arguments)) if call.arguments else b"")
        if said.thought:
            return self._begin("thinking", ThinkingBlock("")) + self._delta(ThinkingDelta(said.thought))
        if said.content:
            return self._begin("text", TextBlock("")) + self._delta(TextDelta(said.content))
        return b""

    def ending(self, choice: Choice) -> bytes:
        return self._stop()

    def closing(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        (choice,) = choices
        delta = MessageDelta(StopDelta(_STOP_REASONS[choice.finish_reason]), _usage(usage))
        return _event(delta) + _event(MessageStop())

    def failure(self, failed: Failed) -> Errors:
        return errors(status_of(failed)[0], failed.message)

    def failing(self, failed: Failed) -> bytes:
        return _event(self.failure(failed))

    def _begin(self, kind: str, block: OutBlock) -> bytes:
        if self._open == kind and kind != "tool_use":
            return b""
        stop = self._stop()
        self._open = kind
        return stop + _event(BlockStart(self._num_blocks, block))

    def _delta(self, delta: TextDelta | ThinkingDelta | JsonDelta) -> bytes:
        return _event(BlockDelta(self._num_blocks, delta))

    def _stop(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        self._num_blocks += 1
        return _event(BlockStop(self._num_blocks - 1))


def errors(status: int, message: str) -> Errors:
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return Errors(Error(kind, message))


def _event(value: msgspec.Struct) -> bytes:
    return event(value, str(type(value).__struct_config__.tag))


def _usage(usage: Usage) -> MessageUsage:
    cached = usage.prompt_tokens_details.cached_tokens
    return MessageUsage(max(usage.prompt_tokens - cached, 0), usage.completion_tokens, cached)


def _input(arguments: str) -> object:
    """The arguments of a call. Those of a call that broke off are no JSON."""
    try:
        return msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return {}
