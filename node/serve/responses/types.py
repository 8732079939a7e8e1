"""The shapes of OpenAI's Responses API, as far as they are served. Further fields of requests are ignored."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mycelia.node.serve.openai.request_types import MAX_TOOLS, JsonObject
from mycelia.node.views.frames import MAX_TIMEOUT_S
from mycelia.proto.wire.messages import MAX_CHAT_BYTES, MAX_CHAT_MESSAGES, MAX_SALT_CHARS

Text = Annotated[str, Meta(max_length=MAX_CHAT_BYTES)]
Id = Annotated[str, Meta(max_length=128)]

# --- what clients send ----------------------------------------------------------------------------------------------


class Part(msgspec.Struct):
    """A part of a content, of any type."""

    type: str
    text: Text = ""
    refusal: Text = ""


Parts = Annotated[list[Part], Meta(max_length=MAX_CHAT_MESSAGES)]


class Item(msgspec.Struct):
    """An item of the input, of any type: the fields of all types that are read."""

    type: str = "message"
    role: str = ""
    content: Text | Parts | None = None
    call_id: Id = ""
    name: str = ""
    arguments: Text = ""
    input: Text = ""
    output: Text | Parts | None = None
    summary: Parts | None = None


class Tool(msgspec.Struct):
    type: str
    name: str = ""
    description: str | None = None
    parameters: JsonObject | None = None
    tools: "Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None" = None
    """Those of a namespace."""


class Format(msgspec.Struct):
    type: str
    schema: JsonObject | bool | None = None
    name: str | None = None


class TextConfig(msgspec.Struct):
    format: Format | None = None


class Reasoning(msgspec.Struct):
    effort: Annotated[str, Meta(max_length=32)] | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The last two fields are not OpenAI's."""

    input: Text | Annotated[list[Item], Meta(max_length=MAX_CHAT_MESSAGES)] = ""
    model: Annotated[str, Meta(max_length=128)] | None = None
    instructions: Text | None = None
    max_output_tokens: int | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    previous_response_id: Id | None = None
    store: bool | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    top_logprobs: int | None = None
    metadata: JsonObject | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_S)] | None = None
    cache_salt: Annotated[str, Meta(max_length=MAX_SALT_CHARS)] | None = None


# --- what they get --------------------------------------------------------------------------------------------------


class InputDetails(msgspec.Struct):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    total_tokens: int
    output_tokens_details: OutputDetails = msgspec.field(default_factory=OutputDetails)


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    text: str


class MessageItem(msgspec.Struct, tag_field="type", tag="message"):
    id: str
    content: list[OutputText]
    status: str = "completed"
    role: str = "assistant"


class ReasoningItem(msgspec.Struct, tag_field="type", tag="reasoning"):
    id: str
    content: list[ReasoningText]
    summary: list[Any] = []
    status: str = "completed"


class CallItem(msgspec.Struct, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str
    status: str = "completed"
    namespace: str | UnsetType = UNSET
    """The namespace of the tool, if it has one."""


class CustomCallItem(msgspec.Struct, tag_field="type", tag="custom_tool_call"):
    id: str
    call_id: str
    name: str
    input: str
    status: str = "completed"


OutItem = MessageItem | ReasoningItem | CallItem | CustomCallItem


class Failure(msgspec.Struct):
    code: str
    message: str


class Incomplete(msgspec.Struct):
    reason: str


class ResponseBody(msgspec.Struct):
    id: str
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    output: list[OutItem]
    usage: ResponseUsage | None = None
    error: Failure | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    reasoning: JsonObject = {}
    store: bool = True
    temperature: float | None = 1.0
    text: Any = None
    tool_choice: Any = "auto"
    tools: list[Any] = []
    top_p: float | None = 1.0
    truncation: str = "disabled"
    metadata: JsonObject = {}
    object: str = "response"


class Event(msgspec.Struct, omit_defaults=True):
    """An event of a stream: its type, and those of the other fields that the type has."""

    type: str
    sequence_number: int
    response: ResponseBody | None = None
    output_index: int | None = None
    item: OutItem | None = None
    item_id: str | None = None
    content_index: int | None = None
    part: OutputText | ReasoningText | None = None
    delta: str | None = None
    text: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    logprobs: list[Any] | None = None
    code: str | None = None
    message: str | None = None


class Deleted(msgspec.Struct):
    id: str
    deleted: bool = True
    object: str = "response"
