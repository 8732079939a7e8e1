"""What the gateway needs of the node behind it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from node.views import NodeState, TreeRowView
from proto.messages import Ask, ChatMessage, EntryFrame


class Api(Protocol):
    """See the module's text."""

    def ask(self, ask: Ask, deadline_s: float | None) -> AbstractAsyncContextManager[AsyncIterator[EntryFrame]]:
        """deadline_s: what the answer may take; None: any time."""
        ...

    def state(self) -> NodeState: ...

    async def tree(self) -> list[TreeRowView]: ...

    async def tokenize(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Raises LocalError for a conversation that the model's template refuses."""
        ...
