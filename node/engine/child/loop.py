"""The engine's step loop: take messages, admit, decode one batch, sample, report.

``Scheduler`` decides, ``Llama`` computes, ``Jobs`` keeps the two consistent, and ``Choices`` takes the results of a
decode call. Everything runs in the main thread of the engine process, which owns the llama.cpp context.
"""

import os
import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, assert_never

from mycelia.node.engine import ipc, pipe
from mycelia.node.engine.child.accounts import COMPILE_SERVICE, REFUSAL_SERVICE
from mycelia.node.engine.child.choices import Choices
from mycelia.node.engine.child.grammar.checker import NO_PROCESS
from mycelia.node.engine.child.grammar.pool import GrammarAnswered, GrammarEnded, GrammarPool, GrammarReady, OpenGrammar
from mycelia.node.engine.child.job import Limits
from mycelia.node.engine.child.jobs import Jobs
from mycelia.node.engine.child.llama.batch import BatchRow
from mycelia.node.engine.child.llama.llama import ABORTED, NO_ROOM, OK, Llama
from mycelia.node.engine.child.pooling.embedding_queue import EmbeddingQueue, EmbeddingRequest
from mycelia.node.engine.child.rates import prefill_budget
from mycelia.node.engine.child.rows import Row, TextPace, plan_rows, single_row
from mycelia.node.engine.child.scheduler import Scheduler
from mycelia.node.engine.child.tier.tier_store import TierStore
from mycelia.node.engine.engine import DEADLINE, TOO_LATE
from mycelia.proto.admission.fair_queue import share_of
from mycelia.proto.cache.sharing import Sharing

SHARED_S = 60.0
"""Steps are short for so many seconds after a request arrived while another one ran."""
STALL_S = 0.1
"""Maximum wait for a message while requests run but none can have a row. Then deadlines are checked."""
MAX_REST_S = 5.0
"""Longest rest after a step, which takes 2 s at most; far less than the watchdog's patience."""
CLOSE_DEADLINE_S = 8.0
"""Maximum time to write the cache to disk at the end: 4 GB to an SSD. The parent waits a little longer."""


def rest_s(worked_s: float, share: float) -> float:
    """How long to rest after so much work, so that it takes ``share`` of the time."""
    return min(worked_s * (1 / share - 1), MAX_REST_S)


class Close:
    """The reader's message that the parent is done."""


class Wake:
    """The message of the second tier's writer that makes an idle loop check finished writes."""


class TextRead(NamedTuple):
    """The message of the threads that read texts with the CPU time spent for a client."""

    client: bytes
    subnet: str
    cpu_s: float


Message = (
    ipc.Submit
    | ipc.Embed
    | ipc.Cancel
    | ipc.Resize
    | GrammarReady
    | GrammarAnswered
    | GrammarEnded
    | TextRead
    | Close
    | Wake
)


class StepLoop:
    """All requests of one model."""

    def __init__(
        self,
        llama: Llama,
        limits: Limits,
        replies: pipe.Replies,
        check: bool,
        open_grammar: OpenGrammar,
        embeddings: EmbeddingQueue,
        tiers: TierStore | None = None,
        check_idle: bool = False,
        share: float = 1.0,
    ) -> None:
        """check, check_idle, share: see ``EngineSettings``. tiers: the second tier, loaded; None for none."""
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.closed = threading.Event()
        """Set when ``Close`` is handled; then ``run`` returns."""
        self.prefilling: frozenset[int] = frozenset()
        """Keys of the requests whose prompts the running decode computes; the reader checks it before an abort."""
        self.llama = llama
        self.scheduler = Scheduler(limits, Sharing(os.urandom(16)))
        self._replies = replies
        self._check, self._check_idle = check, check_idle
        self.grammars = GrammarPool(open_grammar, limits.slots, limits.max_waiting, self.inbox.put)
        self._embeddings = embeddings
        self._text_pace = TextPace()
        self.jobs = Jobs(llama, self.scheduler, replies, self.grammars, tiers)
        self._choices = Choices(llama, self.scheduler, self.jobs, self.grammars)
        self._reports = self.jobs.reports
        self._is_stalled = False
        """Whether the last step had nothing to compute although there is work."""
        self._busy_since: float | None = None
        self.shared_until_s = time.monotonic() + SHARED_S
        """The time until which a request is likely to arrive while another one runs, because one did lately. The same
        is assumed at the start, when requests that had no other node arrive at once."""
        self._is_decoding = False
        self._share = share
        self._last_key = -1
        """Key of the job of the last row, where rows are computed one by one."""
        self._tiers = tiers
        if tiers is not None:
            tiers.follow(self.scheduler.changes, lambda: self.inbox.put(Wake()))
            tiers.reported.add_all()
            self.scheduler.prefixes.reach = self.jobs.sequences.reach
            self.scheduler.prefixes.state = self.jobs.sequences.state
            for tokens, swarm in tiers.open_prefixes():
                self.scheduler.sharing.open(tokens, swarm)

    def pulse(self) -> tuple[bool, float]:
        """(whether in a decode call, seconds since the last progress or 0 while idle). For any thread."""
        since = self._busy_since
        return self._is_decoding, 0.0 if since is None else time.monotonic() - since

    def interrupt(self, key: int | None = None) -> None:
        """End the running decode call soon, if it computes the prompt of the request ``key`` (None: any) and can be
        ended. For any thread."""
        if self.llama.can_abort and (key is None or (key in self.prefilling and self.llama.reuse)):
            self.llama.abort.raise_it()

    def run(self) -> None:
        while not self.closed.is_set():
            self.step()

    @property
    def saves_at_end(self) -> bool:
        """Whether ``Close`` is worth sending."""
        return self._tiers is not None and self._tiers.has_disk

    def step(self) -> None:
        """Run one round: messages, admission, one decode call, reports. Blocks while there is no work."""
        # Cleared before the messages are taken: a later cancel raises it again and stops the decode below.
        self.llama.abort.clear()
        self._take_messages()
        if self.closed.is_set():
            return
        self._expire()
        self.grammars.look(time.monotonic())
        self.jobs.admit()
        rows = self._plan()
        if self.prefilling:
            self._reports.fresh_of_all()  # Computing a prompt may take seconds.
        if rows:
            self._compute(rows)
        self._is_stalled = not self._embed() and not rows
        if self._tiers is not None:
            self._tiers.poll()
        self._reports.step_ended(self._embeddings.queued_tokens, self.grammars.num_waiting)
        if self.jobs.ended_any and (self._check or (self._check_idle and not self.has_work)):
            self.jobs.ended_any = False
            self.jobs.check_invariants()

    @property
    def has_work(self) -> bool:
        """False when ``step`` would block until a message comes."""
        return bool(self.scheduler.running or self.scheduler.waiting or self._embeddings or not self.inbox.empty())

    # --- requests -------------------------------------------------------------------------------------------------

    def _take_messages(self) -> None:
        patience_s = STALL_S if self._is_stalled or self.grammars else None
        if self.has_work and not self._is_stalled:
            patience_s = 0.0
        while (message := self._next_message(patience_s)) is not None:
            patience_s = 0.0
            self._busy_since = time.monotonic()
            self._handle(message)
            if self.closed.is_set():
                return
        self._busy_since = time.monotonic()

    def _next_message(self, patience_s: float | None) -> Message | None:
        """The next message, or None if none comes within ``patience_s`` (None: no limit)."""
        if patience_s != 0.0:
            self._busy_since = None
        with suppress(queue.Empty):
            return self.inbox.get(patience_s != 0.0, patience_s)
        return None

    def _handle(self, message: Message) -> None:
        match message:
            case ipc.Submit():
                if self.scheduler.running:
                    self.shared_until_s = time.monotonic() + SHARED_S
                self._take(message)
            case ipc.Embed():
                self._take_texts(message)
            case ipc.Cancel():
                self._cancel(message.key)
            case GrammarReady():
                self._grammar_ready(message)
            case GrammarAnswered():
                self._choices.grammar_answered(message)
            case GrammarEnded():
                self.grammars.ended(message, time.monotonic())
            case ipc.Resize():
                if self._tiers is not None:
                    self._tiers.resize(message.disk_tier_bytes)
            case TextRead():
                self.scheduler.accounts.charge_seconds(*message)
            case Close():
                self.jobs.sequences.close(CLOSE_DEADLINE_S)
                self.closed.set()
            case Wake():
                pass
            case _:
                assert_never(message)

    def _take(self, message: ipc.Submit) -> None:
        if not message.sampling.grammar:
            self.jobs.submit(message)
            return
        self._reports.are_due = True
        wait_s = self.grammars.add(message, time.monotonic())
        if wait_s:
            waiting = f"{self.grammars.num_waiting} requests with grammars are waiting already"
            self._replies.put(ipc.Refused(message.key, "overloaded", waiting, True, wait_s))

    def _take_texts(self, message: ipc.Embed) -> None:
        accounts, is_first = (
            self.scheduler.accounts,
            not self._embeddings.has_any_of(message.client, message.subnet),
        )
        refusal = self._embeddings.add(message, time.monotonic(), accounts.tokens_per_s())
        if refusal is not None:
            self._replies.put(refusal)
            if not refusal.is_busy:
                accounts.charge(message.client, message.subnet, REFUSAL_SERVICE)
        elif is_first:
            self.scheduler.waiting.enter_beside(message.client, message.subnet)
        self._reports.are_due = True

    def _grammar_ready(self, event: GrammarReady) -> None:
        accounts, request = self.scheduler.accounts, self.grammars.request(event.key)
        accounts.charge(request.client, request.subnet, COMPILE_SERVICE)
        accounts.charge_seconds(request.client, request.subnet, event.cpu_s)
        message = self.grammars.ready(event, time.monotonic())
        if message is None:
            return  # (cancelled meanwhile)
        if event.error:
            self.grammars.drop(event.key)
            is_ours = event.error == NO_PROCESS
            code = "overloaded" if is_ours else "bad_request"
            self._replies.put(ipc.Refused(event.key, code, event.error, is_ours))
            self._reports.are_due = True
        else:
            self.jobs.submit(message)

    def _cancel(self, key: int) -> None:
        if self.grammars.drop_waiting(key) or self._embeddings.cancel(key):
            self._reports.are_due = True
            return  # (a caller that cancels reads nothing more)
        for job in [*self.scheduler.running, *self.scheduler.waiting]:
            if job.key == key:
                self.jobs.finish(job, "cancelled")
                return

    def _expire(self) -> None:
        """End the requests whose deadline passed. Their computed tokens stay cached: clients may ask again."""
        now = time.monotonic()
        for key in self.grammars.expired(now):
            self.grammars.drop_waiting(key)
            self._replies.put(ipc.Refused(key, DEADLINE, TOO_LATE, False))
            self._reports.are_due = True
        for job in self.scheduler.expired(now):
            if job.seq_id is not None or job in self.scheduler.waiting:  # (else abandoned with a job before it)
                self.jobs.give_up(job, DEADLINE, TOO_LATE, False)

    # --- one decode call ------------------------------------------------------------------------------------------

    def _plan(self) -> list[Row]:
        while (job := self.scheduler.outgrown()) is not None:
            if not self.jobs.preempt(job):
                break
        self.jobs.sequences.let_go(self.scheduler.room_for_step())
        jobs = self.scheduler.able()
        num_decoding = sum(1 for job in jobs if not job.remaining_prefill)
        batch_tokens, can_abort = self.scheduler.limits.batch_tokens, self.llama.can_abort
        is_shared = time.monotonic() < self.shared_until_s
        rate, num_prefilling = self._reports.prefill.rate, len(jobs) - num_decoding
        budget = prefill_budget(rate, num_decoding, batch_tokens, can_abort, is_shared, num_prefilling)
        rows = plan_rows(jobs, budget, batch_tokens, self.scheduler.limits.reported_tokens)
        if self.scheduler.limits.state_grid > 1:
            rows = single_row(rows, self._last_key, self.scheduler.limits.state_grid)
            self._last_key = rows[0].job.key if rows else -1
        self.prefilling = frozenset(row.job.key for row in rows if row.job.remaining_prefill)
        return rows

    def _compute(self, rows: Sequence[Row]) -> None:
        batch = []
        for row in rows:
            assert row.job.seq_id is not None
            batch.append(BatchRow(row.job.seq_id, row.start, row.tokens, row.num_outputs))
        self._busy_since = began = time.monotonic()
        self._is_decoding = True
        result, outputs = self.llama.decode(batch)
        self._is_decoding = False
        self._busy_since = ended = time.monotonic()
        seconds = ended - began
        if self._share < 1 and any(row.job.client for row in rows):
            time.sleep(rest_s(seconds, self._share))
            self._busy_since = ended = time.monotonic()
            seconds = ended - began  # (the speed that others can count on)
        if result == NO_ROOM:
            self.jobs.make_room()
        elif result == ABORTED:
            if not self.jobs.sequences.resync(rows):
                self.jobs.abandon("the cache lost a sequence")
        elif result != OK:
            self.jobs.abandon(f"llama.cpp could not decode ({result})")
        else:
            self._reports.measure(rows, seconds)
            self._choices.accept(rows, outputs)
            self._text_pace.computed(seconds)
            self.scheduler.give_way.computed(rows, time.monotonic() - began)  # (with the choice of tokens)

    def _may_embed(self, request: EmbeddingRequest) -> bool:
        wanted, share = self.scheduler.wanted(), share_of(request)
        others = [wanted[other] for other in {share_of(job) for job in self.scheduler.running} - {share}]
        return self._text_pace.may_step(self._embeddings.tokens_of(request), others)

    def _embed(self) -> bool:
        """Embed a piece of a text, if its client is not ahead of clients with running answers. False: nothing done."""
        request = self.scheduler.precedence.first_behind(self._embeddings, self._embeddings.step_tokens)
        if request is None or not self._may_embed(request):
            return False
        self._busy_since = began = time.monotonic()
        self._is_decoding = True
        step = self._embeddings.step(request, began)
        self._is_decoding = False
        self._busy_since = ended = time.monotonic()
        request = step.request
        self.scheduler.accounts.embedded(request.client, request.subnet, step.num_tokens, ended - began)
        self._text_pace.embedded(ended - began)
        if step.reply is not None:
            self._replies.put(step.reply)
            self._reports.are_due = True
        return True
