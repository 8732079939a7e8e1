"""The swarms that a node is in, behind one HTTP API: a private one, the open network, or both.

In both, two ``Node`` objects share one engine (``engine/shares.py``) and nothing else: each has its own identity,
network and overlay. A prompt enters at the private one, unless the model's name ends in ``@public``.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import MappingProxyType

from msgspec.structs import replace

from mycelia.node.app import Node
from mycelia.node.guest.guest import Guest
from mycelia.node.requests.answer_frames import one_frame
from mycelia.node.serve.api import Embedded
from mycelia.node.telemetry.days import Days
from mycelia.node.telemetry.metrics import exposition
from mycelia.node.telemetry.usage import UsageMeter, Use
from mycelia.node.views.frames import PUBLIC_SUFFIX
from mycelia.node.views.history import TraceView
from mycelia.node.views.state import LinksRow, ModelRow, NodeState, PublicPart, TreeRowView
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Ask, EntryFrame, Failed

_ONLY_PRIVATE = "this node is in a private swarm only; run it with --public to ask the open network"


class Swarms:
    """An ``Api`` of one node or of both parts of one."""

    def __init__(
        self,
        home: Node,
        public: Node | None = None,
        *,
        aliases: Mapping[str, str] = MappingProxyType({}),
        usage: UsageMeter | None = None,
        days: Days | None = None,
        guest: Guest | None = None,
        auto: Callable[[], str] = str,
    ) -> None:
        """home: the part that prompts enter at, unless they ask for the other one. public: the part in the open network
        of a node that is in a private one, too. aliases: see ``Api.aliases``. usage: what the API keys use. days: what
        was given and received. guest: the owner's limits. auto: see ``NodeState.auto``."""
        self.aliases = aliases
        self._home = home
        self._public = public
        self._parts = [home, public] if public else [home]
        # The part of ``Api`` that does not depend on the swarm; both parts have the same log of requests.
        self.tokenize = home.tokenize
        self._usage = usage or UsageMeter()
        self.usage = self._usage.since
        self._guest = guest
        self._auto = auto
        self.days = (days or Days(None)).since
        self.tokenize_text, self.detokenize = home.tokenize_text, home.detokenize
        self.vocabulary_texts = home.vocabulary_texts
        self.health = home.health
        self.recent_requests, self.requests_changed = home.recent_requests, home.requests_changed

    def set_aliases(self, aliases: Mapping[str, str]) -> None:
        """Other names of models from now on. Mutates."""
        self.aliases = aliases

    @property
    def model(self) -> str:
        return self._home.model

    @property
    def own_models(self) -> Sequence[str]:
        return self._home.own_models

    def ask(
        self, ask: Ask, deadline_s: float | None = None, client: bytes = b""
    ) -> AbstractAsyncContextManager[AsyncIterator[EntryFrame]]:
        """See ``Api.ask``."""
        part, model, suffix = self._part_of(ask.model)
        answer: AbstractAsyncContextManager[AsyncIterator[EntryFrame]]
        if part is None or part.ended:
            message = part.ended if part else _ONLY_PRIVATE
            answer = one_frame(Failed(code="bad_request", message=message, retryable=False))
        else:
            answer = part.ask(ask if model == ask.model else replace(ask, model=model), deadline_s, client)
        name = model or self.model
        on_end = partial(part.demand.ended, name) if part else lambda outcome: None
        return self._usage.counting(answer, client, name + suffix, on_end)

    def name_of(self, named: str) -> str:
        """See ``Api.name_of``. One with the suffix of the open network stays as it is."""
        return self._home.swarm_models.name_of(self.aliases.get(named, named))

    def model_for(self, kind: str) -> str:
        """See ``Api.model_for``."""
        return self._home.model_for(kind)

    async def embed(self, texts: Sequence[str | Sequence[int]], client: bytes = b"", model: str = "") -> Embedded:
        """See ``Api.embed``."""
        return await self._made(lambda part, name: part.embed(texts, client, name), client, model)

    async def rank(self, query: str, documents: Sequence[str], client: bytes = b"", model: str = "") -> Embedded:
        """See ``Api.rank``."""
        return await self._made(lambda part, name: part.rank(query, documents, client, name), client, model)

    async def _made(self, make: Callable[[Node, str], Awaitable[Embedded]], client: bytes, model: str) -> Embedded:
        part, name, suffix = self._part_of(model)
        use = Use((name or self.model) + suffix, is_failed=True)
        try:
            if part is None or part.ended:
                raise LocalError(part.ended if part else _ONLY_PRIVATE)
            made = await make(part, name)
            use.is_failed, use.prompt_tokens = False, made.num_tokens
            return made
        finally:
            self._usage.add(client, use)

    def _part_of(self, model: str) -> tuple[Node | None, str, str]:
        """The part in which a model is asked for, or None if there is none; its name there; the suffix that the client
        wrote."""
        model = self.aliases.get(model, model)
        if not model.endswith(PUBLIC_SUFFIX):
            return self._home, model, ""
        model = model.removesuffix(PUBLIC_SUFFIX)
        part = self._public or (None if self._home.swarm else self._home)
        return part, self.aliases.get(model, model), PUBLIC_SUFFIX

    async def models(self) -> list[ModelRow]:
        """See ``Api.models``. Models of the open network have the suffix by which they are asked for."""
        rows = [] if self._home.ended else list(await self._home.models())
        if self._public is not None:
            rows += [replace(row, model=row.model + PUBLIC_SUFFIX) for row in await self._public.models()]
        return rows

    def pause(self, for_s: float | None) -> str:
        """See ``Api.pause``."""
        return self._paused(lambda guest: guest.pause(for_s))

    def resume(self) -> str:
        """See ``Api.resume``."""
        return self._paused(Guest.resume)

    def _paused(self, change: Callable[[Guest], None]) -> str:
        if self._guest is None:
            raise LocalError("this node cannot be paused")
        change(self._guest)
        return self._guest.reason

    def state(self) -> NodeState:
        paused = self._guest.reason if self._guest else ""
        state = replace(self._home.state(), paused=paused, auto=self._auto())
        if self._public is None:
            return state
        other = self._public.state()
        part = PublicPart(other.peer, other.addresses, other.peers, other.attempts)
        peers = [] if self._home.ended else state.peers
        return replace(state, peers=peers, public=part, exchanges=state.exchanges + other.exchanges)

    async def tree(self, client: bytes = b"") -> list[TreeRowView]:
        """See ``Api.tree``: that of the private swarm, then that of the open network."""
        return [row for part in self._parts for row in await part.tree(client)]

    async def trace(self, prefix: str) -> TraceView | None:
        """See ``Api.trace``. Only one of the parts reaches the nodes of a request."""
        traces = [trace for part in self._parts if (trace := await part.trace(prefix))]
        return max(traces, key=lambda trace: (-len(trace.silent), len(trace.steps)), default=None)

    async def links(self) -> list[LinksRow]:
        return [row for part in self._parts for row in await part.links()]

    def metrics(self) -> bytes:
        return exposition(self.state(), self._home.requests, self._usage.totals)
