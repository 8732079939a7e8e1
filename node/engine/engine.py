"""The interface between an engine and the rest of a node. ``open_engine`` (process.py) opens the real engine,
``FakeEngine`` (fake/engine.py) is for tests.

An engine holds one model, answers token prompts, reuses the longest cached prefix of each prompt, and reports the
changes of its cache. It never raises for a bad request: the request's stream ends with ``EngineFailed``.
"""

from collections.abc import AsyncIterator, Mapping, MutableSequence, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mycelia.node.engine.kinds import TEXT
from mycelia.proto.answers.spelling import Vocabulary
from mycelia.proto.cache.sharing import Owner
from mycelia.proto.wire.blocks import namespace_key
from mycelia.proto.wire.messages import (
    MAX_LOGPROBS_PER_FRAME,
    MAX_TEXT_BYTES_PER_FRAME,
    Conversation,
    Sampling,
    TokenLogprobs,
    Usage,
    Vitals,
)

DEADLINE, TOO_LATE = "deadline", "the answer was not finished in the time it was given"
"""Code and message for a request whose deadline passed."""
MAX_ITEM_TOKENS = 256
"""Maximum number of tokens in one item, so that it fits a frame; items with logprobs hold fewer."""

COALESCE_S = 0.1
"""Minimum seconds between two items of an answer; tokens chosen in between share an item. Each item wakes seven tasks
in two or three processes on its way to the client, and a reader sees ten changes a second as a steady flow. The first
token and the end of the answer never wait."""


@dataclass(frozen=True)
class ModelInfo:
    """Facts of the loaded model, fixed for the engine's life."""

    name: str
    """The name that users give the model: the registered name (``smollm2``) or the file's stem."""
    namespace: bytes
    """16 bytes, see ``proto.blocks.namespace_key``; without a swarm's salt that of the open network."""
    context_tokens: int
    """Maximum length of prompt plus answer, in tokens."""
    num_vocab: int
    reuse: str
    """``prefix``, ``checkpoints`` (recurrent and hybrid models, see ``proto/cache/checkpoints.py``) or ``none``, as the
    capability probe found."""
    num_cells: int = 0
    token_bytes: int = 2**16
    """Length of the vocabulary's longest token or an upper bound: a text of more than ``context_tokens`` times this
    many bytes does not fit."""
    begin_text: str = ""
    end_text: str = ""
    """The spellings of the begin and end tokens."""
    begin_token: int | None = None
    """The token with which every prompt begins; None: prompts begin with their text."""
    chat_template: str = ""
    """The source of the model's own template; empty: none."""
    format: str = ""
    """The form in which the model writes thoughts and calls (``node/formats``); empty: unknown."""
    spellings: Mapping[int, str] = field(default_factory=dict)
    """The control tokens that belong to the format."""
    model_digest: bytes = b""
    kv_settings: str = ""
    """What the namespace is made of."""
    kind: str = TEXT
    """See ``kinds.py``."""

    def in_swarm(self, salt: bytes) -> "ModelInfo":
        """The same model in the swarm whose namespaces have this salt."""
        return replace(self, namespace=namespace_key(self.model_digest, self.kv_settings, salt))

    @property
    def has_states(self) -> bool:
        return self.reuse == "checkpoints"


@dataclass(frozen=True)
class EngineRequest:
    """One prompt to answer. ``sampling.max_tokens`` counts new tokens only; the engine cuts it to fit the context."""

    request_id: bytes
    prompt: Sequence[int]
    sampling: Sampling
    resumed_tokens: int = 0
    """Number of tokens at the end of ``prompt`` that another node generated for this request. Random numbers,
    penalties, grammar and stop strings go on after them, so a resumed answer draws the same tokens as the interrupted
    one would."""
    deadline_s: float | None = None
    """Seconds from now that the answer may take, waiting included. Then the tokens so far are sent, and the request
    ends with EngineFailed, not retryable. None: no limit. The engine checks between steps, which aim at 2 s at most,
    and after a grammar is compiled, so a caller that needs precision keeps its own clock."""
    client: bytes = b""
    """The client whose share of the engine the request takes: an authenticated peer id, or empty for this node's own
    requests. Clients are served in the order of the work done for them, see ``proto.fair_queue``."""
    subnet: str = ""
    """The network of the client, see ``proto.subnets``: all its clients have one share. Empty: the client has a share
    of its own."""
    owner: Owner = Owner()  # noqa: RUF009  immutable
    """The owner whose cached prefixes the request may reuse, and who may reuse the prefixes of this request."""
    open_tokens: int = 0
    """Number of leading tokens that hold no secrets, so that every request may reuse them."""


@dataclass(frozen=True)
class EngineAccepted:
    """The request left the queue; ``cached_tokens`` of its prompt need no prefill."""

    cached_tokens: int


@dataclass(frozen=True)
class EnginePromptLogprobs:
    """Logprobs of the prompt's tokens from ``position`` on, in as many as fit a frame; all of them come before the
    first EngineTokens."""

    position: int
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True)
class EngineTokens:
    """The next generated tokens and all their bytes (UTF-8 that may end inside a character). The last tokens of an
    answer may come without their text: a stop string, or half a character."""

    tokens: Sequence[int]
    text: bytes
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One entry per token if the request asks for logprobs, else empty."""

    def joined(self, later: "EngineTokens") -> "EngineTokens | None":
        """Both items as one; None if that is too large for one frame."""
        num_tokens, num_bytes = len(self.tokens) + len(later.tokens), len(self.text) + len(later.text)
        most = MAX_LOGPROBS_PER_FRAME if self.logprobs or later.logprobs else MAX_ITEM_TOKENS
        if num_tokens > most or num_bytes > MAX_TEXT_BYTES_PER_FRAME:
            return None
        return EngineTokens([*self.tokens, *later.tokens], self.text + later.text, self.logprobs + later.logprobs)


@dataclass(frozen=True)
class EngineDone:
    """The last item of an answered request. reason: stop, length or cancelled."""

    reason: str
    usage: Usage


@dataclass(frozen=True)
class EngineFailed:
    """The last item of a request without a full answer; the fields are those of ``proto.messages.Failed``."""

    code: str
    message: str
    retryable: bool
    retry_after_s: float = 0.0
    """Seconds after which the client may ask again, see ``proto.shares``; 0: unknown."""


def append_tokens(items: MutableSequence[EngineTokens], item: EngineTokens) -> None:
    """Append ``item``, joined with the last item if both fit one frame. Mutates ``items``."""
    joined = items[-1].joined(item) if items else None
    if joined is None:
        items.append(item)
    else:
        items[-1] = joined


EngineItem = EngineAccepted | EnginePromptLogprobs | EngineTokens | EngineDone | EngineFailed


FIRST_EDGE_ID = 1024
"""Smallest id of a leaf in the second tier (memory or disk, see ``tier.py``). Smaller ids are llama.cpp's sequences, in
the KV cache."""
USUAL_ANSWER_TOKENS = 1_024
"""Assumed length of an answer that may fill the context."""


@dataclass(frozen=True)
class CacheChange:
    """A change of the prefix cache. Readers first remove the leaves ``evicted``, then add the leaves ``stored``. A leaf
    stands for its whole token sequence from the root, given as a path (``proto.sharing.unpaint``). An id may be reused
    after its eviction. ``reset``: forget every leaf first (the engine restarted). A leaf that moves to the second tier
    is evicted and at once stored under another id. A leaf of the second tier may be a prefix of another."""

    stored: Sequence[tuple[int, Sequence[int]]]
    evicted: Sequence[int]
    reset: bool = False


LOADED = "loaded"


@dataclass(frozen=True)
class Residence:
    """Whether an engine's model is in memory, and what it takes there."""

    state: str = LOADED
    """loaded, loading, unloading or unloaded."""
    load_s: float = 0.0
    """Seconds that loading takes; 0: unknown, or it is always loaded."""
    memory_bytes: int = 0
    """The most that the engine took; 0: not measured."""
    kept_bytes: int = 0
    """Room for prefixes beside the KV cells, also while the model is not loaded; 0: not counted."""

    @property
    def is_loaded(self) -> bool:
        return self.state == LOADED


class Engine(Protocol):
    """A running engine. Many tasks may call ``generate`` at the same time."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def residence(self) -> Residence:
        """An engine whose model is not loaded loads it for the next call that needs it, which waits for that."""
        ...

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The text of each token, as answers spell it; None: unknown."""
        ...

    def vitals(self) -> Vitals:
        """The engine's load as last reported."""
        ...

    async def vitals_changes(self) -> Vitals:
        """Wait until the load differs from the last result of this call (at the first call: from the load at the
        start), and return it. One reader."""
        ...

    async def detokenize(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """The text of each token sequence, with control tokens as they are spelled. Invalid UTF-8 is replaced. Raises
        LocalError."""
        ...

    async def tokenize_chat(self, conversation: Conversation, client: bytes = b"", subnet: str = "") -> Sequence[int]:
        """The prompt of a conversation, made by the model's own chat template and ready for the assistant's turn: a
        list or the result of ``proto.blocks.token_array``. client, subnet: whose share of the queue the work takes. A
        control token that a message spells stays text.
        Raises TooLongError when the prompt does not fit the context (not in every case: the caller counts, too),
        BusyError when too much text waits, LocalError for an empty conversation or one that the template refuses."""
        ...

    async def tokenize_text(self, text: str, client: bytes = b"", subnet: str = "") -> Sequence[int]:
        """The tokens of ``text`` without a template, else as ``tokenize_chat``; spelled control tokens become control
        tokens."""
        ...

    async def tokenize_pair(self, query: str, document: str, client: bytes = b"", subnet: str = "") -> Sequence[int]:
        """The tokens by which a reranking model reads a document for a query; a document that does not fit is cut. Else
        as ``tokenize_chat``."""
        ...

    async def embed(
        self, texts: Sequence[Sequence[int]], client: bytes = b"", subnet: str = ""
    ) -> list[NDArray[np.float32]]:
        """A vector of length 1 for each text, given as tokens; of a reranking model the rank of each pair, between 0
        and 1, as a vector of one number. client, subnet: see ``EngineRequest``. Cancelling the caller cancels the work.
        Raises LocalError for a text that cannot be embedded, BusyError when too many wait."""
        ...

    def generate(self, request: EngineRequest) -> AbstractAsyncContextManager[AsyncIterator[EngineItem]]:
        """The items of one answer; the last is EngineDone or EngineFailed. Leaving the block early cancels. The request
        may be submitted by the call itself, so the result must be entered."""
        ...

    async def cache_changes(self) -> CacheChange:
        """Wait for the next change of the prefix cache. One reader; unread changes are merged."""
        ...
