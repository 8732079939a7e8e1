"""The messages between the node and its engine process: one tagged array each.

Tokens are sent packed (``proto.wire.blocks.pack_tokens``).
"""

from collections.abc import Sequence
from typing import Self

from msgspec import Struct

from mycelia.node.engine.kinds import TEXT
from mycelia.proto.cache.sharing import Owner, paint, unpaint
from mycelia.proto.wire.blocks import pack_tokens, unpack_tokens
from mycelia.proto.wire.messages import ChatMessage, Conversation, Sampling, TokenLogprobs, Usage, Vitals

LONG_CHARS = 16_384
"""A question about more characters is a long one. An ordinary conversation is shorter."""


class _Frame(Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages."""


class Load(_Frame, frozen=True):
    """The first message to the child, which names the model to load. See ``EngineSettings``."""

    model_path: str
    threads: int
    cells: int
    """0: the default number, or as many as fit."""
    sequences: int
    slots: int
    max_waiting: int
    check: bool
    check_idle: bool
    ram_tier_bytes: int
    disk_tier_bytes: int
    cache_dir: str
    """Empty: no disk tier."""
    exact: bool
    is_dir_memory: bool = False
    """See ``EngineSettings``."""
    room_bytes: int = 0
    """Memory that the engine may take; 0: what is free."""
    lora_path: str = ""
    """Empty: no adapter."""
    gpu_layers: int | None = None
    tensor_split: tuple[float, ...] = ()
    main_gpu: int | None = None
    gpu_memory_bytes: int | None = None
    share: float = 1.0
    niceness: int = 0


class Submit(_Frame, frozen=True):
    """A request. ``key`` is the parent's number for it, never used twice."""

    key: int
    prompt: bytes
    sampling: Sampling
    """Checked by the parent: the child would die of values out of bounds."""
    resumed_tokens: int
    due_s: float | None = None
    """Deadline of the answer by ``time.monotonic``, which is one clock for all processes; None: no deadline."""
    client: bytes = b""
    subnet: str = ""
    """See ``EngineRequest`` for client, subnet, and the owner's tag, subnet and swarm."""
    tag: bytes = b""
    owner_subnet: str = ""
    swarm: bytes = b""
    open_tokens: int = 0

    @property
    def owner(self) -> Owner:
        return Owner(self.tag, self.owner_subnet, self.swarm)


class Cancel(_Frame, frozen=True):
    key: int


class Render(_Frame, frozen=True):
    """Asks for a conversation's tokens."""

    key: int
    messages: list[tuple[str, str, str]]
    """(role, content, extras). Not ChatMessage: it has the wire's bounds, and the child would die of a longer one."""
    tools: str = ""
    options: str = ""
    continues_final: bool = False
    client: bytes = b""
    subnet: str = ""

    @classmethod
    def of(cls, conversation: Conversation, client: bytes, subnet: str, key: int) -> Self:
        turns = [(message.role, message.content, message.extras) for message in conversation.messages]
        return cls(key, turns, *conversation[1:], client, subnet)

    def conversation(self) -> Conversation:
        turns = (ChatMessage(role=role, content=content, extras=extras) for role, content, extras in self.messages)
        return Conversation(tuple(turns), self.tools, self.options, self.continues_final)


class Parse(_Frame, frozen=True):
    """Asks for a text's tokens. Answered by Rendered."""

    key: int
    text: str
    client: bytes = b""
    subnet: str = ""


class Pair(_Frame, frozen=True):
    """Asks for the tokens by which a reranking model reads a document for a query. Answered by Rendered."""

    key: int
    query: str
    document: str
    client: bytes = b""
    subnet: str = ""


class Spell(_Frame, frozen=True):
    """Asks for the text of token sequences."""

    key: int
    sequences: list[bytes]


class Embed(_Frame, frozen=True):
    """Asks for the embedding of each text, or of a reranking model for the rank of each pair."""

    key: int
    texts: list[bytes]
    client: bytes = b""
    subnet: str = ""


class Ping(_Frame, frozen=True):
    """Asks for a Pong."""


class Resize(_Frame, frozen=True):
    """The disk tier may have this many bytes from now on."""

    disk_tier_bytes: int


class Loaded(_Frame, frozen=True):
    """The child is ready. Facts of the model: see ``ModelInfo``."""

    model_digest: bytes
    context_tokens: int
    num_vocab: int
    reuse: str
    cells: int = 0
    cells_note: str = ""
    """The reason if there are fewer cells than usual; else empty."""
    offload: str = ""
    """A text for people that names the layers on GPUs; empty: none."""
    no_gpu: str = ""
    """The reason if llama.cpp is built for GPUs and none is used; else empty."""
    cache_tokens: int = 0
    """Maximum number of tokens of idle prefixes in KV cells and host memory."""
    piece_ends: bytes = b""
    pieces: bytes = b""
    """The text of each token: see ``Vocabulary.packed``."""
    token_bytes: int = 2**16
    begin_text: str = ""
    end_text: str = ""
    begin_token: int | None = None
    chat_template: str = ""
    format: str = ""
    spellings: dict[int, str] = {}
    """See ``ModelInfo``."""
    kv_settings: str = ""
    chat_problem: str = ""
    """The reason why the model cannot chat; empty: it can."""
    kind: str = TEXT


class LoadFailed(_Frame, frozen=True):
    """The child could not load the model, and exits."""

    message: str


class Started(_Frame, frozen=True):
    key: int
    cached_tokens: int


class Generated(_Frame, frozen=True):
    key: int
    tokens: bytes
    text: bytes
    logprobs: tuple[TokenLogprobs, ...] = ()


class PromptReported(_Frame, frozen=True):
    """See ``EnginePromptLogprobs``."""

    key: int
    position: int
    logprobs: tuple[TokenLogprobs, ...]


class Ended(_Frame, frozen=True):
    key: int
    reason: str
    usage: Usage


class Refused(_Frame, frozen=True):
    key: int
    code: str
    message: str
    retryable: bool
    retry_after_s: float = 0.0


class Rendered(_Frame, frozen=True):
    """The tokens of a prompt, if ``error`` is empty. is_too_long: the prompt does not fit the model's context."""

    key: int
    tokens: bytes
    error: str
    is_too_long: bool = False


class Spelled(_Frame, frozen=True):
    """One text per sequence, if ``error`` is empty."""

    key: int
    texts: list[str]
    error: str


class Embedded(_Frame, frozen=True):
    """One vector of 32-bit floats per text, if ``error`` is empty. is_busy: the client may ask again after
    ``retry_after_s``. is_too_long: a text does not fit."""

    key: int
    vectors: list[bytes]
    error: str
    is_busy: bool = False
    retry_after_s: float = 0.0
    is_too_long: bool = False


class StoredLeaf(_Frame, frozen=True):
    """A leaf and its path, see ``proto.sharing``."""

    leaf: int
    tokens: bytes
    num_open: int
    tag: bytes | None
    swarm: bytes = b""

    @classmethod
    def of(cls, leaf: int, path: Sequence[int]) -> "StoredLeaf":
        tokens, num_open, tag, swarm = unpaint(path)
        return cls(leaf, pack_tokens(tokens), num_open, tag, swarm)

    @property
    def path(self) -> Sequence[int]:
        """The path. Raises RemoteError for invalid tokens."""
        tokens = unpack_tokens(self.tokens)
        if self.tag is None and not self.swarm:
            return tokens
        return paint(tokens, len(tokens) if self.tag is None else self.num_open, self.tag, self.swarm)


class CacheDelta(_Frame, frozen=True):
    evicted: list[int]
    stored: list[StoredLeaf]
    reset: bool


class Pong(_Frame, frozen=True):
    """The state of the thread that owns llama.cpp and of the threads that read texts; see ``watchdog.Pulse``."""

    is_decoding: bool
    busy_s: float
    reading_s: float = 0.0


class LoadChanged(_Frame, frozen=True):
    vitals: Vitals


ToChild = Load | Submit | Cancel | Render | Parse | Pair | Spell | Embed | Ping | Resize
FromChild = (
    Loaded
    | LoadFailed
    | Started
    | PromptReported
    | Generated
    | Ended
    | Refused
    | Rendered
    | Spelled
    | Embedded
    | CacheDelta
    | LoadChanged
    | Pong
)


def is_long(question: Render | Parse | Pair | Spell) -> bool:
    """Whether the answer takes long. Parent and child must use the same rule."""
    match question:
        case Render():
            size = len(question.tools) + len(question.options)
            size += sum(len(content) + len(extras) for _, content, extras in question.messages)
        case Parse():
            size = len(question.text)
        case Pair():
            size = len(question.query) + len(question.document)
        case Spell():
            size = sum(map(len, question.sequences))
    return size > LONG_CHARS
