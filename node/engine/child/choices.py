"""The choice of tokens after a decode call: at once, or when the grammar's mask is there."""

import time
from collections.abc import Sequence

from mycelia.node.engine.child.grammar.guidance import GrammarError
from mycelia.node.engine.child.grammar.pool import GrammarAnswered, GrammarPool, Mask
from mycelia.node.engine.child.job import Job
from mycelia.node.engine.child.jobs import Jobs
from mycelia.node.engine.child.llama.llama import Llama
from mycelia.node.engine.child.rows import Row
from mycelia.node.engine.child.scheduler import Scheduler

MASKS_WAIT_S = 0.001
"""How long a step waits for the masks of grammars: they were computed while it decoded, so it rarely waits at all."""


class Choices:
    """Chooses the next token of every job with a row. For the thread that owns the llama.cpp context."""

    def __init__(self, llama: Llama, scheduler: Scheduler, jobs: Jobs, grammars: GrammarPool) -> None:
        self._llama = llama
        self._scheduler = scheduler
        self._jobs = jobs
        self._grammars = grammars

    def accept(self, rows: Sequence[Row], outputs: Sequence[int]) -> None:
        """Take the result of a decode call: update positions, report logprobs of prompts, choose tokens, then publish
        prefixes."""
        chosen: list[tuple[Job, int]] = []
        warmed: list[Job] = []
        limited: list[tuple[Job, int]] = []
        """Jobs with a grammar, and their outputs."""
        for row, output in zip(rows, outputs, strict=True):
            job = row.job
            if job.to_report:
                with self._jobs.charged(job):
                    self._report(row, output)
            job.num_computed += row.count
            if job.num_computed in job.stops:
                self._jobs.sequences.save_state(job, job.stops[job.num_computed])
            if not row.wants_token:
                continue
            if not job.max_tokens:
                warmed.append(job)
                continue
            if self._jobs.options[job.key].sampling.grammar:
                limited.append((job, output))
                continue
            with self._jobs.charged(job):
                chosen.append((job, self._jobs.answers[job.key].choose(output)))
        for job, token in chosen:
            if job.seq_id is not None:  # (None: it was abandoned a moment ago)
                self._generated(job, token)
        for job in warmed:
            if job.seq_id is not None:
                self._jobs.finish(job, "length")
        self._choose_limited(limited)
        for job in self._scheduler.prefixes.publishable():
            if not self._jobs.publish(job):
                return

    def _report(self, row: Row, output: int) -> None:
        """Send the logprobs of the prompt's tokens that follow the row's outputs. output: index of the last one."""
        job, end = row.job, row.start + row.count
        tokens = job.to_report[: max(end - job.first_output, 0)]
        outputs = [output - (end - token) for token in tokens]
        entries = self._jobs.answers[job.key].report(outputs, (job.tokens[token] for token in tokens))
        self._jobs.reports.prompt(job, entries)
        job.to_report = job.to_report[len(entries) :]

    def _choose_limited(self, limited: Sequence[tuple[Job, int]]) -> None:
        """Choose by the masks that are there, and let the other jobs wait for theirs. Jobs that end meanwhile change
        nothing here: the outputs stay those of the last decode call."""
        until = time.monotonic() + MASKS_WAIT_S
        for job, output in limited:
            if job.seq_id is None:
                continue  # (it was abandoned a moment ago)
            mask = self._grammars.take(job.key, max(until - time.monotonic(), 0.0))
            if mask is None:
                job.is_choosing = True
                self._jobs.choosing[job.key] = job
                self._jobs.answers[job.key].hold(output)
            else:
                self._choose(job, mask, output)

    def grammar_answered(self, event: GrammarAnswered) -> None:
        job = self._jobs.choosing.get(event.key)
        if job is None:
            return  # (the job ended meanwhile, or has no row yet: the mask stays)
        mask = self._grammars.take(event.key)
        if mask is not None:
            del self._jobs.choosing[event.key]
            job.is_choosing = False
            self._choose(job, mask, None)

    def _choose(self, job: Job, mask: Mask, output: int | None) -> None:
        """Choose the next token of a job by its grammar's mask. output: None for the row that its answer holds."""
        self._scheduler.accounts.charge_seconds(job.client, job.subnet, mask.cpu_s)
        try:
            if mask.error:
                raise GrammarError(mask.error)
            with self._jobs.charged(job):
                token = self._jobs.answers[job.key].choose_allowed(mask.allowed, output)
        except GrammarError as exc:
            self._grammars.charge_failed(job.key, time.monotonic())
            self._jobs.give_up(job, "bad_request", str(exc), False)
            return
        if token is None:
            self._jobs.finish(job, "stop")
            return
        if not self._llama.ends_generation(token):
            self._grammars.accept(job.key, token)
        self._generated(job, token)

    def _generated(self, job: Job, token: int) -> None:
        if job.first_token_s is None:
            job.first_token_s = time.monotonic()
        answer, is_end = self._jobs.answers[job.key], self._llama.ends_generation(token)
        if is_end and not answer.has_end:
            self._jobs.finish(job, "stop")
            return
        job.tokens.append(token)
        answer.add(token)
        if is_end or answer.is_stopped:
            self._jobs.finish(job, "stop")
        elif job.num_generated >= job.max_tokens:
            self._jobs.finish(job, "length")
