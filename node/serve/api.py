"""What the gateway needs of the node behind it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from node.views import LinksRow, ModelRow, NodeState, RequestRow, TraceView, TreeRowView
from proto.messages import Ask, ChatMessage, EntryFrame


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

    def models(self) -> list[ModelRow]:
        """Of the swarm, as far as it is known here; the one served here first."""
        ...

    def state(self) -> NodeState: ...

    async def tree(self) -> list[TreeRowView]: ...

    async def tokenize(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Raises LocalError for a conversation that the model's template refuses."""
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
