"""Requests in a world: from the client to the entry node, over the links to an engine, and back as frames.

The entry's overlay decides (``Dispatch``) and is told what comes (``FrameReceived``), exactly as in a real node. Each
engine tells its own node's overlay what its cache holds and how loaded it is; everybody else learns that through the
protocol. What a node serves to itself crosses no link.

A stream opens in one round trip and then carries the prompt; frames keep their order. A message that the link loses is
sent again after a round trip and ``RESEND_S``, as TCP does. Bandwidth is not modelled. Tokens travel in a frame each
``frame_s``: where nothing fails, nothing that is measured lies between the first and the last. When a node stops, those
that it has decoded by then have arrived.

An entry gives up a node that is silent for longer than its overlay says, as ``node/requests/entry.py`` does.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

from mycelia.proto.admission.overload import OVERLOADED
from mycelia.proto.cache.sharing import Salt, owner_of
from mycelia.proto.effects import Abandon, Deliver, Dispatch, Fail, Finish, RequestEffect
from mycelia.proto.events import (
    CacheChanged,
    FrameReceived,
    RequestCancelled,
    RequestSubmitted,
    StreamLost,
    VitalsChanged,
)
from mycelia.proto.wire.blocks import STRIDE, block_hashes, pack_tokens
from mycelia.proto.wire.messages import Accepted, Failed, Final, Generate, Sampling, ServingFrame, Tokens, Usage, Vitals
from mycelia.sim.engine import Engine, EngineSpec, Job, Listener, Used
from mycelia.sim.host import Host
from mycelia.sim.liars import CLAIMED_VITALS, SILENT_VITALS, Claims
from mycelia.sim.scenario import Conduct
from mycelia.sim.sessions import Prompt
from mycelia.sim.world import NAMESPACE, SimNode, World

NO_ENGINE = Vitals(queued_tokens=0, active_requests=0, waiting_requests=0, slots=0)
"""Load report of a node whose engine is starting again."""
RESEND_S = 0.2
"""TCP's usual least timeout."""


@dataclass
class Record:
    """One request as its client saw it. Times are those of ``World.now``; 0: it never came to that."""

    request_id: bytes
    entry: int
    num_prompt: int
    """Tokens."""
    chain: tuple[int, ...]
    """Block hashes of prompt and answer."""
    submitted_s: float
    first_token_s: float = 0.0
    done_s: float = 0.0
    failure: str = ""
    code: str = ""
    """Code of the failure."""
    served_by: int = -1
    cached_tokens: int = 0
    """Tokens of the prompt in the cache of the serving node."""
    found_tokens: int = 0
    """The same, of the attempt whose prefill began last."""
    promised_tokens: int = 0
    """Cached tokens that the serving node was chosen for."""
    num_attempts: int = 0
    asked: set[int] = field(default_factory=set)
    """Nodes that it was sent to."""
    resumed: int = 0
    retry_after_s: float = 0.0
    """Retry-After of a failure that may pass."""
    is_retryable: bool = False
    on_tokens: Callable[[Sequence[int]], None] = lambda tokens: None
    on_over: Callable[["Record"], None] | None = None

    @property
    def is_over(self) -> bool:
        return self.done_s > 0 or bool(self.failure)


@dataclass
class _Attempt:
    """Under way to an engine or in it."""

    record: Record
    number: int
    server: int
    job: Job
    generate: Generate
    position: int = 0
    """Tokens sent so far."""
    arrives_s: float = 0.0
    """The last frame."""
    heard_s: float = 0.0
    """When its entry last received one."""
    watched_s: float = 0.0
    """When its entry looks next whether it was silent for too long."""
    is_over: bool = False


@dataclass
class Serving:
    """The engines of all nodes and the requests between them. Make the world with ``perform``, then ``start`` nodes."""

    world: World
    specs: Sequence[EngineSpec]
    liars: Sequence[int] = ()
    """Nodes that claim everything, see ``liars.py``."""
    conduct: Conduct = Conduct.COMPUTES
    """What liars do with prompts."""
    host: Host | None = None
    """The machine that all engines share; None: each has its own."""
    frame_s: float = 1.0
    """Between two frames of tokens. Real nodes send ten a second; an entry node that watches their pace needs fewer."""
    engines: list[Engine | None] = field(default_factory=list)
    """None: that node is not up, or its engine."""
    silent_until: dict[int, float] = field(default_factory=dict)
    """Nodes whose engines are heard only later: they are frozen, or their disk is slow."""
    salts: dict[tuple[int, ...], Salt] = field(default_factory=dict)
    """Salts of prompts in flight, by their block hashes."""
    _used: list[Used] = field(default_factory=list)
    """Capacity that engines used which are gone."""
    _claims: dict[int, Claims] = field(default_factory=dict)
    """Claims of the liars that are up."""
    _records: dict[bytes, Record] = field(default_factory=dict)
    """In flight."""
    _tokens: dict[bytes, tuple[int, ...]] = field(default_factory=dict)
    """Tokens of each request in flight: the prompt, then what will be the answer."""
    _attempts: dict[tuple[bytes, int], _Attempt] = field(default_factory=dict)
    """The running attempt of each request is its last one."""
    _coming: list[dict[tuple[bytes, int], _Attempt]] = field(default_factory=list)
    """At each node: sent there and not yet over."""
    _num_requests: int = 0

    def __post_init__(self) -> None:
        self.engines = [None] * len(self.specs)
        self._used = [Used()] * len(self.specs)
        self._coming = [{} for _ in self.specs]

    # --- for scenarios ---------------------------------------------------------------------------------------------

    def start(self, node: SimNode) -> None:
        """An empty engine is ready at ``node``."""
        self.start_engine(node)
        engine = self.engines[node.number]
        assert engine is not None
        if node.number in self.liars:
            self._claims[node.number] = Claims()
        self.world.serve(node, self._vitals(node.number, engine), engine.spec.context_tokens)

    def start_engine(self, node: SimNode) -> None:
        """An empty one, at a node that is up and has none."""
        number, world = node.number, self.world
        is_liar = number in self.liars

        def tell_cache(stored: list[tuple[int, Sequence[int]]], dropped: list[int]) -> None:
            if not is_liar:
                world.handle(node, CacheChanged(NAMESPACE, stored, dropped))
            if stored:
                for liar, claims in self._claims.items():
                    world.handle(world.node(liar), claims.hear(stored))

        def tell_load() -> None:
            if not is_liar:  # (whose claims never change)
                world.handle(node, VitalsChanged(NAMESPACE, engine.vitals(world.now)))

        def at(time: float, action: Callable[[], None]) -> None:
            world.call(time, lambda: action() if self.engines[number] is engine else None)

        listener = Listener(at, self._on_begin, self._on_first, self._on_done, tell_cache, tell_load)
        engine = self.engines[number] = Engine(self.specs[number], listener, self.host)

    def stop(self, number: int, is_noticed: bool = True) -> None:
        """The node is gone, with its engine and its cache. is_noticed: see ``World.stop``."""
        for attempt in list(self._coming[number].values()):
            self._hand_over_decoded(attempt)
            self._end(attempt)
        self._end_engine(number)
        self._claims.pop(number, None)
        self.silent_until.pop(number, None)
        self.world.stop(number, is_noticed)
        if is_noticed:
            self._cancel_for(number)

    def crash(self, number: int) -> None:
        """The engine of a node dies under it. ``recover`` gives it another one."""
        node = self.world.node(number)
        for attempt in list(self._coming[number].values()):
            if attempt.job.submitted_s:
                self._hand_over_decoded(attempt)
                self._send(attempt.job, Failed(code="engine_lost", message="the engine died", retryable=True))
                self._end(attempt)
        self._end_engine(number)
        self.world.handle(node, CacheChanged(NAMESPACE, [], [], reset=True))
        self.world.handle(node, VitalsChanged(NAMESPACE, NO_ENGINE))

    def recover(self, node: SimNode) -> None:
        """Its engine is there again, and empty."""
        self.start_engine(node)
        engine = self.engines[node.number]
        assert engine is not None
        self.world.handle(node, VitalsChanged(NAMESPACE, engine.vitals(self.world.now)))

    def disconnect(self, one: int, other: int) -> None:
        """The connection breaks, and with it what either serves for the other."""
        self.world.disconnect(one, other)
        self._cancel_for(one, at=other)
        self._cancel_for(other, at=one)

    def forget(self, number: int, gone: int) -> None:
        """See ``World.forget``."""
        if self.world.forget(number, gone):
            self._cancel_for(gone, at=number)

    def submit(
        self,
        entry: int,
        prompt: Prompt,
        on_over: Callable[[Record], None] | None = None,
        on_tokens: Callable[[Sequence[int]], None] = lambda tokens: None,
        num_answered: int = 0,
    ) -> Record:
        """A client hands ``prompt`` to node ``entry`` now. on_over: called when it is answered or has failed.
        on_tokens: with tokens as they come. num_answered: tokens of the answer that it has already."""
        self._num_requests += 1
        request_id = self._num_requests.to_bytes(16, "big")
        tokens = self._tokens[request_id] = prompt.tokens + prompt.answer
        chain = tuple(block_hashes(NAMESPACE, tokens))
        record = Record(
            request_id, entry, len(prompt.tokens), chain, self.world.now, on_tokens=on_tokens, on_over=on_over
        )
        self._records[request_id] = record
        sampling = Sampling(max_tokens=len(prompt.answer))
        answered = prompt.answer[:num_answered]
        self.salts[chain[: len(prompt.tokens) // STRIDE]] = prompt.salt
        event = RequestSubmitted(
            request_id,
            NAMESPACE,
            prompt.tokens,
            sampling,
            generated=answered,
            salt=prompt.salt,
            open_tokens=prompt.open_tokens,
        )
        self.world.handle(self.world.node(entry), event)
        return record

    def leave(self, record: Record) -> None:
        """The client hears no more of it, for it went away or its entry did. Nothing happens if it is over."""
        if self._records.pop(record.request_id, None) is None:
            return
        del self._tokens[record.request_id]
        entry = self.world.nodes[record.entry]
        if entry is not None:
            self.world.handle(entry, RequestCancelled(record.request_id))
            attempt = self._attempts.get((record.request_id, record.num_attempts))
            if attempt is not None:
                self._cancel(attempt)

    def run_until_over(self, records: Collection[Record], until: float) -> None:
        """Virtual time goes on until all of ``records`` are over, or it is ``until``, to a second."""
        while self.world.now < until and not all(record.is_over for record in records):
            self.world.run(self.world.now + 1.0)

    def used(self, number: int) -> Used:
        """Capacity used at a node so far, over all its lives."""
        engine = self.engines[number]
        return self._used[number] + (engine.used(self.world.now) if engine else Used())

    def is_working(self, number: int) -> bool:
        """Whether anything is under way that a node serves or that entered there."""
        return bool(self._coming[number]) or any(record.entry == number for record in self._records.values())

    def coming(self, number: int) -> list[Job]:
        """Jobs sent to a node that are not over, also those still on their way, in order of dispatch."""
        return [attempt.job for attempt in self._coming[number].values()]

    # --- effects ---------------------------------------------------------------------------------------------------

    def perform(self, node: SimNode, effect: RequestEffect) -> None:
        """What an overlay wants done about a request. For ``World``."""
        record = self._records.get(effect.request_id)
        if record is None:
            return
        match effect:
            case Dispatch():
                self._dispatch(node, record, effect)
            case Deliver():
                record.first_token_s = record.first_token_s or self.world.now
                record.on_tokens(effect.tokens)
            case Abandon():
                self._abandon(record, effect.attempt)
            case Finish():
                record.done_s = self.world.now
                record.served_by = self.world.number_of[effect.served_by]
                record.resumed = effect.resumed
                # Of an answer in parts the last one counts; and what is claimed is not measured.
                record.cached_tokens = min(effect.usage.cached_tokens, record.found_tokens)
                self._over(record)
            case Fail():
                record.failure, record.code = f"{effect.code}: {effect.message}", effect.code
                record.is_retryable, record.retry_after_s = effect.retryable, effect.retry_after_ms / 1000
                self._over(record)

    def _dispatch(self, node: SimNode, record: Record, effect: Dispatch) -> None:
        server = self.world.number_of[effect.peer]
        num_prompt = len(effect.generate.prompt) // 4
        tokens = self._tokens[record.request_id]
        # To a peer all requests of an entry node are that node's.
        client = b"" if server == node.number else node.peer
        num_answer = len(tokens) - num_prompt
        job = Job(record.request_id, effect.attempt, record.chain, tokens, num_prompt, num_answer, client)
        generate = effect.generate
        job.owner = owner_of(generate.tag, generate.scope, node.peer, f"of node {node.number}")
        job.declared_open = generate.open_tokens
        attempt = _Attempt(record, effect.attempt, server, job, effect.generate)
        record.num_attempts = effect.attempt
        record.asked.add(server)
        record.promised_tokens = effect.decision.matched_tokens
        key = (record.request_id, effect.attempt)
        self._attempts[key] = self._coming[server][key] = attempt
        delay_s = 0.0
        if server != node.number:
            delay_s = self._delay_s(node.number, server)
            self._heard(attempt)
        self.world.call(self.world.now + delay_s, lambda: self._arrive(attempt))

    def _heard(self, attempt: _Attempt) -> None:
        attempt.heard_s = self.world.now
        self._watch(attempt)

    def _watch(self, attempt: _Attempt) -> None:
        """The entry ends it when it hears nothing for too long."""
        node, now = self.world.nodes[attempt.record.entry], self.world.now
        record, key = attempt.record, (attempt.record.request_id, attempt.number)
        if node is None or record.request_id not in self._records or record.num_attempts != attempt.number:
            return
        due_s = attempt.heard_s + node.overlay.silence_s(*key)
        if due_s <= now:
            self._cancel(attempt)
            self.world.handle(node, StreamLost(*key, "silent for too long"))
        elif not now < attempt.watched_s <= due_s:  # (a look that comes sooner finds out when the next one is due)
            attempt.watched_s = due_s
            self.world.call(due_s, lambda: self._watch(attempt))

    def _arrive(self, attempt: _Attempt) -> None:
        node, engine = self.world.nodes[attempt.server], self.engines[attempt.server]
        if attempt.is_over or node is None:
            return
        if self.world.is_frozen(attempt.server):
            self.world.call(self.silent_until[attempt.server], lambda: self._arrive(attempt))
            return
        if engine is None:
            self._send(attempt.job, Failed(code=OVERLOADED, message="the engine is restarting", retryable=True))
            self._end(attempt)
            return
        refusal = node.overlay.turned_away(attempt.generate, attempt.job.owner.tag)
        if refusal is not None:
            self._send(attempt.job, refusal)
            self._end(attempt)
            return
        if attempt.server in self.liars and self.conduct is not Conduct.COMPUTES:
            self._lie(attempt)
            return
        wait_s = engine.submit(attempt.job, self.world.now)
        if wait_s:
            busy = Failed(code=OVERLOADED, message="busy", retryable=True, retry_after_ms=math.ceil(1000 * wait_s))
            self._send(attempt.job, busy)
            self._end(attempt)

    def _lie(self, attempt: _Attempt) -> None:
        """Answer without a model."""
        job, now = attempt.job, self.world.now
        self._send(job, Accepted(cached_tokens=job.num_prompt - 1, vitals=SILENT_VITALS))

        def tell(num_tokens: int) -> None:
            if attempt.is_over:
                return
            self._send_tokens(job, num_tokens)
            if num_tokens == job.num_answer:
                self._send_final(job)

        for after_s, num_tokens in self.conduct.plan(job.num_answer):
            self.world.call(now + after_s, partial(tell, num_tokens))

    def _abandon(self, record: Record, number: int) -> None:
        attempt = self._attempts.get((record.request_id, number))
        if attempt is not None:
            self._cancel(attempt)

    def _cancel(self, attempt: _Attempt) -> None:
        """Its node hears of it after the way there, from an entry that is not frozen."""
        entry, server = attempt.record.entry, attempt.server
        sent_s = self.silent_until[entry] if self.world.is_frozen(entry) else self.world.now
        delay_s = 0.0 if server == entry else self._delay_s(entry, server)
        self.world.call(sent_s + delay_s, lambda: self._end_at_engine(attempt))

    def _cancel_for(self, entry: int, at: int | None = None) -> None:
        """What node ``at``, or any, serves for an entry that it has lost."""
        for server in range(len(self._coming)) if at is None else (at,):
            for attempt in list(self._coming[server].values()):
                if attempt.record.entry == entry != server:
                    self._end_at_engine(attempt)

    def _end_at_engine(self, attempt: _Attempt) -> None:
        engine = self.engines[attempt.server]
        if not attempt.is_over:
            self._end(attempt)
            if engine is not None:
                engine.cancel(attempt.record.request_id, attempt.number, self.world.now)

    def _end_engine(self, number: int) -> None:
        engine = self.engines[number]
        if engine is not None:
            self._used[number] += engine.used(self.world.now)
            self.engines[number] = None

    def _over(self, record: Record) -> None:
        self.salts.pop(record.chain[: record.num_prompt // STRIDE], None)
        del self._records[record.request_id]
        del self._tokens[record.request_id]
        if record.on_over is not None:
            record.on_over(record)

    # --- what engines tell -----------------------------------------------------------------------------------------

    def _on_begin(self, job: Job) -> None:
        attempt = self._attempts[job.request_id, job.attempt]
        attempt.record.found_tokens = job.cached
        engine = self.engines[attempt.server]
        assert engine is not None
        self._send(job, Accepted(cached_tokens=self._cached(attempt), vitals=self._vitals(attempt.server, engine)))

    def _on_first(self, job: Job) -> None:
        self._send_tokens(job, 1)
        self._send_decoded_later(self._attempts[job.request_id, job.attempt])

    def _send_decoded_later(self, attempt: _Attempt) -> None:
        def send() -> None:
            if not attempt.is_over:
                self._send_tokens(attempt.job, self._num_decoded(attempt))
                self._send_decoded_later(attempt)

        self.world.call(self.world.now + self.frame_s, send)

    def _on_done(self, job: Job) -> None:
        self._send_tokens(job, job.num_answer)
        self._send_final(job)

    def _send_final(self, job: Job) -> None:
        attempt = self._attempts[job.request_id, job.attempt]
        engine = self.engines[attempt.server]
        assert engine is not None
        usage = Usage(
            prompt_tokens=job.num_prompt,
            cached_tokens=self._cached(attempt),
            completion_tokens=job.num_answer,
            queue_ms=round(1000 * (job.prefill_s - job.submitted_s)),
            prefill_ms=round(1000 * (job.first_token_s - job.prefill_s)),
            decode_ms=round(1000 * (self.world.now - job.first_token_s)),
        )
        self._send(job, Final(reason="length", usage=usage, vitals=self._vitals(attempt.server, engine)))
        self._end(attempt)

    def _cached(self, attempt: _Attempt) -> int:
        """As its node says."""
        return attempt.job.num_prompt - 1 if attempt.server in self.liars else attempt.job.cached

    def _vitals(self, number: int, engine: Engine) -> Vitals:
        """As its node says."""
        return CLAIMED_VITALS if number in self.liars else engine.vitals(self.world.now)

    def _send_tokens(self, job: Job, until: int) -> None:
        """The job's answer up to token ``until``, less what was sent before."""
        frame = _tokens(self._attempts[job.request_id, job.attempt], until)
        if frame is not None:
            self._send(job, frame)

    def _send(self, job: Job, frame: ServingFrame) -> None:
        attempt = self._attempts[job.request_id, job.attempt]
        record, now = attempt.record, self.world.now
        event = FrameReceived(record.request_id, attempt.number, frame)
        delay_s = 0.0 if attempt.server == record.entry else self._delay_s(attempt.server, record.entry)
        sent_s = max(now, self.silent_until.get(attempt.server, 0.0))
        attempt.arrives_s = max(sent_s + delay_s, attempt.arrives_s)
        self.world.call(attempt.arrives_s, lambda: self._receive(attempt, event))

    def _receive(self, attempt: _Attempt, event: FrameReceived) -> None:
        node = self.world.nodes[attempt.record.entry]
        if node is not None and event.request_id in self._records:
            self.world.handle(node, event)
            if attempt.server != attempt.record.entry:
                self._heard(attempt)

    def _hand_over_decoded(self, attempt: _Attempt) -> None:
        """Deliver of a broken-off answer what real nodes have sent by now, in frames of a tenth of a second."""
        job = attempt.job
        if not job.first_token_s or self.world.now < attempt.arrives_s:
            return
        if self.world.now < self.silent_until.get(attempt.server, 0.0):
            return
        frame = _tokens(attempt, self._num_decoded(attempt))
        if frame is not None:
            self._receive(attempt, FrameReceived(job.request_id, attempt.number, frame))

    def _num_decoded(self, attempt: _Attempt) -> int:
        """By now, of an answer that is not whole."""
        job = attempt.job
        decoding_s = self.world.now - job.first_token_s
        if self.host is not None and job.work is not None:
            decoding_s = (job.num_answer - 1) / self.specs[attempt.server].decode_rate
            decoding_s -= self.host.left_s(job.work, self.world.now)
        decoded = 1 + int(decoding_s * self.specs[attempt.server].decode_rate)
        return min(decoded, job.num_answer - 1)

    def _end(self, attempt: _Attempt) -> None:
        attempt.is_over = True
        key = (attempt.record.request_id, attempt.number)
        self._attempts.pop(key, None)
        self._coming[attempt.server].pop(key, None)

    def _delay_s(self, sender: int, receiver: int) -> float:
        delay_s = 0.0
        while True:
            once_s = self.world.links.delay_s(sender, receiver, self.world.now + delay_s)
            if once_s is not None:
                return delay_s + once_s
            delay_s += self.world.links.round_trip_s(sender, receiver) + RESEND_S


def _tokens(attempt: _Attempt, until: int) -> Tokens | None:
    """The next frame: the answer of this attempt up to token ``until``."""
    first = attempt.job.num_prompt + attempt.position
    tokens = attempt.job.tokens[first : attempt.job.num_prompt + until]
    if not tokens:
        return None
    frame = Tokens(position=attempt.position, tokens=pack_tokens(tokens), text=b"")
    attempt.position = until
    return frame
