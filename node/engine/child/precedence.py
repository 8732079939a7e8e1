"""Compares the service that two clients received, at the level where their groups differ; see ``proto.fair_queue``.

Counters include service that was charged ahead: the whole prompt of a job that started. The service that a client
*received* is its counter minus the prompt tokens of its running jobs that are not computed yet.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeVar

from mycelia.node.engine.child.holdings import alike, level_of
from mycelia.node.engine.child.job import Job
from mycelia.proto.admission.fair_order import OWNER, Key
from mycelia.proto.admission.fair_queue import SLACK, FairQueue, Waiting, path_of, weighted

WaitingT = TypeVar("WaitingT", bound=Waiting)
NUM_LEVELS = 3


class Precedence:
    """Compares the clients of running and waiting jobs. No method mutates."""

    def __init__(self, waiting: FairQueue[Job], running: Sequence[Job]) -> None:
        """waiting, running: the scheduler's own collections."""
        self._waiting = waiting
        self._running = running

    def lead(self, job: Job, other: Job) -> tuple[float, float]:
        """How much more service the client (or subnet) of ``other`` received than that of ``job``: by the counters, and
        without service charged ahead. (A client that begins to wait starts from the counters.)"""
        (counter, received), (own_counter, own_received) = self._received(other, job), self._received(job, other)
        return counter - own_counter, received - own_received

    def _received(self, job: Job, beside: Job) -> tuple[float, float]:
        own = alike(job, self._running, beside)
        counter = self._waiting.counter(job.client, job.subnet, level_of(job, beside))
        return counter, counter - weighted(job.client, job.subnet, sum(one.remaining_prefill for one in own))

    def first_behind(self, items: Iterable[WaitingT], service: float) -> WaitingT | None:
        """The first of ``items``, which wait outside this queue, that may receive ``service`` beside the jobs; None if
        each has to wait. After the service its client must not be ahead of any other client with a job here. The owner
        is compared with ``SLACK`` in its favour. While no job runs, the first item may receive it."""
        if not self._running:
            return next(iter(items), None)
        ahead = defaultdict[tuple[Key, ...], float](float)
        for job in self._running:
            path = path_of(job.client, job.subnet)
            for level in range(NUM_LEVELS):
                ahead[path[: level + 1]] += weighted(job.client, job.subnet, job.remaining_prefill)
        clients = {(job.client, job.subnet) for job in [*self._running, *self._waiting]}
        received = defaultdict[tuple[Key, ...], dict[Key, float]](dict)
        for client, subnet in clients:
            path = path_of(client, subnet)
            for level in range(NUM_LEVELS):
                counter = self._waiting.counter(client, subnet, level)
                received[path[:level]][path[level]] = counter - ahead[path[: level + 1]]

        def is_behind(item: WaitingT) -> bool:
            path = path_of(item.client, item.subnet)
            for level in range(NUM_LEVELS):
                # The client's own prompts that are not computed yet count: texts must not get ahead of them.
                after = self._waiting.counter(item.client, item.subnet, level)
                after += weighted(item.client, item.subnet, service)
                after -= SLACK if path[level] == OWNER else 0.0
                for other, counter in received[path[:level]].items():
                    if other != path[level] and after > counter - (SLACK if other == OWNER else 0.0):
                        return False
            return True

        return next(filter(is_behind, items), None)
