"""The step loop's messages to the parent: tokens, ends, cache changes and load."""

import time
from collections.abc import Sequence

from mycelia.node.engine import ipc, pipe
from mycelia.node.engine.child.answer import Answer
from mycelia.node.engine.child.job import Job
from mycelia.node.engine.child.rows import Row
from mycelia.node.engine.child.scheduler import Scheduler
from mycelia.node.engine.engine import COALESCE_S
from mycelia.proto.cache.meters import HoldMeter, TokenRateMeter
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.messages import MAX_LOGPROBS_PER_FRAME, TokenLogprobs, Usage, Vitals

VITALS_INTERVAL_S = 0.1
"""Minimum seconds between two reports of vitals while no request starts or ends."""
PREFILL_WINDOW_TOKENS, DECODE_WINDOW_TOKENS = 2048, 256


class Reports:
    def __init__(self, replies: pipe.Replies, scheduler: Scheduler, answers: dict[int, Answer]) -> None:
        self._replies = replies
        self._scheduler = scheduler
        self._answers = answers
        self.prefill = TokenRateMeter(PREFILL_WINDOW_TOKENS)
        self.decode = TokenRateMeter(DECODE_WINDOW_TOKENS)
        self._hold = HoldMeter()
        self._vitals_sent: Vitals | None = None
        self._vitals_sent_s = 0.0
        self.are_due = True
        """Whether a start or end changed the vitals."""

    def measure(self, rows: Sequence[Row], seconds: float) -> None:
        """Divide a step's time between prefill and decode by rows: all rows of a batch cost about the same."""
        num_decode = sum(1 for row in rows if not row.job.remaining_prefill)
        num_rows = sum(row.count for row in rows)
        if num_decode:
            self.decode.add(num_decode, seconds * num_decode / num_rows)
        if num_rows > num_decode:
            self.prefill.add(num_rows - num_decode, seconds * (num_rows - num_decode) / num_rows)
        self._scheduler.accounts.measured(self.prefill.rate, self.decode.rate)

    def step_ended(self, other_tokens: int, other_requests: int) -> None:
        """Send the results of a step. other_tokens, other_requests: waiting outside the scheduler."""
        now = time.monotonic()
        for job in self._scheduler.running:
            if now >= self._answers[job.key].due_s:
                self.fresh(job)
        self.cache()
        vitals = self._vitals(other_tokens, other_requests)
        if vitals != self._vitals_sent and (self.are_due or now - self._vitals_sent_s >= VITALS_INTERVAL_S):
            self._vitals_sent, self._vitals_sent_s, self.are_due = vitals, now, False
            self._replies.put(ipc.LoadChanged(vitals))
        self._replies.flush()

    def _vitals(self, other_tokens: int, other_requests: int) -> Vitals:
        scheduler = self._scheduler
        return Vitals(
            queued_tokens=scheduler.queued_tokens() + other_tokens,
            active_requests=len(scheduler.running),
            waiting_requests=len(scheduler.waiting) + other_requests,
            slots=scheduler.limits.slots,
            prefill_rate=round(self.prefill.rate),
            decode_rate=round(self.decode.rate),
            hold_ms=self._hold.mean_ms,
        )

    def fresh(self, job: Job, is_last: bool = False) -> None:
        """Send the tokens of a job that are due."""
        answer = self._answers[job.key]
        for item in answer.take(is_last):
            answer.due_s = time.monotonic() + COALESCE_S
            self._replies.put(ipc.Generated(job.key, pack_tokens(item.tokens), item.text, item.logprobs))

    def prompt(self, job: Job, entries: Sequence[TokenLogprobs]) -> None:
        """Send the logprobs of the next tokens of a job's prompt."""
        for start in range(0, len(entries), MAX_LOGPROBS_PER_FRAME):
            part = tuple(entries[start : start + MAX_LOGPROBS_PER_FRAME])
            self._replies.put(ipc.PromptReported(job.key, job.to_report.start + start, part))

    def fresh_of_all(self) -> None:
        """Send and flush the tokens of all running jobs."""
        for job in self._scheduler.running:
            self.fresh(job)
        self._replies.flush()

    def cache(self) -> None:
        """Send the changes of the tree."""
        if self._scheduler.changes:
            change = self._scheduler.changes.take()
            stored = [ipc.StoredLeaf.of(seq_id, path) for seq_id, path in change.stored]
            self._replies.put(ipc.CacheDelta(list(change.evicted), [], change.reset))
            for leaf in stored:  # One per frame: all leaves of a large cache would exceed the frame's bound.
                self._replies.put(ipc.CacheDelta([], [leaf], False))

    def ended(self, job: Job, reason: str, now: float) -> None:
        """Send the regular end of an answer."""
        admitted = job.admitted_s or now
        first = job.first_token_s or now
        usage = Usage(
            prompt_tokens=len(job.prompt),
            cached_tokens=job.cached_tokens,
            completion_tokens=job.num_generated,
            queue_ms=round(1000 * (admitted - job.arrived_s)),
            prefill_ms=round(1000 * (first - admitted)),
            decode_ms=round(1000 * (now - first)),
        )
        if job.admitted_s:
            self._hold.add(now - job.admitted_s)
        self._replies.put(ipc.Ended(job.key, reason, usage))
