"""The bodies of OpenAI's HTTP requests, as far as they are served; each is checked.

Fields that do not change the answer (``user``, ``store``, ``metadata`` and so on) are ignored, because clients send
them unasked. Fields that would change the answer and are not served are refused.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mycelia.node.serve.openai.unserved import UnservedSampling
from mycelia.node.views.frames import MAX_TIMEOUT_S
from mycelia.proto.wire.messages import MAX_CHAT_BYTES, MAX_CHAT_MESSAGES, MAX_LOGPROBS, MAX_SALT_CHARS, MAX_STOPS

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_TOOLS = 128
MAX_DIMENSIONS = 65_536

Name = Annotated[str, Meta(pattern=r"^[\w.:/@+-]{1,128}\Z")]
"""A function's name: also with dots, colons and the letters of any language, as tool servers have them."""
JsonObject = dict[str, Any]


# --- what clients send ----------------------------------------------------------------------------------------------


class ContentPart(msgspec.Struct):
    type: str
    text: Annotated[str, Meta(max_length=MAX_CHAT_BYTES)] = ""
    refusal: Annotated[str, Meta(max_length=MAX_CHAT_BYTES)] | None = None


class GivenFunction(msgspec.Struct):
    name: Name
    arguments: Annotated[str, Meta(max_length=MAX_CHAT_BYTES)] | JsonObject | None = None


class GivenCall(msgspec.Struct):
    """A call of an earlier turn."""

    function: GivenFunction
    id: Annotated[str, Meta(max_length=128)] | None = None
    type: Literal["function"] = "function"


class Turn(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: (
        Annotated[str, Meta(max_length=MAX_CHAT_BYTES)]
        | Annotated[list[ContentPart], Meta(max_length=MAX_CHAT_MESSAGES)]
        | None
    ) = None
    name: Annotated[str, Meta(max_length=128)] | None = None
    tool_calls: Annotated[list[GivenCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Annotated[str, Meta(max_length=128)] | None = None
    reasoning_content: Annotated[str, Meta(max_length=MAX_CHAT_BYTES)] | None = None
    """The assistant's thoughts before its content."""
    reasoning: Annotated[str, Meta(max_length=MAX_CHAT_BYTES)] | None = None
    """Another name for it."""


class Function(msgspec.Struct):
    name: Name
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    function: Function
    type: Literal["function"] = "function"


class FunctionName(msgspec.Struct):
    name: Name


class ToolChoice(msgspec.Struct):
    """The model has to call this function."""

    function: FunctionName
    type: Literal["function"] = "function"


class SchemaFormat(msgspec.Struct, kw_only=True):
    name: Annotated[str, Meta(max_length=256)] | None = None
    schema: JsonObject | bool | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None
    schema: JsonObject | bool | None = None
    """llama-server's and Together's place for the schema."""


class StructuredOutputs(msgspec.Struct):
    """vLLM's: one of these."""

    json: JsonObject | bool | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class AnyRequest(UnservedSampling, kw_only=True):
    """The common fields of chats and completions. Those from ``top_k`` on are not OpenAI's."""

    model: Annotated[str, Meta(max_length=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    """None, negative or more than that: what the context has left. 0: compute the prompt, so that it is cached."""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    seed: int | None = None
    """None and -1: a random one."""
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | Annotated[list[str | None], Meta(max_length=MAX_STOPS)] | None = None
    logit_bias: dict[str, float | bool] | list[Any] | None = None
    """Token -> bias, or llama-server's list of [token, bias], where a bias of false excludes the token."""
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.1, le=10)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.1, le=10)] | None = None
    """vLLM's name for it."""
    repeat_last_n: Annotated[int, Meta(ge=-1)] | None = None
    """Tokens that the penalties look back on; -1: all."""
    timeout_s: Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_S)] | None = None
    """A longer answer is cancelled."""
    cache_salt: Annotated[str, Meta(max_length=MAX_SALT_CHARS)] | None = None
    """Only requests with the same value reuse each other's prefixes; "public": all requests do."""
    grammar: str | None = None
    """llama-server's: GBNF, or Lark."""
    json_schema: JsonObject | bool | None = None
    """llama-server's."""
    guided_json: JsonObject | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    """Alternatives per token of the prompt to report, besides its own logprob; vLLM's."""


class ChatRequest(AnyRequest, kw_only=True):
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MAX_CHAT_MESSAGES)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    """True: an answer that must be a call may be several."""
    functions: list[JsonObject] | None = None
    """The older form of ``tools``, which is refused, as the next two are."""
    audio: Any = None
    web_search_options: Any = None
    shared_messages: Annotated[int, Meta(ge=0, le=MAX_CHAT_MESSAGES)] | None = None
    """How many of the messages, from the first one, hold no secrets; not OpenAI's."""
    reasoning_effort: Annotated[str, Meta(max_length=32)] | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: JsonObject | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    """These four are those of vLLM and llama-server."""
    response_format: ResponseFormat | None = None


class CompletionRequest(AnyRequest, kw_only=True):
    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    """A text, its tokens, or a list of texts or tokens."""
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | bool | None = None
    echo: bool | None = None
    """The text of the choice, and its logprobs, begin with the prompt's."""
    suffix: str | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    """Answers of which ``n`` are returned: those with the highest mean logprob."""


class EmbeddingRequest(msgspec.Struct):
    input: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    """A text, its tokens, or a list of texts or tokens."""
    model: Annotated[str, Meta(max_length=128)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None = None
    """The first numbers of each vector alone, for models that allow it."""
    tokenizer: Annotated[str, Meta(max_length=128)] | None = None
    """The model whose tokens ``input`` has; not OpenAI's. Without it, only texts are accepted."""


class TextDocument(msgspec.Struct):
    text: str


class RerankRequest(msgspec.Struct):
    query: str
    documents: Annotated[list[str | TextDocument], Meta(min_length=1)]
    model: Annotated[str, Meta(max_length=128)] | None = None
    top_n: Annotated[int, Meta(ge=1)] | None = None
    """The number of results, the best ones; else all."""
    return_documents: bool | None = None
    """Whether each result has its document."""
