"""An overloaded engine in virtual time: the real scheduler with a token clock.

A run is a function of its arguments. To find out what would have happened if a client had come back at another time,
run it again with that client's arrivals replaced.
"""

import heapq
import itertools
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
    let_in_s: float | None = None
    """Seconds after which the client ``knock`` was accepted."""


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
    knock: Refused | None = None,
    knock_s: float = 0.05,
    obedient: Collection[bytes] = (),
    rivals: Collection[bytes] = (),
) -> Run:
    """Run up to ``until``. knock: a refusal after which its client only repeats this request, every ``knock_s`` x its
    retry time, until it is accepted; then the run ends. obedient: clients that ask again after their retry time."""
    limits = Limits(
        num_cells=CELLS, context_tokens=4_096, num_vocab=2**31, slots=SLOTS, max_waiting=MAX_WAITING, reuse=False
    )
    sched, result, numbers = Scheduler(limits), Run(), itertools.count()
    sched.accounts.measured(PREFILL_RATE, DECODE_RATE)
    asked: dict[int, Arrival] = {}
    coming = [(one.at, next(numbers), one) for one in arrivals]
    if knock is not None:
        who, since = knock.arrival.client, knock.arrival.at
        step_s = knock_s * knock.retry_after_s
        coming = [(at, number, one) for at, number, one in coming if one.client != who or at <= since]
        coming.append((since + step_s, next(numbers), replace(knock.arrival, at=since + step_s)))
    heapq.heapify(coming)
    at_warm_up: dict[bytes, float] | None = None
    now = 0.0

    def arrive(one: Arrival) -> None:
        key = next(numbers)
        outcome = sched.submit(key, [key] * one.num_prompt, one.max_tokens, one.at, client=one.client)
        is_knock = knock is not None and one.client == who and one.at > since
        if isinstance(outcome, Job):
            asked[key] = one
            if is_knock:
                result.let_in_s = one.at - since
            return
        result.refused.append(Refused(one, outcome.retry_after_s))
        if is_knock or one.client in obedient:
            again = one.at + (step_s if is_knock else outcome.retry_after_s)
            heapq.heappush(coming, (again, next(numbers), replace(one, at=again)))

    while now < until:
        while coming and coming[0][0] <= now:
            arrive(heapq.heappop(coming)[2])
        if result.let_in_s is not None:
            break
        for job in _start(sched, now):
            result.waits_s.setdefault(job.client, []).append(now - job.arrived_s)
        if not sched.running:
            now = coming[0][0] if coming else until
            continue
        now += _step(sched, asked, result.service, now)
        if rivals and now >= WARM_UP_S:
            at_warm_up = at_warm_up or dict(result.service)
            gains = [result.service[client] - at_warm_up[client] for client in rivals]
            result.lead = max(result.lead, max(gains) - min(gains))
    return result


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
