"""An engine whose model is loaded when a request needs it, and unloaded when its pool says so.

Calls wait while the model is not loaded; the pool knows of each from its beginning to its end. The cost of the wait is
told to other nodes: an engine that is not loaded reports as many queued tokens as it could compute in the time that
loading takes. So routing compares it rightly with nodes that have the model loaded, whatever version they run.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import numpy as np
import trio
from numpy.typing import NDArray

from mycelia.node.engine.engine import (
    CacheChange,
    EngineDone,
    EngineFailed,
    EngineItem,
    EngineRequest,
    ModelInfo,
    Residence,
)
from mycelia.node.engine.pool.facts import Facts
from mycelia.node.engine.process import ProcessEngine
from mycelia.node.engine.settings import EngineSettings
from mycelia.node.engine.stream import AnswerStream
from mycelia.node.errors import BusyError
from mycelia.node.signals import Signal
from mycelia.proto.admission.subnets import Places
from mycelia.proto.answers.spelling import Vocabulary
from mycelia.proto.config import RoutingConfig
from mycelia.proto.loading.events import Asked, Ended, Event
from mycelia.proto.loading.loader import RETRY_S, Loader, State
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import MAX_SMALL, Conversation, Vitals

MAX_WAITING = 256
"""Calls that wait for the model to be loaded, shared among subnets."""
PEERS_END_S, OWN_END_S = 10.0, 300.0
"""Time for what has begun when the model makes room for another one: for calls of peers, and for those of this node's
own clients. An answer that takes longer goes on elsewhere, or here when the model is back."""
UNMEASURED_RATE = round(RoutingConfig().default_prefill_rate)


class PooledEngine:
    """An ``Engine`` of an ``EnginePool``."""

    def __init__(
        self, name: str, settings: EngineSettings, facts: Facts | None, loader: Loader, tell: Callable[[Event], None]
    ) -> None:
        """facts: None if the model was never loaded. tell: passes an event to the loader."""
        self.name = name
        self._settings = settings
        self._loader = loader
        self._tell = tell
        self._inner = ProcessEngine(settings)
        self._rates = (facts.prefill_rate, facts.decode_rate) if facts is not None else (0, 0)
        if facts is not None:
            self._inner.recall(facts.loaded)
        self._is_retired = False
        """Whether the node serves the model no more."""
        self._is_open = False
        """Whether calls may begin: the model is loaded and shall stay so."""
        self._changed = Signal()
        self._failure: Callable[[], LocalError] = LocalError
        self._num_failures = 0
        self._num_running = self._num_own = 0
        """Calls that have begun; those of this node's own clients."""
        self._waiting = Places(MAX_WAITING, MAX_WAITING)
        self._waiting_tokens = 0
        self._ended: trio.Event | None = None
        self._scope = trio.CancelScope()
        self._vitals_told: Vitals | None = None
        self._vitals_changed = Signal()

    # --- for the pool ---------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        return self._inner.pid

    @property
    def is_known(self) -> bool:
        """Whether ``info`` is."""
        return self._inner.is_known

    def facts(self) -> Facts | None:
        """What is to be remembered; None: nothing new."""
        if self._inner.loaded is None:
            return None
        self._note_rates()
        loader = self._loader
        return Facts(self._inner.loaded, loader.num_bytes(self.name), loader.load_s(self.name), *self._rates)

    async def follow(self) -> None:
        """Passes on changes of the load. Never returns."""
        while True:
            await self._inner.vitals_changes()
            self._vitals_changed.notify()

    async def start(self, nursery: trio.Nursery, room_bytes: int) -> None:
        """Starts the engine's process; returns when the model is loaded. Raises LocalError."""
        self._inner.give_room(room_bytes)
        self._scope, self._ended, started = trio.CancelScope(), trio.Event(), trio.Event()
        nursery.start_soon(self._supervise, started, self._scope, self._ended)
        await started.wait()
        if self._inner.start_error:
            await self._ended.wait()
            raise LocalError(self._inner.start_error)

    def open(self) -> None:
        """Calls begin, also those that wait."""
        self._is_open = True
        self._note_change()

    def fail(self, failure: Callable[[], LocalError]) -> None:
        """The calls that wait end with an error, one each."""
        self._failure, self._num_failures = failure, self._num_failures + 1
        self._note_change()

    def close(self) -> None:
        """New calls wait from now on."""
        self._is_open = False
        self._note_change()

    def retire(self) -> None:
        """New calls are refused from now on."""
        self._is_retired = True

    async def end(self) -> None:
        """Ends the engine's process when the calls that have begun are over, or take too long. It is closed."""
        with trio.move_on_after(PEERS_END_S):
            while self._num_running:
                await self._changed.wait()
        with trio.move_on_after(OWN_END_S):
            while self._num_own:
                await self._changed.wait()
        self._note_rates()
        self._scope.cancel()
        if self._ended is not None:
            await self._ended.wait()

    def resize(self, kept_bytes: int) -> None:
        """The model may keep this many bytes of prefixes."""
        self._inner.resize(kept_bytes)

    def drop_kept(self) -> None:
        """What the engine holds need not be kept any more: the node ends."""
        self._inner.saves_at_end = False

    async def _supervise(self, started: trio.Event, scope: trio.CancelScope, ended: trio.Event) -> None:
        try:
            with scope:
                await self._inner.supervise(started)
        finally:
            started.set()
            ended.set()

    def _note_rates(self) -> None:
        vitals = self._inner.vitals()
        self._rates = vitals.prefill_rate or self._rates[0], vitals.decode_rate or self._rates[1]

    def _note_change(self) -> None:
        self._changed.notify()
        self._vitals_changed.notify()

    # --- the Engine interface -------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        return self._inner.info

    @property
    def vocabulary(self) -> Vocabulary | None:
        return self._inner.vocabulary

    @property
    def residence(self) -> Residence:
        state = self._loader.states[self.name]
        # (a loaded one that must not begin anything more is as good as not loaded)
        name = "unloading" if state is State.LOADED and not self._is_open else state.name.lower()
        loader = self._loader
        return Residence(name, loader.load_s(self.name), loader.num_bytes(self.name), loader.kept_bytes(self.name))

    def vitals(self) -> Vitals:
        """See ``Engine.vitals``."""
        inner = self._inner.vitals()
        if self._is_open:
            return inner
        rate = inner.prefill_rate or self._rates[0] or UNMEASURED_RATE
        queued = inner.queued_tokens + self._waiting_tokens + round(rate * self._loader.load_s(self.name))
        return Vitals(
            queued_tokens=min(queued, MAX_SMALL),
            active_requests=inner.active_requests,
            waiting_requests=inner.waiting_requests + self._waiting.num_taken,
            slots=self._settings.slots,
            prefill_rate=rate,
            decode_rate=inner.decode_rate or self._rates[1],
            hold_ms=inner.hold_ms,
        )

    async def vitals_changes(self) -> Vitals:
        await trio.lowlevel.checkpoint()
        while (vitals := self.vitals()) == self._vitals_told:
            await self._vitals_changed.wait()
        self._vitals_told = vitals
        return vitals

    async def detokenize(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        async with self._using():
            return await self._inner.detokenize(sequences)

    async def tokenize_chat(self, conversation: Conversation, client: bytes = b"", subnet: str = "") -> Sequence[int]:
        async with self._using(client=client, subnet=subnet):
            return await self._inner.tokenize_chat(conversation, client, subnet)

    async def tokenize_text(self, text: str, client: bytes = b"", subnet: str = "") -> Sequence[int]:
        async with self._using(client=client, subnet=subnet):
            return await self._inner.tokenize_text(text, client, subnet)

    async def tokenize_pair(self, query: str, document: str, client: bytes = b"", subnet: str = "") -> Sequence[int]:
        async with self._using(client=client, subnet=subnet):
            return await self._inner.tokenize_pair(query, document, client, subnet)

    async def embed(
        self, texts: Sequence[Sequence[int]], client: bytes = b"", subnet: str = ""
    ) -> list[NDArray[np.float32]]:
        async with self._using(sum(map(len, texts)), client, subnet):
            return await self._inner.embed(texts, client, subnet)

    @asynccontextmanager
    async def generate(self, request: EngineRequest) -> AsyncIterator[AsyncIterator[EngineItem]]:
        began = trio.current_time()
        async with AsyncExitStack() as stack:
            try:
                use = await stack.enter_async_context(self._using(len(request.prompt), request.client, request.subnet))
            except LocalError as exc:
                refused = AnswerStream()
                refused.put(EngineFailed("overloaded", str(exc), True, getattr(exc, "retry_s", 0.0)))
                yield refused
                return
            if request.deadline_s is not None:
                request = replace(request, deadline_s=request.deadline_s - (trio.current_time() - began))
            yield use.noting(await stack.enter_async_context(self._inner.generate(request)), self._rate)

    def _rate(self) -> int:
        return self._inner.vitals().prefill_rate or self._rates[0]

    async def cache_changes(self) -> CacheChange:
        return await self._inner.cache_changes()

    @asynccontextmanager
    async def _using(self, num_tokens: int = 0, client: bytes = b"", subnet: str = "") -> AsyncIterator["_Use"]:
        """The model is loaded during the block. num_tokens: what waits. client, subnet: see ``EngineRequest``. Raises
        BusyError when too many calls wait or the node serves the model no more, LocalError when the model cannot be
        loaded."""
        if self._is_retired:
            raise BusyError("the node serves this model no more", RETRY_S)
        is_own = not subnet
        if not self._is_open and not self._waiting.has_room(subnet, is_known=is_own):
            told = f"{self._waiting.num_taken} requests wait for the model"
            raise BusyError(told, self._loader.load_s(self.name))
        use, num_failures = _Use(), self._num_failures
        self._tell(Asked(self.name, is_own))
        try:
            if not self._is_open:
                await self._opened(num_failures, num_tokens, client, subnet)
            self._num_running += 1
            self._num_own += is_own
            try:
                yield use
            finally:
                self._num_running -= 1
                self._num_own -= is_own
                if not (self._num_running and self._num_own):
                    self._changed.notify()
        finally:
            self._tell(Ended(self.name, use.saved_s, is_own))

    async def _opened(self, num_failures: int, num_tokens: int, client: bytes, subnet: str) -> None:
        """Waits until calls may begin. num_failures: before the call. Raises LocalError when the model cannot be
        loaded."""
        if not self._waiting.take(client, subnet, is_known=not subnet):
            raise AssertionError("there was room a moment ago")
        self._waiting_tokens += num_tokens
        self._vitals_changed.notify()
        try:
            while not self._is_open:
                if self._num_failures != num_failures:
                    raise self._failure()
                await self._changed.wait()
        finally:
            self._waiting.free(client, subnet)
            self._waiting_tokens -= num_tokens


class _Use:
    """One call, and what reused prefixes saved it."""

    def __init__(self) -> None:
        self.saved_s = 0.0

    def noting(self, items: AsyncIterator[EngineItem], rate: Callable[[], int]) -> "_Noted":
        return _Noted(items, rate, self)


class _Noted:
    """The items of an answer, of which the last one is noted."""

    def __init__(self, items: AsyncIterator[EngineItem], rate: Callable[[], int], use: _Use) -> None:
        self._items = items
        self._rate = rate
        self._use = use

    def __aiter__(self) -> "_Noted":
        return self

    async def __anext__(self) -> EngineItem:
        item = await anext(self._items)
        if isinstance(item, EngineDone) and (rate := self._rate()):
            self._use.saved_s = item.usage.cached_tokens / rate
        return item
