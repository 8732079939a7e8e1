"""The shapes of OpenAI's chats and texts, whole or as events. Other APIs have shapes of their own."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from mycelia.node.serve.openai.errors import error_body
from mycelia.node.serve.openai.logprobs import chat_logprobs, prompt_logprobs, text_logprobs
from mycelia.node.serve.openai.reading import AnswerPart, Call, ReadAnswer
from mycelia.node.serve.openai.requests import Wanted
from mycelia.node.serve.openai.response_types import (
    CallDelta,
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    Completion,
    Delta,
    FunctionDelta,
    Message,
    TextChoice,
    TextLogprobs,
    ToolCall,
    Usage,
)
from mycelia.proto.wire.messages import Answered, Begun, Failed, Route, TokenLogprobs


@dataclass
class Choice:
    """One answer, as far as it has come."""

    index: int
    reading: ReadAnswer
    prompt: list[TokenLogprobs] = field(default_factory=list)
    """The logprobs of the prompt's tokens, if they are asked for."""
    echo: str = ""
    """The prompt, if the choice begins with it."""
    has_echo: bool = False
    num_chars: int = 0
    opening: bytes = b""
    """Its first events, if they are made already."""
    route: Route | None = None
    begun: Begun | None = None
    first_s: float | None = None
    end: Answered | None = None

    @property
    def finish_reason(self) -> str:
        assert self.end is not None
        is_cut = self.end.reason == "length" and (self.reading.is_broken or not self.reading.calls)
        return "length" if is_cut else "tool_calls" if self.reading.calls else "stop"


class Shape(ABC):
    """The form of one kind of response, whole or as events."""

    def __init__(self, wanted: Wanted, model: str) -> None:
        self._wanted = wanted
        self.id = f"{self.prefix}-{wanted.asks[0].request_id.hex()}"
        self.model = wanted.model or model
        self.created = int(time.time())

    prefix: str
    id_headers: Sequence[bytes] = (b"x-request-id",)

    @abstractmethod
    def whole(self, choices: Sequence[Choice], usage: Usage) -> msgspec.Struct: ...

    def opening(self, choice: Choice) -> bytes:
        """The events before the first piece of a choice."""
        return b""

    def opening_ahead(self, choice: Choice) -> bytes:
        """``opening``, called while the first piece is awaited; empty: it can only be made then."""
        return b""

    @abstractmethod
    def piece(self, choice: Choice, said: AnswerPart, is_prompt: bool = False) -> bytes:
        """The events of a piece. is_prompt: the echo of the prompt, which comes first."""

    @abstractmethod
    def ending(self, choice: Choice) -> bytes:
        """The events after the last piece of a choice."""

    @abstractmethod
    def closing(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The events at the end of the stream."""

    def failure(self, failed: Failed) -> msgspec.Struct:
        """The body of a failure, or what a stream ends with."""
        return error_body(failed)

    def failing(self, failed: Failed) -> bytes:
        """The events at the end of a stream that fails."""
        return event(self.failure(failed))


class OpenAiShape(Shape):
    """A shape whose streams end with the usage, if that is wanted, and with [DONE]."""

    @abstractmethod
    def usage(self, usage: Usage) -> msgspec.Struct: ...

    def closing(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        return (event(self.usage(usage)) if self._wanted.includes_usage else b"") + b"data: [DONE]\n\n"


class ChatShape(OpenAiShape):
    prefix = "chatcmpl"

    def whole(self, choices: Sequence[Choice], usage: Usage) -> ChatCompletion:
        whole = ChatCompletion(self.id, self.created, self.model, [self._whole(choice) for choice in choices], usage)
        if self._wanted.num_prompt_top is not None:
            whole.prompt_logprobs = prompt_logprobs(choices[0].prompt, self._wanted.num_prompt_top)
        return whole

    def _whole(self, choice: Choice) -> ChatChoice:
        reading = choice.reading
        message = Message(content=reading.content if reading.content or not reading.calls else None)
        if reading.thought:
            message.reasoning_content = reading.thought
        if reading.calls:
            message.tool_calls = [
                ToolCall(id=call.id, function=CalledFunction(call.name, call.arguments)) for call in reading.calls
            ]
        logprobs = self._logprobs(reading.logprobs) if self._wanted.with_logprobs else None
        return ChatChoice(choice.index, message, logprobs, choice.finish_reason)

    def opening(self, choice: Choice) -> bytes:
        return event(self._chunk([ChunkChoice(choice.index, Delta(role="assistant", content=""))]))

    def opening_ahead(self, choice: Choice) -> bytes:
        return self.opening(choice)

    def piece(self, choice: Choice, said: AnswerPart, is_prompt: bool = False) -> bytes:
        has_logprobs = self._wanted.with_logprobs and not said.thought and said.call is None
        logprobs = self._logprobs(said.logprobs) if has_logprobs else None
        return event(self._chunk([ChunkChoice(choice.index, _delta(said), logprobs)]))

    def ending(self, choice: Choice) -> bytes:
        return event(self._chunk([ChunkChoice(choice.index, Delta(), None, choice.finish_reason)]))

    def usage(self, usage: Usage) -> ChatChunk:
        chunk = self._chunk([])
        chunk.usage = usage
        return chunk

    def _chunk(self, choices: list[ChunkChoice]) -> ChatChunk:
        chunk = ChatChunk(self.id, self.created, self.model, choices)
        if self._wanted.includes_usage:
            chunk.usage = None
        return chunk

    def _logprobs(self, entries: Sequence[TokenLogprobs]) -> ChatLogprobs:
        return chat_logprobs(entries, self._wanted.num_top)


class TextShape(OpenAiShape):
    prefix = "cmpl"

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Completion:
        return Completion(self.id, self.created, self.model, [self._whole(choice) for choice in choices], usage)

    def _whole(self, choice: Choice) -> TextChoice:
        entries = [*(choice.prompt if choice.has_echo else ()), *choice.reading.logprobs]
        logprobs = self._logprobs(entries, 0, self._wanted.echoes)
        told = TextChoice(choice.index, choice.echo + choice.reading.content, logprobs, choice.finish_reason)
        if self._wanted.num_prompt_top is not None:
            told.prompt_logprobs = prompt_logprobs(choice.prompt, self._wanted.num_prompt_top)
        return told

    def piece(self, choice: Choice, said: AnswerPart, is_prompt: bool = False) -> bytes:
        logprobs = self._logprobs(said.logprobs, choice.num_chars, is_prompt)
        return event(self._chunk([TextChoice(choice.index, said.content, logprobs)]))

    def ending(self, choice: Choice) -> bytes:
        return event(self._chunk([TextChoice(choice.index, "", None, choice.finish_reason)]))

    def usage(self, usage: Usage) -> Completion:
        return Completion(self.id, self.created, self.model, [], usage)

    def _chunk(self, choices: list[TextChoice]) -> Completion:
        chunk = Completion(self.id, self.created, self.model, choices)
        if self._wanted.includes_usage:
            chunk.usage = None
        return chunk

    def _logprobs(self, entries: Sequence[TokenLogprobs], offset: int, begins_prompt: bool) -> TextLogprobs | None:
        if not self._wanted.with_logprobs:
            return None
        return text_logprobs(entries, self._wanted.num_top, offset, begins_prompt)


def event(value: msgspec.Struct, name: str = "") -> bytes:
    """A server-sent event."""
    named = b"event: " + name.encode() + b"\n" if name else b""
    return named + b"data: " + msgspec.json.encode(value) + b"\n\n"


def _delta(said: AnswerPart) -> Delta:
    if said.call is not None:
        return Delta(tool_calls=[_call_delta(said.call)])
    return Delta(reasoning_content=said.thought) if said.thought else Delta(content=said.content)


def _call_delta(call: Call) -> CallDelta:
    delta = CallDelta(call.index, FunctionDelta(call.arguments))
    if call.id:
        delta.id, delta.type, delta.function.name = call.id, "function", call.name
    return delta
