"""An engine without a model, for tests: deterministic tokens, a real prefix tree, and configured durations.

Every token is a function of all tokens before it, so an answer goes on in the same way when it is resumed on another
FakeEngine. Durations use trio's clock: with ``trio.testing.MockClock(autojump_threshold=0)`` they take no real time.
"""

import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import numpy as np
import trio
from numpy.typing import NDArray

from mycelia.node.engine.changes import ChangeLog
from mycelia.node.engine.engine import (
    DEADLINE,
    TOO_LATE,
    USUAL_ANSWER_TOKENS,
    CacheChange,
    EngineAccepted,
    EngineDone,
    EngineFailed,
    EngineItem,
    EnginePromptLogprobs,
    EngineRequest,
    EngineTokens,
    ModelInfo,
    Residence,
    append_tokens,
)
from mycelia.node.engine.fake.model import (
    END_TOKEN,
    NUM_VOCAB,
    TURN_TOKEN,
    VOCABULARY,
    counts_of,
    item_of,
    logprobs_of,
    next_token,
    overlap_of,
    piece,
)
from mycelia.node.engine.fake.settings import FakeSettings, refusal_of, reported_of
from mycelia.node.engine.kinds import RERANK, TEXT, cannot
from mycelia.node.engine.prompts import PromptLimit, TooLongError, over_context
from mycelia.node.engine.stops import TextGate
from mycelia.node.signals import Signal
from mycelia.proto.admission.fair_queue import FairQueue
from mycelia.proto.answers.spelling import Vocabulary
from mycelia.proto.cache.meters import HoldMeter
from mycelia.proto.cache.radix import RadixTree
from mycelia.proto.cache.sharing import Sharing, match, paint
from mycelia.proto.wire.blocks import namespace_key
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import MAX_LOGPROBS_PER_FRAME, Conversation, Usage, Vitals


@dataclass(eq=False)
class _Work:
    request: EngineRequest
    queued_tokens: int
    """Prompt tokens not computed yet, cached ones included."""
    cached_tokens: int = 0
    num_open: int = 0
    """Number of open tokens of its path."""
    started: trio.Event = field(default_factory=trio.Event)
    generated: list[int] = field(default_factory=list)

    @property
    def client(self) -> bytes:
        return self.request.client

    @property
    def subnet(self) -> str:
        return self.request.subnet


class FakeEngine:
    """An ``Engine`` with all state in this object. It needs no nursery: requests run in the tasks of their callers."""

    def __init__(self, settings: FakeSettings | None = None) -> None:
        self.settings = settings or FakeSettings()
        self._tree = RadixTree()
        self._sharing = Sharing(b"fake")
        self._next_id = 0
        self._changes = ChangeLog()
        self._changed = Signal()
        self._waiting: FairQueue[_Work] = FairQueue(self.settings.max_waiting)
        self._running: set[_Work] = set()
        self._hold = HoldMeter()
        self._vitals_told: Vitals | None = None
        self._load_changed = Signal()
        self._epoch = 0
        self._fail_after: list[int] = []
        self.requests: deque[EngineRequest] = deque(maxlen=1_000)
        self.num_cancelled = 0

    # --- for tests ------------------------------------------------------------------------------------------------

    def fail_next(self, after_tokens: int) -> None:
        """Let the next request end with engine_lost after so many tokens."""
        self._fail_after.append(after_tokens)

    def crash(self) -> None:
        """Behave as if the child died: requests in flight end with engine_lost, the cache is empty."""
        self._epoch += 1
        self._tree.clear()
        self._changes.reset()
        self._changed.notify()

    # --- the Engine interface -------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        settings = self.settings
        digest, kv_settings, cells = settings.model_name.encode(), "fake", settings.cells
        return ModelInfo(
            settings.model_name,
            namespace_key(digest, kv_settings),
            cells,
            NUM_VOCAB,
            "prefix",
            cells,
            token_bytes=1,
            model_digest=digest,
            kv_settings=kv_settings,
            kind=settings.kind,
        )

    @property
    def vocabulary(self) -> Vocabulary:
        return VOCABULARY

    @property
    def residence(self) -> Residence:
        return Residence()

    def vitals(self) -> Vitals:
        return Vitals(
            queued_tokens=sum(work.queued_tokens for work in (*self._running, *self._waiting)),
            active_requests=len(self._running),
            waiting_requests=len(self._waiting),
            slots=self.settings.slots,
            prefill_rate=round(self.settings.prefill_rate),
            decode_rate=round(self.settings.decode_rate),
            hold_ms=self._hold.mean_ms,
        )

    async def vitals_changes(self) -> Vitals:
        await trio.lowlevel.checkpoint()
        while self.vitals() == self._vitals_told:
            await self._load_changed.wait()
        self._vitals_told = self.vitals()
        return self._vitals_told

    async def detokenize(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        await trio.lowlevel.checkpoint()
        return ["".join(chr(token) if token < TURN_TOKEN else "|" for token in tokens) for tokens in sequences]

    async def tokenize_text(self, text: str, client: bytes = b"", subnet: str = "") -> list[int]:
        await trio.lowlevel.checkpoint()
        PromptLimit(self.settings.cells, token_bytes=10).check_size(len(text))
        return list(text.encode("utf-8", "replace"))

    async def tokenize_pair(self, query: str, document: str, client: bytes = b"", subnet: str = "") -> list[int]:
        await trio.lowlevel.checkpoint()
        whole = [*query.encode("utf-8", "replace"), END_TOKEN, *document.encode("utf-8", "replace")]
        return whole[: self.settings.cells]

    async def tokenize_chat(self, conversation: Conversation, client: bytes = b"", subnet: str = "") -> list[int]:
        await trio.lowlevel.checkpoint()
        if self.settings.kind != TEXT:
            raise LocalError(cannot(self.settings.model_name, self.settings.kind, TEXT))
        if not conversation.messages:
            raise LocalError("a conversation needs at least one message")
        tokens: list[int] = []
        for message in conversation.messages:
            tokens += [TURN_TOKEN, *message.role.encode(), ord("\n"), *message.content.encode(), END_TOKEN]
        tools = conversation.tools
        head = [TURN_TOKEN, *b"tools\n", *tools.encode(), END_TOKEN] if tools else []
        return [*head, *tokens, TURN_TOKEN, *b"assistant\n"]

    async def embed(
        self, texts: Sequence[Sequence[int]], client: bytes = b"", subnet: str = ""
    ) -> list[NDArray[np.float32]]:
        await trio.lowlevel.checkpoint()
        if not texts or not all(texts):
            raise LocalError("there is no text to embed")
        for place, text in enumerate(texts):
            if len(text) > (most := self.settings.cells):
                raise TooLongError(over_context(most, f"{len(text)} tokens (in text {place} of the input)"))
        return [(overlap_of if self.settings.kind == RERANK else counts_of)(tokens) for tokens in texts]

    @asynccontextmanager
    async def generate(self, request: EngineRequest) -> AsyncIterator[AsyncIterator[EngineItem]]:
        self.requests.append(request)
        async with aclosing(self._items(request)) as items:
            yield items

    async def cache_changes(self) -> CacheChange:
        await trio.lowlevel.checkpoint()
        while not self._changes:
            await self._changed.wait()
        return self._changes.take()

    # --- one request ----------------------------------------------------------------------------------------------

    async def _items(self, request: EngineRequest) -> AsyncGenerator[EngineItem, None]:
        failure = refusal_of(request, self.settings)
        if failure is not None:
            await trio.lowlevel.checkpoint()
            yield failure
            return
        arrived, done = trio.current_time(), False
        work = _Work(request, len(request.prompt))
        wait_s = self._waiting.join(work, arrived, self._first_start_s())
        if wait_s:
            await trio.lowlevel.checkpoint()
            yield EngineFailed("overloaded", "too many requests are waiting", True, wait_s)
            return
        fail_after = self._fail_after.pop(0) if self._fail_after else None
        try:
            with self._place(work):
                await work.started.wait()
                async with aclosing(self._run(work, arrived, fail_after)) as items:
                    async for item in items:
                        done = isinstance(item, EngineDone | EngineFailed)
                        yield item
        finally:
            if not done:
                self.num_cancelled += 1
                self._store(work)

    @contextmanager
    def _place(self, work: _Work) -> Iterator[None]:
        self._start_next()
        try:
            yield
        finally:
            if work in self._running:
                self._running.remove(work)
            else:
                self._waiting.withdraw(work)
            self._start_next()

    def _first_start_s(self) -> float:
        """An estimate of the seconds between starts, before any are measured: the mean time for the rest of a running
        request, divided by their number."""
        prefill_rate, decode_rate = self.settings.prefill_rate or math.inf, self.settings.decode_rate or math.inf
        left_s = [
            work.queued_tokens / prefill_rate
            + max(min(work.request.sampling.max_tokens, USUAL_ANSWER_TOKENS) - len(work.generated), 0) / decode_rate
            for work in self._running
        ]
        return sum(left_s) / max(len(left_s), 1) ** 2

    def _start_next(self) -> None:
        while self._waiting and len(self._running) < self.settings.slots:
            work = next(iter(self._waiting))
            request = work.request
            reported = reported_of(request)
            prompt = request.prompt[: (reported.start if reported else len(request.prompt)) - 1]
            num_open = self._sharing.num_open(self._sharing.chain(prompt, request.owner.swarm))
            work.cached_tokens, _, work.num_open = match(self._tree, request.owner, prompt, num_open)
            self._waiting.start(work, len(request.prompt) - work.cached_tokens, trio.current_time())
            self._running.add(work)
            work.started.set()
        if self._waiting:
            self._waiting.blocked(trio.current_time())
        self._load_changed.notify()

    async def _run(self, work: _Work, arrived: float, fail_after: int | None) -> AsyncGenerator[EngineItem, None]:
        request, cached = work.request, work.cached_tokens
        epoch, lost = self._epoch, EngineFailed("engine_lost", "the engine process died", True)
        late = EngineFailed(DEADLINE, TOO_LATE, False)
        due = math.inf if request.deadline_s is None else arrived + request.deadline_s
        admitted = trio.current_time()
        yield EngineAccepted(cached)
        await _pass_time(len(request.prompt) - cached, self.settings.prefill_rate, due)
        work.queued_tokens = 0
        self._load_changed.notify()
        first = trio.current_time()
        for start in range(0, len(reported_of(request)), MAX_LOGPROBS_PER_FRAME):
            part = reported_of(request)[start : start + MAX_LOGPROBS_PER_FRAME]
            entries = [logprobs_of(request.prompt[place], request.sampling.prompt_logprobs) for place in part]
            yield EnginePromptLogprobs(part.start, tuple(entries))
        max_tokens = min(request.sampling.max_tokens, self.settings.cells - len(request.prompt))
        reason, gate = "length", TextGate([stop.encode() for stop in request.sampling.stop])
        prompt, num_sent, due_item = request.prompt, 0, -math.inf

        def fresh(texts: Sequence[bytes]) -> list[EngineTokens]:
            nonlocal num_sent, due_item
            items: list[EngineTokens] = []
            for text in texts:
                append_tokens(items, item_of(work.generated[num_sent], text, request.sampling))
                due_item = trio.current_time() + self.settings.coalesce_s
                num_sent += 1
            return items

        gate.skip(b"".join(map(piece, prompt[len(prompt) - request.resumed_tokens :])))
        for position in range(max_tokens):
            if gate.is_stopped:
                reason = "stop"
                break
            if self._epoch != epoch or position == fail_after:
                yield lost
                return
            if trio.current_time() >= due:
                for item in fresh(gate.take()):
                    yield item
                yield late
                return
            is_first = not request.resumed_tokens and not position
            token = next_token([*request.prompt, *work.generated], request.sampling, is_first)
            if token == END_TOKEN and not request.sampling.prompt_logprobs:
                reason = "stop"
                break
            await _pass_time(1, self.settings.decode_rate, due)
            work.generated.append(token)
            self._waiting.charge_answer(work.client, 1, work.subnet)
            gate.feed(piece(token))
            if token == END_TOKEN:
                reason = "stop"
                break
            if trio.current_time() >= due_item:
                for item in fresh(gate.take()):
                    yield item
        if self._epoch != epoch or fail_after is not None:
            yield lost
            return
        for item in fresh(gate.end()):
            yield item
        if gate.is_stopped:
            reason = "stop"
        self._store(work)
        now = trio.current_time()
        self._hold.add(now - admitted)
        usage = Usage(
            prompt_tokens=len(request.prompt),
            cached_tokens=cached,
            completion_tokens=len(work.generated),
            queue_ms=round(1000 * (admitted - arrived)),
            prefill_ms=round(1000 * (first - admitted)),
            decode_ms=round(1000 * (now - first)),
        )
        yield EngineDone(reason, usage)

    def _store(self, work: _Work) -> None:
        """Cache a finished sequence, evicting the least valuable leaves beyond ``cells``."""
        owner, tokens = work.request.owner, [*work.request.prompt, *work.generated]
        chain = self._sharing.note(owner, tokens, work.request.open_tokens)
        if not owner.is_public and work.cached_tokens <= work.num_open:
            work.num_open = self._sharing.num_open(chain)
        path = paint(tokens, work.num_open, owner.tag, owner.swarm)
        seq_id, self._next_id = self._next_id, self._next_id + 1
        redundant = self._tree.insert(path, seq_id, trio.current_time())
        if seq_id in redundant:
            return
        for gone in redundant:
            self._changes.evict(gone)
        self._changes.store(seq_id, path)
        while self._tree.num_tokens > self.settings.cells:
            victim = self._tree.least_valuable()
            assert victim is not None
            self._tree.remove(victim)
            self._changes.evict(victim)
        self._changed.notify()


async def _pass_time(num_tokens: int, rate: float, due: float) -> None:
    needed = num_tokens / rate if rate else 0.0
    await trio.sleep(max(0.0, min(needed, due - trio.current_time())))
