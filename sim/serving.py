"""Requests in a world: from the client to the entry node, over the links to an engine, and back as frames.

The entry node's overlay decides (``Dispatch``) and gets what comes (``FrameReceived``), exactly as in a real node. Each
engine reports its cache and its load to its own node's overlay; other nodes learn them through the protocol. Requests
that a node serves itself cross no link.

A stream opens in one round trip and then carries the prompt. What engines do with it: ``engines.py``. An entry node
gives up a node that is silent for longer than its overlay says, as ``node/requests/entry.py`` does.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

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
from mycelia.proto.wire.blocks import STRIDE, block_hashes
from mycelia.proto.wire.messages import Failed, Sampling, Vitals
from mycelia.sim.engine import Job
from mycelia.sim.engines import Engines
from mycelia.sim.host import Host
from mycelia.sim.machine import EngineSpec, Used
from mycelia.sim.node import SimNode
from mycelia.sim.prompts import Prompt
from mycelia.sim.record import Attempt, Record
from mycelia.sim.scenario import Conduct
from mycelia.sim.world import NAMESPACE, World

NO_ENGINE = Vitals(queued_tokens=0, active_requests=0, waiting_requests=0, slots=0)
"""Load report of a node whose engine is starting again."""


@dataclass
class Serving:
    """Requests of a world and the engines that serve them. Make the world with ``perform``, then ``start`` nodes."""

    world: World
    specs: Sequence[EngineSpec]
    liars: Sequence[int] = ()
    """Nodes that claim everything, see ``liars.py``."""
    conduct: Conduct = Conduct.COMPUTES
    """How dishonest nodes handle prompts."""
    host: Host | None = None
    """The machine that all engines share; None: each has its own."""
    frame_s: float = 1.0
    """Seconds between two frames of tokens. Real nodes send ten a second; observing their pace needs fewer."""
    salts: dict[tuple[int, ...], Salt] = field(default_factory=dict)
    """Salts of prompts in flight, by their block hashes."""
    _records: dict[bytes, Record] = field(default_factory=dict)
    """Requests in flight."""
    _tokens: dict[bytes, tuple[int, ...]] = field(default_factory=dict)
    """Tokens of each request in flight: the prompt, then the coming answer."""
    _num_requests: int = 0

    def __post_init__(self) -> None:
        self._side = Engines(
            self.world, self.specs, self.liars, self.conduct, self.host, self.frame_s, deliver=self._receive
        )
        self.engines = self._side.engines
        self.silent_until = self._side.silent_until

    # --- for scenarios ---------------------------------------------------------------------------------------------

    def start(self, node: SimNode) -> None:
        """An empty engine is ready at ``node``."""
        engine = self._side.start(node)
        if node.number in self.liars:
            self._side.claim(node.number, True)
        self.world.serve(node, self._side.vitals(node.number), engine.spec.context_tokens)

    def stop(self, number: int, is_noticed: bool = True) -> None:
        """The node is gone, with its engine and its cache. is_noticed: see ``World.stop``."""
        for attempt in self._side.at(number):
            self._side.hand_over_decoded(attempt)
            self._side.end(attempt)
        self._side.stop(number)
        self._side.claim(number, False)
        self.silent_until.pop(number, None)
        self.world.stop(number, is_noticed)
        if is_noticed:
            self._cancel_for(number)

    def crash(self, number: int) -> None:
        """The engine of a node dies; ``recover`` gives the node another one."""
        node = self.world.node(number)
        for attempt in self._side.at(number):
            if attempt.job.submitted_s:
                self._side.hand_over_decoded(attempt)
                self._side.refuse(attempt, Failed(code="engine_lost", message="the engine died", retryable=True))
        self._side.stop(number)
        self.world.handle(node, CacheChanged(NAMESPACE, [], [], reset=True))
        self.world.handle(node, VitalsChanged(NAMESPACE, NO_ENGINE))

    def recover(self, node: SimNode) -> None:
        """The node has an engine again, with an empty cache."""
        engine = self._side.start(node)
        self.world.handle(node, VitalsChanged(NAMESPACE, engine.vitals(self.world.now)))

    def disconnect(self, one: int, other: int) -> None:
        """The connection breaks, and with it what either node serves for the other."""
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
        asked_s: float = 0.0,
    ) -> Record:
        """A client gives ``prompt`` to node ``entry`` now. on_over: called when it is answered or has failed.
        on_tokens: called with tokens as they come. num_answered: tokens of the answer that the client already has.
        asked_s: when the client first asked; 0: now."""
        self._num_requests += 1
        request_id = self._num_requests.to_bytes(16, "big")
        tokens = self._tokens[request_id] = prompt.tokens + prompt.answer
        chain = tuple(block_hashes(NAMESPACE, tokens))
        now = self.world.now
        record = Record(
            request_id, entry, len(prompt.tokens), chain, now, asked_s or now, on_tokens=on_tokens, on_over=on_over
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
        """The client went away, or its entry node did. Does nothing if the request is over."""
        if self._records.pop(record.request_id, None) is None:
            return
        del self._tokens[record.request_id]
        entry = self.world.nodes[record.entry]
        if entry is not None:
            self.world.handle(entry, RequestCancelled(record.request_id))
            self._abandon(record, record.num_attempts)

    def run_until_over(self, records: Collection[Record], until: float) -> None:
        """Runs until all of ``records`` are over, or until ``until``, to a second."""
        while self.world.now < until and not all(record.is_over for record in records):
            self.world.run(self.world.now + 1.0)

    def is_working(self, number: int) -> bool:
        """Whether the node serves anything, or a request that entered there is in flight."""
        return bool(self._side.at(number)) or any(record.entry == number for record in self._records.values())

    def used(self, number: int) -> Used:
        """Capacity used at a node so far, over all its lives."""
        return self._side.used(number)

    def coming(self, number: int) -> list[Job]:
        """Jobs sent to a node that are not over, also those still on the way, in order of dispatch."""
        return [attempt.job for attempt in self._side.at(number)]

    # --- effects ---------------------------------------------------------------------------------------------------

    def perform(self, node: SimNode, effect: RequestEffect) -> None:
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
                # The last part of an answer in parts counts; and a claim is not a measurement.
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
        # To a peer all requests of an entry node have that node as client.
        client = b"" if server == node.number else node.peer
        num_answer = len(tokens) - num_prompt
        job = Job(record.request_id, effect.attempt, record.chain, tokens, num_prompt, num_answer, client)
        generate = effect.generate
        job.owner = owner_of(generate.tag, generate.scope, node.peer, f"of node {node.number}")
        job.declared_open = generate.open_tokens
        attempt = Attempt(record, effect.attempt, server, job, effect.generate)
        record.num_attempts = effect.attempt
        record.asked.add(server)
        record.promised_tokens = effect.decision.matched_tokens
        self._side.add(attempt)
        delay_s = 0.0
        if server != node.number:
            delay_s = self._side.delay_s(node.number, server)
            self._heard(attempt)
        self.world.call(self.world.now + delay_s, lambda: self._side.arrive(attempt))

    def _heard(self, attempt: Attempt) -> None:
        attempt.heard_s = self.world.now
        self._watch(attempt)

    def _watch(self, attempt: Attempt) -> None:
        """The entry node ends the attempt when it receives nothing for too long."""
        node, now = self.world.nodes[attempt.record.entry], self.world.now
        record = attempt.record
        if node is None or record.request_id not in self._records or record.num_attempts != attempt.number:
            return
        due_s = attempt.heard_s + node.overlay.silence_s(*attempt.key)
        if due_s <= now:
            self._cancel(attempt)
            self.world.handle(node, StreamLost(*attempt.key, "silent for too long"))
        elif not now < attempt.watched_s <= due_s:  # (an earlier check will find out when the next one is due)
            attempt.watched_s = due_s
            self.world.call(due_s, lambda: self._watch(attempt))

    def _abandon(self, record: Record, number: int) -> None:
        attempt = self._side.attempt(record.request_id, number)
        if attempt is not None:
            self._cancel(attempt)

    def _cancel(self, attempt: Attempt) -> None:
        """The serving node learns of it after the link's delay, from an entry node that is not frozen."""
        entry, server = attempt.record.entry, attempt.server
        sent_s = self.silent_until[entry] if self.world.is_frozen(entry) else self.world.now
        delay_s = 0.0 if server == entry else self._side.delay_s(entry, server)
        self.world.call(sent_s + delay_s, lambda: self._side.cancel(attempt))

    def _cancel_for(self, entry: int, at: int | None = None) -> None:
        """Cancel what node ``at``, or any node, serves for an entry node that it has lost."""
        for server in range(len(self.specs)) if at is None else (at,):
            for attempt in self._side.at(server):
                if attempt.record.entry == entry != server:
                    self._side.cancel(attempt)

    def _over(self, record: Record) -> None:
        self.salts.pop(record.chain[: record.num_prompt // STRIDE], None)
        del self._records[record.request_id]
        del self._tokens[record.request_id]
        if record.on_over is not None:
            record.on_over(record)

    def _receive(self, attempt: Attempt, event: FrameReceived) -> None:
        node = self.world.nodes[attempt.record.entry]
        if node is not None and event.request_id in self._records:
            self.world.handle(node, event)
            if attempt.server != attempt.record.entry:
                self._heard(attempt)
