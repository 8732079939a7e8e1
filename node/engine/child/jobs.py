"""The life cycle of a request for an answer: it waits, starts, stops for another and goes on, and ends.

``Scheduler`` decides; ``Jobs`` carries the decisions out on the cells and reports to the parent. The cells of a request
that stops or ends stay cached.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from mycelia.node.engine import ipc, pipe
from mycelia.node.engine.child.answer import Answer
from mycelia.node.engine.child.grammar.pool import GrammarPool
from mycelia.node.engine.child.job import Job, Refusal
from mycelia.node.engine.child.llama.llama import Llama
from mycelia.node.engine.child.reports import Reports
from mycelia.node.engine.child.scheduler import Scheduler
from mycelia.node.engine.child.sequences import Sequences
from mycelia.node.engine.child.tier.tier_store import TierStore
from mycelia.proto.wire.blocks import unpack_tokens


class Jobs:
    """All requests that wait or run, with their answers. For the thread that owns the llama.cpp context."""

    def __init__(
        self, llama: Llama, scheduler: Scheduler, replies: pipe.Replies, grammars: GrammarPool, tiers: TierStore | None
    ) -> None:
        """tiers: the second tier, loaded; None for none."""
        self._llama = llama
        self._scheduler = scheduler
        self._replies = replies
        self._grammars = grammars
        self._tiers = tiers
        self.options: dict[int, ipc.Submit] = {}
        """Key -> message, for jobs that wait or run."""
        self.answers: dict[int, Answer] = {}
        """Key -> answer, for jobs that run or were stopped."""
        self.choosing: dict[int, Job] = {}
        """Key -> job, for jobs that wait for their grammar's mask."""
        self.reports = Reports(replies, scheduler, self.answers)
        self.sequences = Sequences(llama, scheduler, tiers)
        self.ended_any = False
        """Whether a job ended since the caller set this to False."""

    def submit(self, message: ipc.Submit) -> None:
        """Queue a request, or send the parent a refusal."""
        prompt = unpack_tokens(message.prompt)
        now, sampling = time.monotonic(), message.sampling
        is_reported, start = sampling.prompt_logprobs > 0, max(sampling.logprobs_from, 1)
        outcome = self._scheduler.submit(
            message.key,
            prompt,
            sampling.max_tokens,
            now,
            message.due_s,
            message.client,
            message.subnet,
            message.owner,
            message.open_tokens,
            range(start, max(len(prompt) - message.resumed_tokens, start)) if is_reported else range(0),
            message.resumed_tokens,
        )
        if isinstance(outcome, Refusal):
            self._grammars.drop(message.key)
            refused = ipc.Refused(message.key, outcome.code, outcome.message, outcome.retryable, outcome.retry_after_s)
            self._replies.put(refused)
        else:
            self.options[message.key] = message
        self.reports.are_due = True

    def admit(self) -> None:
        """Start the jobs that can start, and stop running jobs where that is necessary."""
        while True:
            while (admission := self._scheduler.admit(time.monotonic())) is not None:
                if not self.sequences.occupy(admission, self.reports.prefill.rate):
                    self.sequences.clear(self._scheduler.forget_match(admission.job))
                elif not self._started(admission.job, admission.length):
                    return
            stopping = self._scheduler.to_preempt(time.monotonic())
            if not stopping:
                return
            for job in stopping:
                if not self.preempt(job):
                    return

    def _started(self, job: Job, length: int) -> bool:
        """length: tokens of the job's prefix in the tree. False: everything was abandoned."""
        options = self.options[job.key]
        if job.key not in self.answers:
            with self.charged(job):
                self.answers[job.key] = Answer(self._llama, options.sampling, job.prompt, options.resumed_tokens)
            self._replies.put(ipc.Started(job.key, job.cached_tokens))
        self.reports.are_due = True
        if job.num_computed > length and not self.publish(job):
            return False  # Published at once, so that the next jobs share the cells instead of restoring them again.
        if self.answers[job.key].is_stopped:  # (the lost node had sent the whole answer except its end)
            self.finish(job, "stop")
        return True

    def preempt(self, job: Job) -> bool:
        """Stop a running job, which then waits. False: everything was abandoned."""
        if not self._share(job):
            return False
        self.sequences.settle(job)
        self.sequences.clear(self._scheduler.preempt(job, time.monotonic()))
        self.reports.fresh(job)
        self.reports.are_due = True
        return True

    def finish(self, job: Job, reason: str) -> None:
        """End a job, cache its computed tokens, notify the parent."""
        now = time.monotonic()
        if not self._leave(job):
            return
        if reason != "cancelled" and job.key in self.answers:
            # Not after a cancel: a client that goes on at another node must not have received undecided text.
            self.reports.fresh(job, is_last=True)
        self.reports.cache()
        self.reports.ended(job, reason, now)
        self._forget(job)

    def give_up(self, job: Job, code: str, message: str, retryable: bool) -> None:
        """End a job with a refusal, but cache its computed tokens."""
        if self._leave(job):
            self._fail(job, code, message, retryable)

    def _fail(self, job: Job, code: str, message: str, retryable: bool) -> None:
        """Send the parent the tokens so far and a refusal, for a job that already left the scheduler."""
        if job.key in self.answers:
            self.reports.fresh(job)
        self._forget(job)
        self._replies.put(ipc.Refused(job.key, code, message, retryable))

    def _leave(self, job: Job) -> bool:
        """Take a job out of the scheduler and cache its computed tokens. False: everything was abandoned."""
        if job.seq_id is None:
            self._scheduler.withdraw(job)
            return True
        if not self._share(job):
            return False
        self.sequences.settle(job)
        self.sequences.clear(self._scheduler.finish(job, time.monotonic()))
        return True

    def _share(self, job: Job) -> bool:
        """Replace the job's duplicates of the tree's cells. False: everything was abandoned."""
        if self.sequences.share(job):
            return True
        self.abandon("the cache lost a sequence")
        return False

    def publish(self, job: Job) -> bool:
        """Let other jobs share the job's computed or restored prompt tokens. False: everything was abandoned."""
        if not self._share(job):
            return False
        self.sequences.clear(self._scheduler.prefixes.publish(job, time.monotonic()))
        return True

    def make_room(self) -> None:
        """Evict a leaf, or give up the newest job, when cells ran out in spite of the promises (padding, fragments)."""
        leaf = self._scheduler.cells.evict_one()
        if leaf is not None:
            self.sequences.let_go([leaf])
            return
        self.give_up(self._scheduler.running[-1], "overloaded", "the KV cache is full", True)

    def abandon(self, why: str) -> None:
        """Start again with an empty cache, because the contents of the cells are unknown."""
        for job in self._scheduler.abandon():
            self._fail(job, "internal", why, True)
        self._llama.clear_all()
        if self._tiers is not None:
            self._tiers.reported.add_all()  # (blobs are not cells: they stay valid)
        self.reports.cache()

    def _forget(self, job: Job) -> None:
        answer = self.answers.pop(job.key, None)
        if answer is not None:
            answer.close()
        self.choosing.pop(job.key, None)
        self._grammars.drop(job.key)
        self.options.pop(job.key, None)
        self.reports.are_due = self.ended_any = True

    @contextmanager
    def charged(self, job: Job) -> Iterator[None]:
        """Charge the CPU time of the block to the job's client: with some options the choice of a token takes fifty
        times as long as usual (4.5 ms for a vocabulary of 49,152 tokens)."""
        began = time.thread_time()
        try:
            yield
        finally:
            self._scheduler.accounts.charge_seconds(job.client, job.subnet, time.thread_time() - began)

    def check_invariants(self) -> None:
        """Raise AssertionError when the accounts contradict each other or the cells. Call between steps."""
        self.sequences.check_invariants()
        jobs = [*self._scheduler.running, *(job for job in self._scheduler.waiting if job.num_starts)]
        assert self.answers.keys() == {job.key for job in jobs}, "answers without jobs"
        assert self.choosing.keys() == {job.key for job in jobs if job.is_choosing}, "choices without jobs"
