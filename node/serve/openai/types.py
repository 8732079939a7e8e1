"""OpenAI's HTTP shapes, as far as they are served: requests, which are checked, and responses.

Fields that do not change the answer (``user``, ``store``, ``metadata`` and so on) are ignored, because clients send
them unasked. Fields that would change the answer and are not served are refused.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mycelia.node.serve.openai.unserved import UnservedSampling
from mycelia.node.views.frames import MAX_TIMEOUT_S
from mycelia.proto.wire.messages import (
    MAX_CHAT_BYTES,
    MAX_CHAT_MESSAGES,
    MAX_LOGPROBS,
    MAX_SALT_CHARS,
    MAX_STOPS,
)

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


# --- what they get --------------------------------------------------------------------------------------------------


class PromptDetails(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct, omit_defaults=True):
    """The usage of all choices together. Their prompt counts once, as it is computed once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    resumed: int = msgspec.field(name="x-mycelia-resumed", default=0)
    """How often the answers moved to another node after their first token. Left out if 0."""


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    id: str
    function: CalledFunction
    type: str = "function"


class Message(msgspec.Struct):
    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    """The model's thoughts; not OpenAI's. Left out if there are none."""
    tool_calls: list[ToolCall] | UnsetType = UNSET


class PromptLogprob(msgspec.Struct):
    """vLLM's form of a logprob."""

    logprob: float
    rank: int | None
    """From 1, the likeliest; None: below the reported alternatives."""
    decoded_token: str


PromptLogprobList = list[dict[str, PromptLogprob] | None]
"""For each token of the prompt: id -> logprob of the token itself and of its alternatives. The first has none."""


class ChatChoice(msgspec.Struct):
    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobList | UnsetType = UNSET
    object: str = "chat.completion"
    system_fingerprint: None = None


class FunctionDelta(msgspec.Struct):
    arguments: str
    name: str | UnsetType = UNSET


class CallDelta(msgspec.Struct):
    """A part of a call: the first has the id and the name, and all arguments together are a JSON object."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class Delta(msgspec.Struct, omit_defaults=True):
    role: str = ""
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    object: str = "chat.completion.chunk"
    system_fingerprint: None = None


class TextLogprobs(msgspec.Struct):
    """Columns with one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """None for the first token of an echoed prompt."""
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None
    prompt_logprobs: PromptLogprobList | UnsetType = UNSET


class Completion(msgspec.Struct):
    """A response, or each chunk of a streamed one."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET
    object: str = "text_completion"
    system_fingerprint: None = None


class ModelMeta(msgspec.Struct):
    """As llama-server tells it."""

    n_ctx: int


class Model(msgspec.Struct):
    """A model. Clients look for the length of its context under different names; those are left out if it is 0."""

    id: str
    nodes: int
    """Nodes that serve it: a lower bound, if the peers' reports are true."""
    context_tokens: int
    """The longest prompt with its answer; 0 if no node reported it."""
    connected: int = 0
    """Those of ``nodes`` that are the asked node or connected to it; 0: the model is known only from other nodes."""
    created: int = 0
    """When this node began to serve its API."""
    root: str = ""
    """The model's own name, if ``id`` is an alias of it."""
    reuse: str | UnsetType = UNSET
    """How prompts reuse what is cached, where known: prefix, checkpoints or none; see docs/api.md."""
    kind: str | UnsetType = UNSET
    """What it is for, where known: text, embedding or rerank."""
    object: str = "model"
    owned_by: str = "mycelia"
    max_model_len: int | UnsetType = UNSET
    """vLLM's name of ``context_tokens``."""
    context_length: int | UnsetType = UNSET
    """OpenRouter's."""
    context_window: int | UnsetType = UNSET
    """Groq's."""
    max_context_length: int | UnsetType = UNSET
    """LM Studio's."""
    meta: ModelMeta | UnsetType = UNSET

    def __post_init__(self) -> None:
        self.root = self.root or self.id
        if tokens := self.context_tokens:
            self.max_model_len = self.context_length = self.context_window = self.max_context_length = tokens
            self.meta = ModelMeta(tokens)


class Models(msgspec.Struct):
    data: list[Model]
    object: str = "list"


class Embedding(msgspec.Struct):
    index: int
    embedding: list[float] | str
    """With encoding base64: little-endian numbers of 32 bits."""
    object: str = "embedding"


class TextUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    data: list[Embedding]
    model: str
    usage: TextUsage
    object: str = "list"


class RankedDocument(msgspec.Struct, omit_defaults=True):
    index: int
    """The document's place in the request."""
    relevance_score: float
    """Between 0 and 1."""
    document: TextDocument | UnsetType = UNSET


class Reranked(msgspec.Struct):
    results: list[RankedDocument]
    """The best first."""
    model: str
    usage: TextUsage
    object: str = "list"


class Error(msgspec.Struct):
    message: str
    type: str
    code: str | None
    param: str | None = None


class Errors(msgspec.Struct):
    """The body of every refusal."""

    error: Error
