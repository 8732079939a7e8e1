"""What the gateway needs of the node behind it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mycelia.node.views import LinksRow, ModelRow, NodeState, RequestRow, TraceView, TreeRowView
from mycelia.proto.wire.messages import Ask, ChatMessage, EntryFrame


@dataclass(frozen=True)
class Embedded:
    """Texts as vectors, in their order."""

    vectors: list[NDArray[np.float32]]
    """Of length 1 each, as wide as the model."""
    num_tokens: int


class Api(Protocol):
    """See the module's text."""

    @property
    def model(self) -> str:
        """The one served here."""
        ...

    def ask(
        self, ask: Ask, deadline_s: float | None = None, client: bytes = b""
    ) -> AbstractAsyncContextManager[AsyncIterator[EntryFrame]]:
        """deadline_s: what the answer may take; None: any time. client: whose share of this node it takes."""
        ...

    async def models(self) -> list[ModelRow]:
        """Of the swarm, as far as peers tell within some seconds; the one served here first."""
        ...

    def state(self) -> NodeState: ...

    async def tree(self, client: bytes = b"") -> list[TreeRowView]:
        """The prefix cache's radix tree, each edge with the beginning of its text; for a client with a key, of its own
        edges and of those that are open to all."""
        ...

    async def tokenize(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Raises LocalError for a conversation that the model's template refuses."""
        ...

    async def embed(self, texts: Sequence[str | Sequence[int]], client: bytes = b"") -> Embedded:
        """The vector of each text, or of its tokens, by the model served here. client: see ``ask``. Raises LocalError
        for a text that cannot be embedded, BusyError when too many wait."""
        ...

    def recent_requests(self) -> list[RequestRow]:
        """That entered here, the newest last."""
        ...

    async def requests_changed(self, version: int) -> int:
        """Wait until they are newer than ``version``, which this returned last (0: anything is); their version."""
        ...

    async def trace(self, prefix: str) -> TraceView | None:
        """The way of the request whose id begins with ``prefix``; None: none that is known here does, or several do."""
        ...

    async def links(self) -> list[LinksRow]:
        """Whom this node's peers say that they are connected to."""
        ...

    def metrics(self) -> bytes:
        """In Prometheus' text format."""
        ...
