"""The choice of running requests to stop for a waiting one: no client holds more than its share while others wait.

The *holding* of a client is its dominant share (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011): the larger of
its part of the slots and its part of the promised KV cells. The owner's holding counts ``OWNER_WEIGHT`` times less,
that of members of its private swarm ``MEMBER_WEIGHT`` times less than that of strangers.
A running request stops for a waiting one if the waiting client, even *with* its request, would hold less than the
running client holds now. So every stop reduces the largest holding, a stopped request cannot claim its place back, and
without new requests the stops come to an end. There are two exceptions. A request does not stop for a client that
received more service than its own client by ``SLACK``. And it stops for a client that received less service by
``SLICE``, whatever both hold, so that waiting clients are served even at an engine full of endless answers. The
comparison is between the sides (the owner, members, others), between subnets, or between two clients of one subnet.

A stopped request loses nothing: its computed tokens stay cached, and it goes on where it stopped.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from mycelia.node.engine.child.job import Job, Limits
from mycelia.proto.admission.fair_order import Key
from mycelia.proto.admission.fair_queue import SLACK, path_of, share_of, side_of, weight_of

SLICE = 4_096.0
"""Service of an answer of 2,048 tokens: 40 s on one core. Clients that always have requests waiting seldom differ by so
much."""
SLICE_S = 1.0
"""Seconds that a request runs at least before it stops because of ``SLICE``."""


def holding(jobs: Iterable[Job], limits: Limits, more_cells: int = 0) -> float:
    """The holding of running ``jobs`` of one client or subnet. more_cells: above 0, plus one more job with so many
    cells."""
    jobs = list(jobs)
    num_jobs = len(jobs) + (more_cells > 0)
    return max(num_jobs / limits.slots, (more_cells + sum(job.own_cells for job in jobs)) / limits.num_cells)


def wanted_holding(job: Job, num_cells: int, running: Sequence[Job], limits: Limits, beside: Job) -> float:
    """The weighted holding of a waiting ``job``'s client if it ran, at the level of a comparison with ``beside``."""
    return holding(alike(job, running, beside), limits, num_cells) / _weight(job)


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
    """The ``running`` jobs to stop so that the waiting ``job`` can start with ``num_cells`` cells; none if it may not
    start this way. num_free: cells that are not promised. freed(job, others): cells that become free when ``job`` stops
    and ``others`` go on. lead(other): how much more service the client of ``other`` received than the client of
    ``job``, with and without the service that was charged ahead."""
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
    """The running job to stop when cells are short: one of the subnet with the largest holding."""
    subnets = defaultdict[Key, list[Job]](list)
    for job in running:
        subnets[share_of(job)].append(job)
    return largest(max(subnets.values(), key=lambda own: holding(own, limits) / _weight(own[0])), limits)


def largest(jobs: Sequence[Job], limits: Limits, lacks_cells: bool = True) -> Job:
    """The one of ``jobs`` to stop, from the client with the largest holding: its job with the most cells or, unless
    ``lacks_cells``, its last one. jobs: in order of admission."""
    clients = defaultdict[bytes, list[Job]](list)
    for job in jobs:
        clients[job.client].append(job)
    of_client = max(clients.values(), key=lambda own: holding(own, limits) / _weight(own[0]))
    return max(reversed(of_client), key=lambda job: job.own_cells) if lacks_cells else of_client[-1]


def group_of(job: Job, beside: Job) -> tuple[Key, bytes]:
    """The group of ``job`` in a comparison with ``beside``: its side if the sides differ; the client if both have the
    same subnet; else the subnet."""
    side, share, _ = path_of(job.client, job.subnet)
    side_beside, share_beside, _ = path_of(beside.client, beside.subnet)
    if side != side_beside:
        return side, b""
    return (share, job.client) if share == share_beside else (share, b"")


def alike(job: Job, jobs: Iterable[Job], beside: Job) -> list[Job]:
    """Those of ``jobs`` that are in the group of ``job`` in a comparison with ``beside``."""
    group = group_of(job, beside)
    return [other for other in jobs if group_of(other, beside) == group]


def level_of(job: Job, beside: Job) -> int:
    """The level of ``FairQueue.counter`` for a comparison of the two jobs."""
    return 0 if side_of(job) != side_of(beside) else 2 if share_of(job) == share_of(beside) else 1


def _weight(job: Job) -> float:
    return weight_of(job.client, job.subnet)
