"""Requests in a world: from the client to the entry node, over the links to an engine, and back as frames.

The entry's overlay decides (``Dispatch``) and is told what comes (``FrameReceived``), exactly as in a real node. Each
engine tells its own node's overlay what its cache holds and how loaded it is; everybody else learns that through the
protocol. What a node serves to itself crosses no link.

A stream opens in one round trip and then carries the prompt; frames keep their order. A message that the link loses is
sent again after a round trip and ``RESEND_S``, as TCP does. Bandwidth is not modelled. The tokens between the first and
the last travel in one frame at the end: nothing that is measured lies between. When a node stops, those that it has
decoded by then have arrived.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from proto.blocks import block_hashes, pack_tokens
from proto.effects import Abandon, Deliver, Dispatch, Fail, Finish, RequestEffect
from proto.events import CacheChanged, FrameReceived, RequestSubmitted, VitalsChanged
from proto.messages import Accepted, Failed, Final, Generate, Sampling, ServingFrame, Tokens, Usage, Vitals
from proto.overload import OVERLOADED
from proto.routing import ROUND_TRIPS
from sim.engine import Engine, EngineSpec, Job, Listener, Used
from sim.host import Host
from sim.liars import CLAIMED_VITALS, Claims
from sim.sessions import Prompt
from sim.world import NAMESPACE, SimNode, World

OPEN_ROUND_TRIPS = ROUND_TRIPS - 1
"""Until a new stream carries its first message: node/network/negotiation.py."""
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
    served_by: int = -1
    cached_tokens: int = 0
    """Of the prompt, in the cache of who served it."""
    found_tokens: int = 0
    """The same, of the attempt whose prefill began last."""
    promised_tokens: int = 0
    """That it was chosen on."""
    num_attempts: int = 0
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
    is_over: bool = False


@dataclass
class Serving:
    """The engines of all nodes and the requests between them. Make the world with ``perform``, then ``start`` nodes."""

    world: World
    specs: Sequence[EngineSpec]
    liars: Sequence[int] = ()
    """Nodes that claim everything, see ``liars.py``."""
    host: Host | None = None
    """The machine that all engines share; None: each has its own."""
    engines: list[Engine | None] = field(default_factory=list)
    """None: that node is not up."""
    _used: list[Used] = field(default_factory=list)
    """Of engines that are gone."""
    _claims: dict[int, Claims] = field(default_factory=dict)
    """Of the liars that are up."""
    _records: dict[bytes, Record] = field(default_factory=dict)
    """In flight."""
    _tokens: dict[bytes, tuple[int, ...]] = field(default_factory=dict)
    """Of those: the prompt, then what will be the answer."""
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
        if is_liar:
            self._claims[number] = Claims()
        world.serve(node, self._vitals(number, engine), engine.spec.context_tokens)

    def stop(self, number: int) -> None:
        """The node is gone, with its engine and its cache."""
        engine = self.engines[number]
        assert engine is not None
        for attempt in list(self._coming[number].values()):
            self._hand_over_decoded(attempt)
            self._end(attempt)
        self._used[number] += engine.used(self.world.now)
        self.engines[number] = None
        self._claims.pop(number, None)
        self.world.stop(number)

    def submit(self, entry: int, prompt: Prompt, on_over: Callable[[Record], None] | None = None) -> Record:
        """A client hands ``prompt`` to node ``entry`` now. on_over: called when it is answered or has failed."""
        self._num_requests += 1
        request_id = self._num_requests.to_bytes(16, "big")
        tokens = self._tokens[request_id] = prompt.tokens + prompt.answer
        chain = tuple(block_hashes(NAMESPACE, tokens))
        record = Record(request_id, entry, len(prompt.tokens), chain, self.world.now, on_over=on_over)
        self._records[request_id] = record
        sampling = Sampling(max_tokens=len(prompt.answer))
        event = RequestSubmitted(request_id, NAMESPACE, prompt.tokens, sampling)
        self.world.handle(self.world.node(entry), event)
        return record

    def run_until_over(self, records: Collection[Record], until: float) -> None:
        """Virtual time goes on until all of ``records`` are over, or it is ``until``, to a second."""
        while self.world.now < until and not all(record.is_over for record in records):
            self.world.run(self.world.now + 1.0)

    def used(self, number: int) -> Used:
        """Capacity used at a node so far, over all its lives."""
        engine = self.engines[number]
        return self._used[number] + (engine.used(self.world.now) if engine else Used())

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
            case Abandon():
                self._abandon(record, effect.attempt)
            case Finish():
                record.done_s = self.world.now
                record.served_by = self.world.number_of[effect.served_by]
                # Of an answer in parts the last one counts; and what is claimed is not measured.
                record.cached_tokens = min(effect.usage.cached_tokens, record.found_tokens)
                self._over(record)
            case Fail():
                record.failure = effect.code
                self._over(record)

    def _dispatch(self, node: SimNode, record: Record, effect: Dispatch) -> None:
        server = self.world.number_of[effect.peer]
        num_prompt = len(effect.generate.prompt) // 4
        tokens = self._tokens[record.request_id]
        # To a peer all requests of an entry node are that node's.
        client = b"" if server == node.number else node.peer
        num_answer = len(tokens) - num_prompt
        job = Job(record.request_id, effect.attempt, record.chain, tokens, num_prompt, num_answer, client)
        attempt = _Attempt(record, effect.attempt, server, job, effect.generate)
        record.num_attempts = effect.attempt
        record.promised_tokens = effect.decision.matched_tokens
        key = (record.request_id, effect.attempt)
        self._attempts[key] = self._coming[server][key] = attempt
        delay_s = 0.0
        if server != node.number:
            hops = [(node.number, server), (server, node.number)] * OPEN_ROUND_TRIPS + [(node.number, server)]
            delay_s = sum(self._delay_s(*hop) for hop in hops)
        self.world.call(self.world.now + delay_s, lambda: self._arrive(attempt))

    def _arrive(self, attempt: _Attempt) -> None:
        engine = self.engines[attempt.server]
        if attempt.is_over or engine is None:
            return
        refusal = self.world.node(attempt.server).overlay.turned_away(attempt.generate)
        if refusal is not None:
            self._send(attempt.job, refusal)
            self._end(attempt)
            return
        wait_s = engine.submit(attempt.job, self.world.now)
        if wait_s:
            busy = Failed(code=OVERLOADED, message="busy", retryable=True, retry_after_ms=math.ceil(1000 * wait_s))
            self._send(attempt.job, busy)
            self._end(attempt)

    def _abandon(self, record: Record, number: int) -> None:
        attempt = self._attempts.get((record.request_id, number))
        if attempt is None:
            return
        delay_s = 0.0 if attempt.server == record.entry else self._delay_s(record.entry, attempt.server)

        def cancel() -> None:
            engine = self.engines[attempt.server]
            if not attempt.is_over and engine is not None:
                self._end(attempt)
                engine.cancel(record.request_id, number, self.world.now)

        self.world.call(self.world.now + delay_s, cancel)

    def _over(self, record: Record) -> None:
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

    def _on_done(self, job: Job) -> None:
        attempt = self._attempts[job.request_id, job.attempt]
        self._send_tokens(job, job.num_answer)
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
        attempt.arrives_s = max(now + delay_s, attempt.arrives_s)
        self.world.call(attempt.arrives_s, lambda: self._receive(record.entry, event))

    def _receive(self, entry: int, event: FrameReceived) -> None:
        node = self.world.nodes[entry]
        if node is not None and event.request_id in self._records:
            self.world.handle(node, event)

    def _hand_over_decoded(self, attempt: _Attempt) -> None:
        """Of an answer that breaks off: what real nodes have told by now in frames of a tenth of a second."""
        job = attempt.job
        engine = self.engines[attempt.server]
        if not job.first_token_s or engine is None:
            return
        decoded = 1 + int((self.world.now - job.first_token_s) * engine.spec.decode_rate)
        first = self.world.now >= attempt.arrives_s
        frame = _tokens(attempt, min(decoded, job.num_answer - 1)) if first else None
        if frame is not None:
            self._receive(attempt.record.entry, FrameReceived(job.request_id, attempt.number, frame))

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
