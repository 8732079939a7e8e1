"""The bodies of OpenAI's HTTP responses, and of the pieces of streamed ones."""

import msgspec
from msgspec import UNSET, UnsetType

from mycelia.node.serve.openai.request_types import TextDocument

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
