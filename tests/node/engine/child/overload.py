"""An overloaded engine in virtual time: the real scheduler with a token clock.

A run is a function of its arguments. To find out when a refused client would be accepted, a copy of the engine goes on
from the refusal with a client that asks again and again.
"""

import copy
import heapq
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from mycelia.node.engine.child.job import Job, Limits
from mycelia.node.engine.child.scheduler import Scheduler
from mycelia.proto.admission.fair_queue import ANSWER_WEIGHT

PREFILL_RATE, DECODE_RATE = 2_000.0, 200.0
"""Tokens/s of the whole engine: with the sizes below, about one request a second."""
STEP_TOKENS = 256
SLOTS, MAX_WAITING, CELLS = 8, 64, 16_384
MAX_PROMPT, MAX_ANSWER = 1_500, 400
KNOCKS_EVERY = 0.05
"""Share of its retry time after which a client that knocks asks again."""
WARM_UP_S = 120.0
"""Seconds after which queues are full."""


@dataclass(frozen=True)
class Arrival:
    """One request, with a prompt that no other shares."""

    at: float
    client: bytes
    num_prompt: int
    num_answer: int
    max_tokens: int
    """The client's bound; the answer is shorter."""


@dataclass(frozen=True)
class Refused:
    """An arrival that was refused, with its retry time."""

    arrival: Arrival
    retry_after_s: float


@dataclass
class Run:
    refused: list[Refused] = field(default_factory=list)
    waits_s: dict[bytes, list[float]] = field(default_factory=dict)
    """Client -> seconds from arrival to start of each started request."""
    service: dict[bytes, float] = field(default_factory=dict)
    """Client -> tokens of prompts computed + ANSWER_WEIGHT x tokens of answers."""
    lead: float = 0.0
    """Largest difference between the growths of two rivals' service since ``WARM_UP_S``."""
    let_in_s: dict[Arrival, float | None] = field(default_factory=dict)
    """Refused arrival -> seconds after which its client is accepted if it knocks all the time; None: not in the run."""


def poisson(seed: int, client: bytes, rate: float, until: float, num_answer: int = 100) -> list[Arrival]:
    """Requests at ``rate`` a second, with prompts of uniform length and answers of exponential length with mean
    ``num_answer``, so that no client can predict a free slot."""
    rng = random.Random(f"{seed} {client!r}")
    arrivals, now = [], rng.expovariate(rate)
    while now < until:
        length = min(1 + int(rng.expovariate(1 / num_answer)), MAX_ANSWER)
        arrivals.append(Arrival(now, client, rng.randint(100, MAX_PROMPT), length, MAX_ANSWER))
        now += rng.expovariate(rate)
    return arrivals


def run(
    arrivals: Sequence[Arrival],
    until: float,
    knocking: Collection[Arrival] = (),
    obedient: Collection[bytes] = (),
    rivals: Collection[bytes] = (),
) -> Run:
    """Run up to ``until``. knocking: arrivals of which, if they are refused, ``Run.let_in_s`` tells when they would be
    accepted. obedient: clients that ask again after their retry time."""
    engine = _Engine(arrivals, knocking, obedient)
    engine.run(until, rivals)
    return engine.result


class _Engine:
    """The scheduler, its clock, and the arrivals to come. A deep copy is another future from the same moment."""

    def __init__(self, arrivals: Sequence[Arrival], knocking: Collection[Arrival], obedient: Collection[bytes]) -> None:
        limits = Limits(
            num_cells=CELLS, context_tokens=4_096, num_vocab=2**31, slots=SLOTS, max_waiting=MAX_WAITING, reuse=False
        )
        self.sched, self.result, self.now = Scheduler(limits), Run(), 0.0
        self.sched.accounts.measured(PREFILL_RATE, DECODE_RATE)
        self.asked: dict[int, Arrival] = {}
        self.coming = [(one.at, number, one) for number, one in enumerate(arrivals)]
        heapq.heapify(self.coming)
        self.num_keys = len(self.coming)
        self.knocking, self.obedient = frozenset(knocking), obedient
        self.knocks_every_s: float | None = None
        self.knocker: bytes | None = None

    def run(self, until: float, rivals: Collection[bytes] = ()) -> None:
        """Goes on up to ``until``, or until the client that knocks is let in."""
        result = self.result
        at_warm_up: dict[bytes, float] | None = None
        while self.now < until:
            while self.coming and self.coming[0][0] <= self.now:
                if self.arrive(heapq.heappop(self.coming)[2], until):
                    return
            for job in _start(self.sched, self.now):
                result.waits_s.setdefault(job.client, []).append(self.now - job.arrived_s)
            if not self.sched.running:
                self.now = self.coming[0][0] if self.coming else until
                continue
            self.now += _step(self.sched, self.asked, result.service, self.now)
            if rivals and self.now >= WARM_UP_S:
                at_warm_up = at_warm_up or dict(result.service)
                gains = [result.service[client] - at_warm_up[client] for client in rivals]
                result.lead = max(result.lead, max(gains) - min(gains))

    def arrive(self, one: Arrival, until: float) -> bool:
        """Whether this was the client that knocks, and it was let in."""
        key = self.next_key()
        outcome = self.sched.submit(key, [key] * one.num_prompt, one.max_tokens, one.at, client=one.client)
        if isinstance(outcome, Job):
            self.asked[key] = one
            return one.client == self.knocker
        refused = Refused(one, outcome.retry_after_s)
        self.result.refused.append(refused)
        if self.knocks_every_s is not None and one.client == self.knocker:
            self.come(one, one.at + self.knocks_every_s)
        elif one.client in self.obedient:
            self.come(one, one.at + outcome.retry_after_s)
        if one in self.knocking:
            self.result.let_in_s[one] = self.copy().let_in_s(refused, until)
        return False

    def copy(self) -> "_Engine":
        """An independent engine with a result of its own."""
        jobs = [*self.sched.running, *self.sched.waiting]
        flat = [self.coming, self.asked, *(job.prompt for job in jobs), *(job.tokens for job in jobs)]
        return copy.deepcopy(self, {id(one): copy.copy(one) for one in flat} | {id(self.result): Run()})

    def come(self, one: Arrival, at: float) -> None:
        heapq.heappush(self.coming, (at, self.next_key(), replace(one, at=at)))

    def next_key(self) -> int:
        self.num_keys += 1
        return self.num_keys

    def let_in_s(self, refused: Refused, until: float) -> float | None:
        """The seconds after which the client is let in that from now on only repeats this request, and often. Changes
        this engine."""
        one, self.knocking = refused.arrival, frozenset()
        self.knocker, self.knocks_every_s = one.client, KNOCKS_EVERY * refused.retry_after_s
        self.coming = [entry for entry in self.coming if entry[2].client != one.client]
        heapq.heapify(self.coming)
        self.come(one, one.at + self.knocks_every_s)
        self.run(until)
        accepted = [last for last in self.asked.values() if last.client == one.client and last.at > one.at]
        return accepted[0].at - one.at if accepted else None


def _start(sched: Scheduler, now: float) -> Iterator[Job]:
    """Admit, and yield the jobs that start for the first time."""
    while True:
        while (admission := sched.admit(now)) is not None:
            if admission.job.num_starts == 1:
                yield admission.job
        stopping = sched.to_preempt(now)
        if not stopping:
            return
        for job in stopping:
            sched.preempt(job, now)


def _step(sched: Scheduler, asked: dict[int, Arrival], service: dict[bytes, float], now: float) -> float:
    """Run one decode call; returns its seconds."""
    while (outgrown := sched.outgrown()) is not None:
        sched.preempt(outgrown, now)
    rows = sched.plan(STEP_TOKENS)
    num_decode = sum(1 for row in rows if not row.job.remaining_prefill)
    num_prefill = sum(row.count for row in rows) - num_decode
    seconds = num_decode / DECODE_RATE + num_prefill / PREFILL_RATE
    sched.give_way.computed(rows, seconds)
    for row in rows:
        job = row.job
        received = row.count if job.remaining_prefill else 0.0
        job.num_computed += row.count
        if row.wants_token:
            received += ANSWER_WEIGHT
            job.tokens.append(0)
            if job.num_generated >= asked[job.key].num_answer:
                sched.finish(job, now + seconds)
        service[job.client] = service.get(job.client, 0.0) + received
    return seconds
