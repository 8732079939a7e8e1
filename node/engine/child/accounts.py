"""What the engine does for whom, in one currency: service, counted in tokens of prompts.

| What | Service |
|---|---|
| a token of a prompt, computed | 1 |
| a token of an answer | ``ANSWER_WEIGHT`` |
| a token of a text, embedded | 1, or what the engine prefills meanwhile if that is more |
| the whole KV cache, held for a second | ``CELLS_SHARE`` of what the engine prefills in a second |
| a second of CPU time of a grammar, of reading a text, or of choosing a token | what the engine prefills in a second |
| a grammar, to be compiled | ``COMPILE_SERVICE`` |
| a request refused for what is in it | ``REFUSAL_SERVICE`` |

All of it goes to the counters of ``proto.fair_queue``, which say who starts next and who stops for others.
"""

import math
from collections.abc import Sequence

from mycelia.node.engine.child.job import Job
from mycelia.proto.admission.fair_queue import ANSWER_WEIGHT, FairQueue

CELLS_SHARE = 0.25
"""A request of 1,000 tokens that runs for 6 s beside seven like it pays a tenth more by it, one that fills the cache
as much again as its answer costs."""
COMPILE_SERVICE = 1_000.0
REFUSAL_SERVICE = 64.0
UNKNOWN_RATE = 300.0
"""Tokens of prompts a second that are assumed of an engine that has computed none."""
UNKNOWN_START_S = 1.0
"""Expected between starts of an engine that has not computed anything yet."""
LOOK_S = 0.05


class Accounts:
    """Charges clients. ``now`` is what the last call said."""

    def __init__(self, waiting: FairQueue[Job], num_cells: int) -> None:
        self._waiting = waiting
        self._num_cells = num_cells
        self._prefill_rate = self._decode_rate = 0.0
        self._looked_s = -math.inf
        self.now = 0.0

    def measured(self, prefill_rate: float, decode_rate: float) -> None:
        """What the engine does, in tokens/s of all requests together; 0: not known yet."""
        self._prefill_rate, self._decode_rate = prefill_rate, decode_rate

    def charge(self, client: bytes, subnet: str, service: float) -> None:
        """``client`` received service; below 0: it did not after all. Mutates."""
        self._waiting.charge(client, service, subnet)

    def tokens_per_s(self) -> float:
        """What the engine prefills in a second."""
        return self._prefill_rate or UNKNOWN_RATE

    def embedded(self, client: bytes, subnet: str, num_tokens: int, seconds: float) -> None:
        """A step computed ``num_tokens`` of a text of ``client``. Mutates."""
        self._waiting.serve_beside(client, max(num_tokens, seconds * self.tokens_per_s()), subnet)

    def charge_seconds(self, client: bytes, subnet: str, seconds: float) -> None:
        """``seconds`` of a processor were spent for ``client`` outside the model. Mutates."""
        self.charge(client, subnet, seconds * self.tokens_per_s())

    def start(self, job: Job) -> None:
        """``job`` leaves the queue. Mutates."""
        self._waiting.start(job, job.remaining_prefill, self.now)
        job.charged_s = self.now

    def stop(self, job: Job, is_next: bool) -> None:
        """``job`` is in the queue again; see ``FairQueue.put_back``. Mutates."""
        self._waiting.put_back(job, job.remaining_prefill, is_next)

    def look(self, running: Sequence[Job], now: float) -> None:
        """Charge the running jobs, if that is some time ago. Mutates."""
        self.now = max(self.now, now)
        if not 0 <= now - self._looked_s < LOOK_S:
            self._looked_s = now
            self.charge_running(running)

    def charge_running(self, jobs: Sequence[Job]) -> None:
        """What was generated, and held, since the last time. Mutates."""
        cell_s = CELLS_SHARE * self._prefill_rate / self._num_cells
        for job in jobs:
            service = ANSWER_WEIGHT * (job.num_generated - job.charged_tokens)
            service += cell_s * job.held_cells * max(self.now - job.charged_s, 0.0)
            job.charged_tokens, job.charged_s = job.num_generated, max(job.charged_s, self.now)
            self.charge(job.client, job.subnet, service)

    def first_start_s(self, jobs: Sequence[Job]) -> float:
        """Seconds between starts as the running jobs let expect before any was seen: all that is left of them, answers
        as long as they may become, shared by their number."""
        if not (jobs and self._prefill_rate and self._decode_rate):
            return UNKNOWN_START_S
        prefill_s = sum(job.remaining_prefill for job in jobs) / self._prefill_rate
        decode_s = sum(job.max_tokens - job.num_generated for job in jobs) / self._decode_rate
        return (prefill_s + decode_s) / len(jobs)
