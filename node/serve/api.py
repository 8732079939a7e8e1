"""The interface of the node that the gateway needs."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mycelia.node.views.history import DayRow, RequestRow, TraceView, UsageRow
from mycelia.node.views.state import LinksRow, ModelRow, NodeState, TreeRowView
from mycelia.proto.wire.messages import Ask, Conversation, EntryFrame


@dataclass(frozen=True)
class Embedded:
    """The vectors of texts, in the order of the texts."""

    vectors: list[NDArray[np.float32]]
    """Each of length 1 and as wide as the model; ranks are vectors of one number, between 0 and 1."""
    num_tokens: int


@dataclass(frozen=True)
class VocabularyTexts:
    """What clients that tokenize through the node must know of the model; see ``ModelInfo``."""

    begin_text: str = ""
    end_text: str = ""
    begin_token: int | None = None
    chat_template: str = ""


class Api(Protocol):
    """The node behind the gateway."""

    @property
    def model(self) -> str:
        """The name of the model served here."""
        ...

    @property
    def own_models(self) -> Sequence[str]:
        """The names of all models served here, ``model`` first."""
        ...

    def model_for(self, kind: str) -> str:
        """The model served here that ``embedding`` or ``rerank`` requests without a name get; empty: there is none."""
        ...

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other name that clients here may use -> the model that it means."""
        ...

    def name_of(self, named: str) -> str:
        """The name in the swarm of the model that a client names: itself, or what an alias or the catalogue says."""
        ...

    def health(self) -> str:
        """``ok``; ``loading`` while the engine loads the model; ``leaving`` when the node is about to end."""
        ...

    def ask(
        self, ask: Ask, deadline_s: float | None = None, client: bytes = b""
    ) -> AbstractAsyncContextManager[AsyncIterator[EntryFrame]]:
        """deadline_s: limit for the answer; None: no limit. client: the client whose share of this node it takes."""
        ...

    async def models(self) -> list[ModelRow]:
        """The models of the swarm, as peers report them within some seconds; those served here come first."""
        ...

    def state(self) -> NodeState: ...

    async def tree(self, client: bytes = b"") -> list[TreeRowView]:
        """The radix tree of the prefix cache, each edge with the beginning of its text. A client with a key sees the
        text only of its own edges and of those that are open to all."""
        ...

    async def tokenize(self, conversation: Conversation, client: bytes = b"", model: str = "") -> list[int]:
        """The prompt of a conversation. client: see ``ask``. model: one of ``own_models``; empty: the first. Raises
        LocalError, also as BusyError, and for a conversation that the model's template refuses."""
        ...

    async def tokenize_text(self, text: str, client: bytes = b"", model: str = "") -> list[int]:
        """The tokens of a text as a prompt, the begin token included. model: see ``tokenize``. Raises LocalError, also
        as BusyError."""
        ...

    async def detokenize(self, tokens: Sequence[int], model: str = "") -> str:
        """The text of tokens. model: see ``tokenize``. Raises LocalError."""
        ...

    def vocabulary_texts(self, model: str = "") -> VocabularyTexts:
        """model: see ``tokenize``."""
        ...

    async def embed(self, texts: Sequence[str | Sequence[int]], client: bytes = b"", model: str = "") -> Embedded:
        """The vector of each text, or of its tokens, by ``model``, here or at a peer. client: see ``ask``. Raises
        LocalError for a text that cannot be embedded, also as FailedError; BusyError when too many wait."""
        ...

    async def rank(self, query: str, documents: Sequence[str], client: bytes = b"", model: str = "") -> Embedded:
        """How well each document answers the query, by a reranking ``model``; else as ``embed``."""
        ...

    def recent_requests(self) -> list[RequestRow]:
        """The requests that entered here, the newest last."""
        ...

    async def requests_changed(self, version: int) -> int:
        """Waits until the requests are newer than ``version``, an earlier result (0: any); returns their version."""
        ...

    async def trace(self, prefix: str) -> TraceView | None:
        """The steps of the request whose id begins with ``prefix``; None if no known request matches, or several do."""
        ...

    async def links(self) -> list[LinksRow]:
        """The connections that this node's peers report."""
        ...

    async def usage(self, num_days: int) -> list[UsageRow]:
        """What the API keys used in the last days, the oldest first."""
        ...

    def days(self, num_days: int) -> list[DayRow]:
        """What was given and received in the last days, the oldest first."""
        ...

    def pause(self, for_s: float | None) -> str:
        """Take no prompts of other nodes, for so many seconds or until ``resume``. Returns why none are taken now.
        Raises LocalError."""
        ...

    def resume(self) -> str:
        """End what ``pause`` began. Returns why still no prompts are taken; empty: they are. Raises LocalError."""
        ...

    def metrics(self) -> bytes:
        """The metrics in Prometheus' text format."""
        ...


def own_model(api: Api, named: str | None) -> str | None:
    """The model served here that a client means, by any of its names or by none; None: it means another one."""
    own = api.own_models
    name = api.name_of(named) if named else own[0]
    return name if name in own else None


def spelled(own: Sequence[str]) -> str:
    """The models for an error."""
    return ", ".join(map(repr, own))
