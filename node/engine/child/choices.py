"""The choice of tokens after a decode call: at once, or after the grammar has replied."""

import time
from collections.abc import Sequence

from mycelia.node.engine.child.grammar.grammar import GrammarError
from mycelia.node.engine.child.grammar.grammar_pool import GrammarAnswered, GrammarPool
from mycelia.node.engine.child.job import Job
from mycelia.node.engine.child.jobs import Jobs
from mycelia.node.engine.child.llama.llama import Llama
from mycelia.node.engine.child.rows import Row
from mycelia.node.engine.child.scheduler import Scheduler


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
        for row, output in zip(rows, outputs, strict=True):
            job = row.job
            if job.to_report:
                with self._jobs.charged(job):
                    self._report(row, output)
            job.num_computed += row.count
            if job.num_computed in job.stops:
                self._jobs.sequences.save_state(job)
            if not row.wants_token:
                continue
            if not job.max_tokens:
                warmed.append(job)
                continue
            answer = self._jobs.answers[job.key]
            if self._jobs.options[job.key].sampling.grammar:
                job.is_choosing = True
                self._jobs.choosing[job.key] = job
                with self._jobs.charged(job):
                    question = answer.begin(output)
                self._grammars.ask(job.key, question)
            else:
                with self._jobs.charged(job):
                    chosen.append((job, answer.choose(output)))
        for job, token in chosen:
            if job.seq_id is not None:  # (None: it was abandoned a moment ago)
                self._generated(job, token)
        for job in warmed:
            if job.seq_id is not None:
                self._jobs.finish(job, "length")
        for job in self._scheduler.prefixes.publishable():
            if not self._jobs.publish(job):
                return

    def _report(self, row: Row, output: int) -> None:
        """Send the logprobs of the prompt's tokens that follow the row's outputs. output: index of the last one."""
        job, end = row.job, row.start + row.count
        tokens = job.to_report[: max(end - job.num_reusable, 0)]
        outputs = [output - (end - token) for token in tokens]
        entries = self._jobs.answers[job.key].report(outputs, (job.tokens[token] for token in tokens))
        self._jobs.reports.prompt(job, entries)
        job.to_report = job.to_report[len(entries) :]

    def grammar_answered(self, event: GrammarAnswered) -> None:
        request, error = self._grammars.request(event.key), self._grammars.answered(event, time.monotonic())
        self._scheduler.accounts.charge_seconds(request.client, request.subnet, event.cpu_s)
        job = self._jobs.choosing.get(event.key)
        if job is None:
            return  # (the job ended meanwhile)
        try:
            if error:
                raise GrammarError(error)
            with self._jobs.charged(job):
                choice = self._jobs.answers[job.key].go_on(event.passed)
        except GrammarError as exc:
            self._jobs.give_up(job, "bad_request", str(exc), False)
            return
        if not isinstance(choice, int):
            self._grammars.ask(job.key, choice)
            return
        del self._jobs.choosing[job.key]
        job.is_choosing = False
        if not self._llama.ends_generation(choice):
            self._grammars.accept(job.key, choice)
        self._generated(job, choice)

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
