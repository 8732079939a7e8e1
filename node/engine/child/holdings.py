"""Whose running requests stop, so that another may run: no client holds more than its share while others wait.

What a client holds is its dominant share (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011): the larger of its
part of the slots and its part of the KV cells that are promised; the owner's counts ``OWNER_WEIGHT`` times less. A
running request stops for one that waits only where the client of the latter holds less even *with* it than the other's
client held before. So every stop makes the largest holdings smaller, what stopped cannot claim its place back, and
without new requests it comes to an end. It does not stop for clients that received more service than its own, by
``SLACK``. And it stops for one that received less by ``SLICE``, whatever both hold: so those that wait at an engine
full of endless answers are served, too. Compared are the owner with all others, subnets, and two clients of one
subnet inside it.

A request that is stopped loses nothing: what it computed stays cached, and it goes on where it was.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from mycelia.node.engine.child.job import Job, Limits
from mycelia.proto.admission.fair_order import Key
from mycelia.proto.admission.fair_queue import OWNER_WEIGHT, SLACK, share_of

SLICE = 4_096.0
"""An answer of 2,048 tokens: 40 s on one core. Clients that always have something waiting are seldom so far apart."""
SLICE_S = 1.0
"""What started runs that long at least before it stops for that reason."""


def holding(jobs: Iterable[Job], limits: Limits, more_cells: int = 0) -> float:
    """What running ``jobs`` of one client or subnet hold. more_cells: and one more with so many cells."""
    jobs = list(jobs)
    num_jobs = len(jobs) + (more_cells > 0)
    return max(num_jobs / limits.slots, (more_cells + sum(job.own_cells for job in jobs)) / limits.num_cells)


def wanted_holding(job: Job, num_cells: int, running: Sequence[Job], limits: Limits, beside: Job) -> float:
    """What the client of a waiting ``job`` would hold with it, compared as it must be with the client of ``beside``."""
    own = [other for other in running if group_of(other, beside) == group_of(job, beside)]
    return holding(own, limits, num_cells) / _weight(job)


def victims(
    job: Job,
    num_cells: int,
    num_free: int,
    freed: Callable[[Job, Sequence[Job]], int],
    running: Sequence[Job],
    limits: Limits,
    lead: Callable[[Job], tuple[float, float]],
    now: float,
) -> list[Job]:
    """Which of the ``running`` have to stop so that ``job``, which waits, can start with ``num_cells`` cells; none when
    it may not start by that. num_free: cells not promised. freed(job, others): those that come free when it stops and
    ``others`` run on. lead: how much more service the client of another job received than that of ``job``, with what it
    was charged ahead and without."""
    left, gone = list(running), list[Job]()
    while len(left) >= limits.slots or num_free < num_cells:
        groups = defaultdict[tuple[Key, bytes], list[Job]](list)
        for other in left:
            if share_of(other) != share_of(job) or other.client != job.client:
                groups[group_of(other, job)].append(other)
        over = []
        for others in groups.values():
            excess = holding(others, limits) / _weight(others[0])
            excess -= wanted_holding(job, num_cells, left, limits, others[0])
            with_charged, ahead = lead(others[0])
            if ahead >= SLICE:
                others = [other for other in others if now - other.started_s >= SLICE_S]
            elif excess <= 1e-9 or with_charged < -SLACK:
                others = []
            if others:
                over.append((excess, others))
        if not over:
            return []
        victim = largest(max(over, key=lambda pair: pair[0])[1], limits, len(left) < limits.slots)
        left.remove(victim)
        gone.append(victim)
        num_free += freed(victim, left)
    return gone


def largest_of_all(running: Sequence[Job], limits: Limits) -> Job:
    """The running job to stop because there are too few cells: one of the subnet that holds most."""
    subnets = defaultdict[Key, list[Job]](list)
    for job in running:
        subnets[share_of(job)].append(job)
    return largest(max(subnets.values(), key=lambda own: holding(own, limits) / _weight(own[0])), limits)


def largest(jobs: Sequence[Job], limits: Limits, lacks_cells: bool = True) -> Job:
    """Of running ``jobs``, in order of admission, the one to stop: of the client that holds most the one with the most
    cells, or if cells do not matter the last."""
    clients = defaultdict[bytes, list[Job]](list)
    for job in jobs:
        clients[job.client].append(job)
    of_client = max(clients.values(), key=lambda own: holding(own, limits) / _weight(own[0]))
    return max(reversed(of_client), key=lambda job: job.own_cells) if lacks_cells else of_client[-1]


def group_of(job: Job, beside: Job) -> tuple[Key, bytes]:
    """What ``job`` counts to where it is compared with ``beside``: the owner or all others, where one is the owner's;
    its subnet; or its client, where they have one subnet."""
    share = share_of(job)
    if not (job.client and beside.client):
        return (b"", b"") if not job.client else ("others", b"")
    return (share, job.client) if share == share_of(beside) else (share, b"")


def level_of(job: Job, beside: Job) -> int:
    """The level of ``FairQueue.counter`` at which they are compared."""
    return 0 if not (job.client and beside.client) else 2 if share_of(job) == share_of(beside) else 1


def _weight(job: Job) -> float:
    return 1.0 if job.client else OWNER_WEIGHT
