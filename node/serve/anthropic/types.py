"""Anthropic's HTTP shapes, as far as they are served. Further fields of requests are ignored, as in OpenAI's API."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mycelia.node.serve.openai.request_types import MAX_TOOLS, JsonObject, Name
from mycelia.node.views.frames import MAX_TIMEOUT_S
from mycelia.proto.wire.messages import MAX_CHAT_BYTES, MAX_CHAT_MESSAGES, MAX_SALT_CHARS, MAX_STOPS

Text = Annotated[str, Meta(max_length=MAX_CHAT_BYTES)]
Id = Annotated[str, Meta(max_length=128)]

# --- what clients send ----------------------------------------------------------------------------------------------


class Source(msgspec.Struct):
    type: str = ""
    data: Text = ""


class Block(msgspec.Struct):
    """A part of a content, of any type: the fields of all types that are read."""

    type: str
    text: Text = ""
    id: Id = ""
    name: str = ""
    input: JsonObject | None = None
    tool_use_id: Id = ""
    thinking: Text = ""
    content: "Text | list[Block] | None" = None
    source: Source | None = None


Content = Text | Annotated[list[Block], Meta(max_length=MAX_CHAT_MESSAGES)]


class Turn(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: Content


class Tool(msgspec.Struct):
    name: Name
    description: str | None = None
    input_schema: JsonObject | None = None
    type: str | None = None


class Choice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    disable_parallel_tool_use: bool | None = None


class Format(msgspec.Struct):
    type: str
    schema: JsonObject | bool | None = None


class OutputConfig(msgspec.Struct):
    format: Format | None = None
    effort: Annotated[str, Meta(max_length=32)] | None = None


class Thinking(msgspec.Struct):
    type: str


class CountRequest(msgspec.Struct, kw_only=True):
    """``mcp_servers`` and ``container`` are refused."""

    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MAX_CHAT_MESSAGES)]
    model: Annotated[str, Meta(max_length=128)] | None = None
    system: Content | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    mcp_servers: Any = None
    container: Any = None


class MessagesRequest(CountRequest, kw_only=True):
    """The last two fields are not Anthropic's, see OpenAI's requests."""

    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    stream: bool | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    output_format: Format | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_S)] | None = None
    cache_salt: Annotated[str, Meta(max_length=MAX_SALT_CHARS)] | None = None


# --- what they get --------------------------------------------------------------------------------------------------


class Usage(msgspec.Struct):
    input_tokens: int
    """Without those read from the cache."""
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: Any


OutBlock = TextBlock | ThinkingBlock | ToolUseBlock


class Message(msgspec.Struct, tag_field="type", tag="message"):
    id: str
    model: str
    content: list[OutBlock]
    usage: Usage
    stop_reason: str | None = None
    stop_sequence: None = None
    role: str = "assistant"


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    message: Message


class BlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    index: int
    content_block: OutBlock


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    thinking: str


class JsonDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    partial_json: str


class BlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | JsonDelta


class BlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    index: int


class StopDelta(msgspec.Struct):
    stop_reason: str
    stop_sequence: None = None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    delta: StopDelta
    usage: Usage


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    pass


class TokenCount(msgspec.Struct):
    input_tokens: int


class Error(msgspec.Struct):
    type: str
    message: str


class Errors(msgspec.Struct, tag_field="type", tag="error"):
    """The body of every refusal, and an event."""

    error: Error
    request_id: str | UnsetType = UNSET
