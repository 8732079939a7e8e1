"""What the rest of a node knows of an engine. ``open_engine`` (process.py) gives the real one,
``FakeEngine`` (fake/engine.py) is the one for tests.

An engine holds one model, answers token prompts, reuses the longest cached prefix of each, and tells what its cache
gained and lost. It never raises for a bad request: the request's stream ends with ``EngineFailed``.
"""

from collections.abc import AsyncIterator, MutableSequence, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mycelia.proto.answers.spelling import Vocabulary
from mycelia.proto.cache.sharing import Owner
from mycelia.proto.wire.messages import (
    MAX_LOGPROBS_PER_FRAME,
    MAX_TEXT_BYTES_PER_FRAME,
    ChatMessage,
    Sampling,
    TokenLogprobs,
    Usage,
    Vitals,
)

DEADLINE, TOO_LATE = "deadline", "the answer was not finished in the time it was given"
"""Code and message of a request whose deadline passed."""
MAX_ITEM_TOKENS = 256
"""Of one item, so that it fits a frame; fewer with logprobs."""

COALESCE_S = 0.1
"""Tokens chosen within this time of the last item of their answer share the next one: each item wakes seven tasks in
two or three processes on its way to the client, and ten changes a second read as steady. The first token never waits,
nor does the end."""


@dataclass(frozen=True)
class ModelInfo:
    """Facts of the loaded model, fixed for the engine's life."""

    name: str
    """The name users give: the registered one (``smollm2``) or the file's stem."""
    namespace: bytes
    """16 bytes, see ``proto.blocks.namespace_key``."""
    context_tokens: int
    """Longest prompt plus answer, in tokens."""
    num_vocab: int
    reuse: str
    """``prefix`` or ``none`` (recurrent and hybrid models), as the capability probe found."""
    num_cells: int = 0
    """Tokens that its KV cache holds."""
    token_bytes: int = 2**16
    """The vocabulary's longest token, or more: a text of over ``context_tokens`` times that many does not fit."""


@dataclass(frozen=True)
class EngineRequest:
    """One prompt to answer. ``sampling.max_tokens`` counts new tokens only, and is cut to what the context leaves."""

    request_id: bytes
    prompt: Sequence[int]
    sampling: Sampling
    resumed_tokens: int = 0
    """Tokens at the end of ``prompt`` that were generated for this request before, elsewhere. Random numbers,
    penalties, grammar and stop strings go on after them, so a resumed answer draws what the interrupted one would
    have drawn."""
    deadline_s: float | None = None
    """Seconds from now that the answer may take, waiting included; then it ends with EngineFailed, not retryable, after
    the tokens there are. None: no limit. Looked at between steps, which aim at 2 s at most, and once a
    grammar is compiled; whoever waits keeps a clock of his own."""
    client: bytes = b""
    """Whose share of the engine it takes: a peer id that the transport has authenticated; empty for this node's own
    requests. Clients are served in turn by the work done for them, see ``proto.fair_queue``."""
    subnet: str = ""
    """The network that it came from, see ``proto.subnets``: its clients have one share together. Empty: that client
    alone."""
    owner: Owner = Owner()  # noqa: RUF009  immutable
    """Whose cached prefixes it may reuse, and who may reuse its own."""
    open_tokens: int = 0
    """Of its leading tokens, as many as hold no secrets, so that everybody may reuse them."""


@dataclass(frozen=True)
class EngineAccepted:
    """The request left the queue; ``cached_tokens`` of its prompt need no prefill."""

    cached_tokens: int


@dataclass(frozen=True)
class EngineTokens:
    """The next generated tokens and all their bytes (UTF-8 that may end inside a character).

    The last tokens of an answer may come without their text: a stop string, or half a character.
    """

    tokens: Sequence[int]
    text: bytes
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One a token if the request asks for them, else none."""

    def joined(self, later: "EngineTokens") -> "EngineTokens | None":
        """Both in one item, None if that is too large for one frame."""
        num_tokens, num_bytes = len(self.tokens) + len(later.tokens), len(self.text) + len(later.text)
        most = MAX_LOGPROBS_PER_FRAME if self.logprobs or later.logprobs else MAX_ITEM_TOKENS
        if num_tokens > most or num_bytes > MAX_TEXT_BYTES_PER_FRAME:
            return None
        return EngineTokens([*self.tokens, *later.tokens], self.text + later.text, self.logprobs + later.logprobs)


@dataclass(frozen=True)
class EngineDone:
    """Last item of an answered request. reason: stop, length or cancelled."""

    reason: str
    usage: Usage


@dataclass(frozen=True)
class EngineFailed:
    """Last item of a request that could not be answered; the fields are those of ``proto.messages.Failed``."""

    code: str
    message: str
    retryable: bool
    retry_after_s: float = 0.0
    """When the client may come again, see ``proto.shares``; 0: unknown."""


def append_tokens(items: MutableSequence[EngineTokens], item: EngineTokens) -> None:
    """Add ``item`` at the end, joined with the last one if both fit one frame. Mutates ``items``."""
    joined = items[-1].joined(item) if items else None
    if joined is None:
        items.append(item)
    else:
        items[-1] = joined


EngineItem = EngineAccepted | EngineTokens | EngineDone | EngineFailed


FIRST_EDGE_ID = 1024
"""Leaves with ids from here on are not in the KV cache but in the second tier (memory or disk, see ``tier.py``); ids
below are llama.cpp's sequences."""


@dataclass(frozen=True)
class CacheChange:
    """What the prefix cache gained and lost, in order: first ``evicted`` leaf ids go, then ``stored`` leaves come.

    A leaf stands for its whole token sequence from the root, given as a path (``proto.sharing.unpaint``). Ids may be
    reused after they were evicted. ``reset``: forget every leaf first (the engine restarted). A leaf that moves to the
    second tier is evicted and stored under another id at once. Leaves of the second tier may be prefixes of others.
    """

    stored: Sequence[tuple[int, Sequence[int]]]
    evicted: Sequence[int]
    reset: bool = False


class Engine(Protocol):
    """A running engine. ``generate`` may be used by many tasks at once."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def vocabulary(self) -> Vocabulary | None:
        """What each token says, as answers spell it; None: it is not known."""
        ...

    def vitals(self) -> Vitals:
        """The engine's load as last reported."""
        ...

    async def vitals_changes(self) -> Vitals:
        """Wait until the load differs from what this call last returned, or for the first time from what it was at the
        start; the load then. One reader."""
        ...

    async def detokenize(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """The text of each token sequence, for display: bytes that are no UTF-8 are replaced. Raises LocalError."""
        ...

    async def tokenize_chat(
        self, messages: Sequence[ChatMessage], tools: str = "", client: bytes = b"", subnet: str = ""
    ) -> Sequence[int]:
        """The prompt of a conversation, through the model's own chat template, ready for the assistant's turn; as
        ``proto.blocks.token_array`` makes it or a list. tools: see ``Ask.tools``; client, subnet: whose turn it
        takes.

        Contents are tokenized as plain text: spelling a control token in a message does not make one.
        Raises TooLongError when it does not fit the context (not always: the caller counts, too), BusyError when too
        much waits to be read, LocalError for an empty conversation or a template that refuses it.
        """
        ...

    async def tokenize_text(self, text: str, client: bytes = b"", subnet: str = "") -> Sequence[int]:
        """The prompt that ``text`` is by itself, likewise; control tokens that it spells count."""
        ...

    async def embed(
        self, texts: Sequence[Sequence[int]], client: bytes = b"", subnet: str = ""
    ) -> list[NDArray[np.float32]]:
        """A vector of length 1 for each text, given as tokens. client, subnet: see ``EngineRequest``. Being
        cancelled cancels. Raises LocalError for a text that cannot be embedded, BusyError when too many wait."""
        ...

    def generate(self, request: EngineRequest) -> AbstractAsyncContextManager[AsyncIterator[EngineItem]]:
        """The items of one answer; the last is EngineDone or EngineFailed. Leaving the block early cancels."""
        ...

    async def cache_changes(self) -> CacheChange:
        """Wait for the next change of the prefix cache. One reader; changes are merged while nobody waits."""
        ...
