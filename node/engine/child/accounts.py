"""The engine's work for each client in one unit: service, counted in prompt tokens.

| Work | Service |
|---|---|
| a token of a prompt, computed | 1 |
| a token of an answer | ``ANSWER_WEIGHT`` |
| a token of a text, embedded | 1, or the tokens that the engine prefills in that time if that is more |
| the whole KV cache, held for a second | ``CELLS_SHARE`` of the tokens that it prefills in a second |
| a second of CPU time for a grammar, a text or the choice of a token | tokens that the engine prefills in a second |
| a grammar, to be compiled | ``COMPILE_SERVICE`` |
| a request refused as invalid | ``REFUSAL_SERVICE`` |

The counters of ``proto.fair_queue`` add it up; they decide which client starts next, and which stops for others.
"""

import math
from collections.abc import Sequence

from mycelia.node.engine.child.job import Job
from mycelia.node.engine.engine import USUAL_ANSWER_TOKENS
from mycelia.proto.admission.fair_queue import ANSWER_WEIGHT, FairQueue

CELLS_SHARE = 0.25
"""A request of 1,000 tokens that runs for 6 s beside seven like it pays a tenth more because of this. A request that
fills the cache pays as much again as its answer costs."""
COMPILE_SERVICE = 1_000.0
REFUSAL_SERVICE = 64.0
UNKNOWN_RATE = 300.0
"""Assumed prefill rate in tokens/s before the first measurement."""
UNKNOWN_START_S = 1.0
"""Assumed seconds between starts before the first measurement."""
LOOK_S = 0.05


class Accounts:
    """Charges clients. ``now`` is the time of the last call that has one."""

    def __init__(self, waiting: FairQueue[Job], num_cells: int) -> None:
        self._waiting = waiting
        self._num_cells = num_cells
        self._prefill_rate = self._decode_rate = 0.0
        self._looked_s = -math.inf
        self.now = 0.0

    def measured(self, prefill_rate: float, decode_rate: float) -> None:
        """Set the rates of all requests together, in tokens/s; 0: not known yet."""
        self._prefill_rate, self._decode_rate = prefill_rate, decode_rate

    def charge(self, client: bytes, subnet: str, service: float) -> None:
        """Charge ``client`` for ``service``; below 0: give back what was charged too much. Mutates."""
        self._waiting.charge(client, service, subnet)

    def tokens_per_s(self) -> float:
        """The engine's prefill rate, measured or assumed."""
        return self._prefill_rate or UNKNOWN_RATE

    def embedded(self, client: bytes, subnet: str, num_tokens: int, seconds: float) -> None:
        """Charge ``client`` for a step that computed ``num_tokens`` of its text. Mutates."""
        self._waiting.serve_beside(client, max(num_tokens, seconds * self.tokens_per_s()), subnet)

    def charge_seconds(self, client: bytes, subnet: str, seconds: float) -> None:
        """Charge ``client`` for ``seconds`` of CPU time outside the model. Mutates."""
        self.charge(client, subnet, seconds * self.tokens_per_s())

    def start(self, job: Job) -> None:
        """Take ``job`` out of the queue and charge its prefill. Mutates."""
        self._waiting.start(job, job.remaining_prefill, self.now)
        job.charged_s = self.now

    def stop(self, job: Job, is_next: bool) -> None:
        """Put ``job`` back into the queue; see ``FairQueue.put_back``. Mutates."""
        self._waiting.put_back(job, job.remaining_prefill, is_next)

    def look(self, running: Sequence[Job], now: float) -> None:
        """Charge the running jobs, unless that happened in the last ``LOOK_S``. Mutates."""
        self.now = max(self.now, now)
        if not 0 <= now - self._looked_s < LOOK_S:
            self._looked_s = now
            self.charge_running(running)

    def charge_running(self, jobs: Sequence[Job]) -> None:
        """Charge ``jobs`` for the tokens generated and the cells held since the last charge. Mutates."""
        cell_s = CELLS_SHARE * self._prefill_rate / self._num_cells
        for job in jobs:
            service = ANSWER_WEIGHT * (job.num_generated - job.charged_tokens)
            service += cell_s * job.held_cells * max(self.now - job.charged_s, 0.0)
            job.charged_tokens, job.charged_s = job.num_generated, max(job.charged_s, self.now)
            self.charge(job.client, job.subnet, service)

    def first_start_s(self, jobs: Sequence[Job]) -> float:
        """An estimate of the seconds between starts, before any are measured: the time for the rest of all ``jobs``,
        with answers of at most ``USUAL_ANSWER_TOKENS``, divided by their number."""
        if not (jobs and self._prefill_rate and self._decode_rate):
            return UNKNOWN_START_S
        prefill_s = sum(job.remaining_prefill for job in jobs) / self._prefill_rate
        num_left = sum(max(min(job.max_tokens, USUAL_ANSWER_TOKENS) - job.num_generated, 0) for job in jobs)
        decode_s = num_left / self._decode_rate
        return (prefill_s + decode_s) / len(jobs)
