"""The serving side of requests: engines, and the frames that they send to the entry nodes.

Frames keep their order. A lost message is sent again after a round trip and ``RESEND_S``, as in TCP. Bandwidth is not
modelled. Tokens travel in a frame each ``frame_s``: without faults, nothing between the first and the last token is
measured. When a node stops, the tokens decoded by then have arrived.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

from mycelia.proto.admission.overload import OVERLOADED
from mycelia.proto.events import CacheChanged, FrameReceived, VitalsChanged
from mycelia.proto.wire.messages import Accepted, Failed, Final, ServingFrame, Usage, Vitals
from mycelia.sim.engine import Engine, Job, Listener
from mycelia.sim.host import Host
from mycelia.sim.liars import CLAIMED_VITALS, SILENT_VITALS, Claims
from mycelia.sim.machine import EngineSpec, Used
from mycelia.sim.node import SimNode
from mycelia.sim.record import Attempt
from mycelia.sim.scenario import Conduct
from mycelia.sim.world import NAMESPACE, World

RESEND_S = 0.2
"""TCP's usual least timeout."""


class Engines:
    """The engines of all nodes and the running attempts at them. Parameters: see ``Serving``."""

    def __init__(
        self,
        world: World,
        specs: Sequence[EngineSpec],
        liars: Sequence[int],
        conduct: Conduct,
        host: Host | None,
        frame_s: float,
        deliver: Callable[[Attempt, FrameReceived], None],
    ) -> None:
        """deliver: called with each frame when it arrives at its entry node."""
        self.world = world
        self.specs = specs
        self.liars = liars
        self.conduct = conduct
        self.host = host
        self.frame_s = frame_s
        self._deliver = deliver
        self.engines: list[Engine | None] = [None] * len(specs)
        """None: the node or its engine is not up."""
        self.silent_until: dict[int, float] = {}
        """Nodes whose engine's frames arrive only later: they are frozen, or their disk is slow."""
        self._used = [Used()] * len(specs)
        """Capacity used by engines that are gone."""
        self._claims: dict[int, Claims] = {}
        self._attempts: dict[tuple[bytes, int], Attempt] = {}
        """The running attempt of each request is its last one."""
        self._coming: list[dict[tuple[bytes, int], Attempt]] = [{} for _ in specs]
        """Attempts sent to each node that are not over."""

    def add(self, attempt: Attempt) -> None:
        """The attempt is sent now; ``arrive`` receives it."""
        self._attempts[attempt.key] = self._coming[attempt.server][attempt.key] = attempt

    def attempt(self, request_id: bytes, number: int) -> Attempt | None:
        """The attempt; None if it is over."""
        return self._attempts.get((request_id, number))

    def at(self, number: int) -> list[Attempt]:
        """Attempts sent to a node that are not over, in order of dispatch."""
        return list(self._coming[number].values())

    def claim(self, number: int, is_up: bool) -> None:
        """A dishonest node begins, or stops, to claim what others store."""
        if is_up:
            self._claims[number] = Claims()
        else:
            self._claims.pop(number, None)

    def start(self, node: SimNode) -> Engine:
        """Start an empty engine at a node that is up and has none."""
        number, world = node.number, self.world
        is_liar = number in self.liars

        def tell_cache(stored: list[tuple[int, Sequence[int]]], dropped: list[int]) -> None:
            if not is_liar:
                world.handle(node, CacheChanged(NAMESPACE, stored, dropped))
            if stored:
                for liar, claims in self._claims.items():
                    world.handle(world.node(liar), claims.hear(stored))

        def tell_load() -> None:
            if not is_liar:  # (its claims never change)
                world.handle(node, VitalsChanged(NAMESPACE, engine.vitals(world.now)))

        def at(time: float, action: Callable[[], None]) -> None:
            world.call(time, lambda: action() if self.engines[number] is engine else None)

        listener = Listener(at, self._on_begin, self._on_first, self._on_done, tell_cache, tell_load)
        engine = self.engines[number] = Engine(self.specs[number], listener, self.host)
        return engine

    def arrive(self, attempt: Attempt) -> None:
        node, engine = self.world.nodes[attempt.server], self.engines[attempt.server]
        if attempt.is_over or node is None:
            return
        if self.world.is_frozen(attempt.server):
            self.world.call(self.silent_until[attempt.server], lambda: self.arrive(attempt))
            return
        if engine is None:
            self.refuse(attempt, Failed(code=OVERLOADED, message="the engine is restarting", retryable=True))
            return
        refusal = node.overlay.turned_away(attempt.generate, attempt.job.owner.tag)
        if refusal is not None:
            self.refuse(attempt, refusal)
            return
        if attempt.server in self.liars and self.conduct is not Conduct.COMPUTES:
            self._lie(attempt)
            return
        wait_s = engine.submit(attempt.job, self.world.now)
        if wait_s:
            busy = Failed(code=OVERLOADED, message="busy", retryable=True, retry_after_ms=math.ceil(1000 * wait_s))
            self.refuse(attempt, busy)

    def refuse(self, attempt: Attempt, failure: ServingFrame) -> None:
        """Send a frame that says why the attempt is not served, and end it."""
        self.send(attempt.job, failure)
        self.end(attempt)

    def _lie(self, attempt: Attempt) -> None:
        job, now = attempt.job, self.world.now
        self.send(job, Accepted(cached_tokens=job.num_prompt - 1, vitals=SILENT_VITALS))

        def tell(num_tokens: int) -> None:
            if attempt.is_over:
                return
            self._send_tokens(job, num_tokens)
            if num_tokens == job.num_answer:
                self._send_final(job)

        for after_s, num_tokens in self.conduct.plan(job.num_answer):
            self.world.call(now + after_s, partial(tell, num_tokens))

    def stop(self, number: int) -> None:
        engine = self.engines[number]
        if engine is not None:
            self._used[number] += engine.used(self.world.now)
            self.engines[number] = None

    def used(self, number: int) -> Used:
        """Capacity used at a node so far, over all its lives."""
        engine = self.engines[number]
        return self._used[number] + (engine.used(self.world.now) if engine else Used())

    def cancel(self, attempt: Attempt) -> None:
        engine = self.engines[attempt.server]
        if not attempt.is_over:
            self.end(attempt)
            if engine is not None:
                engine.cancel(attempt.record.request_id, attempt.number, self.world.now)

    def _on_begin(self, job: Job) -> None:
        attempt = self._attempts[job.request_id, job.attempt]
        attempt.record.found_tokens = job.cached
        self.send(job, Accepted(cached_tokens=self._cached(attempt), vitals=self.vitals(attempt.server)))

    def _on_first(self, job: Job) -> None:
        self._send_tokens(job, 1)
        self._send_decoded_later(self._attempts[job.request_id, job.attempt])

    def _send_decoded_later(self, attempt: Attempt) -> None:
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
        usage = Usage(
            prompt_tokens=job.num_prompt,
            cached_tokens=self._cached(attempt),
            completion_tokens=job.num_answer,
            queue_ms=round(1000 * (job.prefill_s - job.submitted_s)),
            prefill_ms=round(1000 * (job.first_token_s - job.prefill_s)),
            decode_ms=round(1000 * (self.world.now - job.first_token_s)),
        )
        self.send(job, Final(reason="length", usage=usage, vitals=self.vitals(attempt.server)))
        self.end(attempt)

    def _cached(self, attempt: Attempt) -> int:
        """Cached tokens that the serving node reports."""
        return attempt.job.num_prompt - 1 if attempt.server in self.liars else attempt.job.cached

    def vitals(self, number: int) -> Vitals:
        engine = self.engines[number]
        assert engine is not None
        return CLAIMED_VITALS if number in self.liars else engine.vitals(self.world.now)

    def _send_tokens(self, job: Job, until: int) -> None:
        """Send the job's answer up to token ``until``, less what was sent before."""
        frame = self._attempts[job.request_id, job.attempt].tokens(until)
        if frame is not None:
            self.send(job, frame)

    def send(self, job: Job, frame: ServingFrame) -> None:
        attempt = self._attempts[job.request_id, job.attempt]
        record, now = attempt.record, self.world.now
        event = FrameReceived(record.request_id, attempt.number, frame)
        delay_s = 0.0 if attempt.server == record.entry else self.delay_s(attempt.server, record.entry)
        sent_s = max(now, self.silent_until.get(attempt.server, 0.0))
        attempt.arrives_s = max(sent_s + delay_s, attempt.arrives_s)
        self.world.call(attempt.arrives_s, lambda: self._deliver(attempt, event))

    def hand_over_decoded(self, attempt: Attempt) -> None:
        """Deliver the part of a broken answer that real nodes have sent by now, in frames of a tenth of a second."""
        job = attempt.job
        if not job.first_token_s or self.world.now < attempt.arrives_s:
            return
        if self.world.now < self.silent_until.get(attempt.server, 0.0):
            return
        frame = attempt.tokens(self._num_decoded(attempt))
        if frame is not None:
            self._deliver(attempt, FrameReceived(job.request_id, attempt.number, frame))

    def _num_decoded(self, attempt: Attempt) -> int:
        """Tokens decoded by now of an incomplete answer."""
        job = attempt.job
        decoding_s = self.world.now - job.first_token_s
        if self.host is not None and job.work is not None:
            decoding_s = (job.num_answer - 1) / self.specs[attempt.server].decode_rate
            decoding_s -= self.host.left_s(job.work, self.world.now)
        decoded = 1 + int(decoding_s * self.specs[attempt.server].decode_rate)
        return min(decoded, job.num_answer - 1)

    def end(self, attempt: Attempt) -> None:
        attempt.is_over = True
        self._attempts.pop(attempt.key, None)
        self._coming[attempt.server].pop(attempt.key, None)

    def delay_s(self, sender: int, receiver: int) -> float:
        delay_s = 0.0
        while True:
            once_s = self.world.links.delay_s(sender, receiver, self.world.now + delay_s)
            if once_s is not None:
                return delay_s + once_s
            delay_s += self.world.links.round_trip_s(sender, receiver) + RESEND_S
