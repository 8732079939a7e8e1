"""The engine's step loop: take messages, admit, decode one batch, sample, report.

``Scheduler`` decides, ``Llama`` computes; this file carries decisions out and keeps the two in agreement. Everything
here runs in the engine process's main thread, the owner of the llama.cpp context.
"""

import os
import queue
import threading
import time
from collections.abc import Iterable, Sequence

from node.engine import ipc
from node.engine.answer import Answer
from node.engine.embed_desk import EmbedDesk
from node.engine.engine import COALESCE_S, DEADLINE, TOO_LATE
from node.engine.grammar import NO_PROCESS, GrammarDesk, GrammarError, GrammarReady, OpenGrammar
from node.engine.job import Job, Limits, Refusal
from node.engine.llama import ABORTED, NO_ROOM, OK, BatchRow, Llama
from node.engine.rates import prefill_budget
from node.engine.scheduler import Admission, Evicted, Row, Scheduler
from node.engine.tier import Whose
from node.engine.tier_store import TierStore
from proto.blocks import pack_tokens, unpack_tokens
from proto.messages import Usage, Vitals
from proto.meters import HoldMeter, TokenRateMeter
from proto.shares import has_room
from proto.sharing import Sharing

VITALS_INTERVAL_S = 0.1
"""Vitals that change while nothing starts or ends go out at most this often."""
PREFILL_WINDOW_TOKENS, DECODE_WINDOW_TOKENS = 2048, 256
SHARED_S = 60.0
"""For so long after a request came while another one ran, steps are short."""
CLOSE_DEADLINE_S = 8.0
"""For writing the cache to disk at the end: 4 GB to an SSD. The parent waits a little longer."""


class Close:
    """Message of the reader: the parent is done."""


class Wake:
    """Message of the second tier's writer: also an idle loop should look at what it did."""


Message = ipc.Submit | ipc.Embed | ipc.Cancel | GrammarReady | Close | Wake


class StepLoop:
    """All requests of one model."""

    def __init__(
        self,
        llama: Llama,
        limits: Limits,
        replies: ipc.Replies,
        check: bool,
        open_grammar: OpenGrammar,
        embeds: EmbedDesk,
        tiers: TierStore | None = None,
        check_idle: bool = False,
    ) -> None:
        """check, check_idle: see ``EngineSettings``. tiers: the second tier, loaded; None for none."""
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.closed = threading.Event()
        """Set once ``Close`` was handled; ``run`` returns then."""
        self.prefilling: frozenset[int] = frozenset()
        """Keys of the requests whose prompts the running decode computes; the reader looks before it aborts."""
        self._llama = llama
        self._scheduler = Scheduler(limits, Sharing(os.urandom(16)))
        self._replies = replies
        self._check, self._check_idle = check, check_idle
        self._grammars = GrammarDesk(open_grammar, limits.slots, self.inbox.put)
        self._embeds = embeds
        self._answers: dict[int, Answer] = {}
        self._options: dict[int, ipc.Submit] = {}
        self._prefill = TokenRateMeter(PREFILL_WINDOW_TOKENS)
        self._decode = TokenRateMeter(DECODE_WINDOW_TOKENS)
        self._hold = HoldMeter()
        self._vitals_sent: Vitals | None = None
        self._vitals_sent_s = 0.0
        self._vitals_due = True
        self._ended_any = False
        self._busy_since: float | None = None
        self._shared_until_s = time.monotonic() + SHARED_S
        """Until then it is taken for likely that a request comes while another one runs, as one did: also at the start,
        when those come at once that could go nowhere else."""
        self._is_decoding = False
        self._tiers = tiers
        if tiers is not None:
            tiers.follow(self._scheduler.changes, lambda: self.inbox.put(Wake()))
            tiers.announce_all()
            self._scheduler.reach = self._reach
            for tokens in tiers.open_prefixes():
                self._scheduler.sharing.open(tokens)

    def pulse(self) -> tuple[bool, float]:
        """(in a decode call, seconds since the last progress; 0 while idle). For any thread."""
        since = self._busy_since
        return self._is_decoding, 0.0 if since is None else time.monotonic() - since

    def run(self) -> None:
        """Serve until ``Close``."""
        while not self.closed.is_set():
            self.step()

    @property
    def saves_at_end(self) -> bool:
        """Whether ``Close`` is worth sending."""
        return self._tiers is not None and self._tiers.has_disk

    def step(self) -> None:
        """One round: messages, admission, one decode call, reports. Blocks while there is nothing to do."""
        # Cleared before the messages are taken: a cancel that comes later raises it again and stops the decode below.
        self._llama.abort.clear()
        self._take_messages()
        if self.closed.is_set():
            return
        self._expire()
        self._admit()
        rows = self._plan()
        if self.prefilling:
            self._say_fresh_of_all()  # Computing a prompt may take seconds.
        if rows:
            self._compute(rows)
        if self._embeds:
            self._embed()
        self._report()

    @property
    def has_work(self) -> bool:
        """False when ``step`` would block until a message comes."""
        return bool(self._scheduler.running or self._scheduler.waiting or self._embeds or not self.inbox.empty())

    # --- requests -------------------------------------------------------------------------------------------------

    def _take_messages(self) -> None:
        idle = not self.has_work
        self._busy_since = None if idle else time.monotonic()
        while idle or not self.inbox.empty():
            message = self.inbox.get()
            self._busy_since = time.monotonic()
            idle = False
            if isinstance(message, ipc.Submit):
                if self._scheduler.running:
                    self._shared_until_s = time.monotonic() + SHARED_S
                self._take(message)
            elif isinstance(message, ipc.Embed):
                self._vitals_due = True
                if (refusal := self._embeds.add(message)) is not None:
                    self._replies.put(refusal)
            elif isinstance(message, ipc.Cancel):
                self._cancel(message.key)
            elif isinstance(message, GrammarReady):
                self._grammar_ready(message)
            elif isinstance(message, Close):
                self._close()
                return

    def _take(self, message: ipc.Submit) -> None:
        if not message.sampling.grammar:
            self._submit(message)
        elif not self._may_wait_for_grammar(message.client):
            waiting = f"{self._grammars.num_waiting} requests with grammars are waiting already"
            self._replies.put(ipc.Refused(message.key, "overloaded", waiting, True))
        else:
            self._grammars.add(message)
            self._vitals_due = True

    def _may_wait_for_grammar(self, client: bytes) -> bool:
        places = self._scheduler.limits.max_waiting
        return has_room(self._grammars.num_waiting_of(client), self._grammars.num_waiting, places)

    def _grammar_ready(self, event: GrammarReady) -> None:
        message = self._grammars.ready(event)
        if message is None:
            return  # Cancelled meanwhile.
        if event.error:
            self._grammars.drop(event.key)
            is_ours = event.error == NO_PROCESS
            code = "overloaded" if is_ours else "bad_request"
            self._replies.put(ipc.Refused(event.key, code, event.error, is_ours))
            self._vitals_due = True
        else:
            self._submit(message)

    def _submit(self, message: ipc.Submit) -> None:
        prompt = unpack_tokens(message.prompt)
        now, max_tokens = time.monotonic(), message.sampling.max_tokens
        outcome = self._scheduler.submit(
            message.key, prompt, max_tokens, now, message.due_s, message.client, message.owner, message.open_tokens
        )
        if isinstance(outcome, Refusal):
            self._grammars.drop(message.key)
            refused = ipc.Refused(message.key, outcome.code, outcome.message, outcome.retryable, outcome.retry_after_s)
            self._replies.put(refused)
        else:
            self._options[message.key] = message
        self._vitals_due = True

    def _cancel(self, key: int) -> None:
        if self._grammars.drop_waiting(key) or self._embeds.cancel(key):
            self._vitals_due = True
            return  # (whoever cancels reads no more: there is nobody to tell)
        for job in self._scheduler.running:
            if job.key == key:
                self._finish(job, "cancelled")
                return
        for job in self._scheduler.waiting:
            if job.key == key:
                self._scheduler.withdraw(job)
                self._say_ended(job, "cancelled", time.monotonic())
                return

    def _expire(self) -> None:
        """End the requests whose time is over. What they had computed stays cached: they may be asked again."""
        now = time.monotonic()
        for key in self._grammars.expired(now):
            self._grammars.drop_waiting(key)
            self._replies.put(ipc.Refused(key, DEADLINE, TOO_LATE, False))
            self._vitals_due = True
        for job in self._scheduler.expired(now):
            if job.seq_id is not None:
                self._give_up(job, DEADLINE, TOO_LATE, False)
            elif job in self._scheduler.waiting:  # Else it was abandoned with one before it.
                self._scheduler.withdraw(job)
                self._fail(job, DEADLINE, TOO_LATE, False)

    def _admit(self) -> None:
        while (admission := self._scheduler.admit(time.monotonic())) is not None:
            job = admission.job
            if not self._occupy(admission):
                self._clear(self._scheduler.forget_match(job))
                continue
            options = self._options[job.key]
            answer = Answer(
                self._llama, options.sampling, job.prompt, options.resumed_tokens, self._grammars.get(job.key)
            )
            self._answers[job.key] = answer
            self._replies.put(ipc.Started(job.key, job.cached_tokens))
            self._vitals_due = True
            if job.cached_tokens > admission.length and not self._publish(job):
                return  # Published at once, so that whoever comes next shares the cells instead of restoring again.
            if answer.is_stopped:  # The node that was lost had sent all but the end.
                self._finish(job, "stop")

    def _occupy(self, admission: Admission) -> bool:
        """Give the job's sequence exactly the cells of the prefix it reuses. False: the sequence is broken."""
        job, target, source = admission.job, admission.job.seq_id, admission.source
        assert target is not None
        if self._tiers is not None and admission.evicted:
            self._tiers.protect(job.prompt, self._whose(job))
            self._keep(admission.evicted)
        # Copy before clearing: the source itself may go. The job may even have got the source's id, or that of another
        # evicted leaf, whose cells copy_prefix clears.
        if source is None:
            self._llama.clear(target)
            occupied = True
        elif source == target:
            occupied = self._llama.truncate(target, admission.length)
        else:
            occupied = self._llama.copy_prefix(source, target, admission.length)
        self._clear(leaf.seq_id for leaf in admission.evicted if leaf.seq_id != target)
        return occupied and self._restore(job, target)

    def _restore(self, job: Job, seq_id: int) -> bool:
        """Extend a job's prefix from the second tier. False: the sequence is broken."""
        if self._tiers is None or not job.may_share:
            return True
        # The last prompt token is always computed, for its logits.
        tokens, covered, whose = job.prompt[:-1], job.num_computed, self._whose(job)
        length = self._tiers.restore(self._llama, seq_id, tokens, covered, self._prefill.rate, whose)
        if length is not None:
            self._scheduler.restored(job, length)
        return length is not None

    def _reach(self, job: Job, length: int) -> int:
        """See ``Scheduler.reach``."""
        assert self._tiers is not None
        return self._tiers.reach(job.prompt[:-1], length, self._whose(job))

    def _whose(self, job: Job) -> Whose:
        return Whose(job.owner.tag, self._scheduler.open_tokens(job))

    def _keep(self, leaves: Iterable[Evicted]) -> None:
        """Save evicted leaves to the second tier; before any of their cells is cleared."""
        if self._tiers is not None:
            for leaf in leaves:
                self._tiers.keep(self._llama, leaf)

    def _let_go(self, leaves: Sequence[Evicted]) -> None:
        """Save evicted leaves, then free their cells."""
        self._keep(leaves)
        self._clear(leaf.seq_id for leaf in leaves)

    def _close(self) -> None:
        """Write the cache to disk. Says nothing to the parent, which may not read any more."""
        if self._tiers is not None:
            tree = self._scheduler.tree
            leaves = [(seq_id, tree.tokens_of(seq_id)) for seq_id in tree.most_recent()]
            self._tiers.close(self._llama, leaves, time.monotonic() + CLOSE_DEADLINE_S)
        self.closed.set()

    def _finish(self, job: Job, reason: str) -> None:
        """End a running job, cache what it computed, tell the parent."""
        now = time.monotonic()
        if not self._share(job):
            self._abandon("the cache lost a sequence")
            return
        self._clear(self._scheduler.finish(job, now))
        if reason != "cancelled":  # Whoever goes on elsewhere must not have got what was not decided.
            self._say_fresh(job, is_last=True)
        self._say_cache()
        self._say_ended(job, reason, now)

    def _give_up(self, job: Job, code: str, message: str, retryable: bool) -> None:
        """End a running job without an answer, but cache what it computed."""
        if not self._share(job):
            self._abandon("the cache lost a sequence")
            return
        self._clear(self._scheduler.finish(job, time.monotonic()))
        self._fail(job, code, message, retryable)

    def _fail(self, job: Job, code: str, message: str, retryable: bool) -> None:
        """Tell the parent that a job that already left the scheduler was not answered, after the tokens there are."""
        if job.key in self._answers:
            self._say_fresh(job)
        self._forget(job)
        self._replies.put(ipc.Refused(job.key, code, message, retryable))

    def _abandon(self, why: str) -> None:
        """Start over with an empty cache: what the cells hold is not known any more."""
        for job in self._scheduler.abandon():
            self._fail(job, "internal", why, True)
        self._llama.clear_all()
        if self._tiers is not None:
            self._tiers.announce_all()  # Blobs are not cells: they are as good as before.
        self._say_cache()

    def _forget(self, job: Job) -> None:
        answer = self._answers.pop(job.key, None)
        if answer is not None:
            answer.close()
        self._grammars.drop(job.key)
        self._options.pop(job.key, None)
        self._vitals_due = self._ended_any = True

    # --- one decode call ------------------------------------------------------------------------------------------

    def _plan(self) -> list[Row]:
        running = self._scheduler.running
        self._let_go(self._scheduler.room_for_step())
        num_decoding = sum(1 for job in running if not job.remaining_prefill)
        batch_tokens, can_abort = self._scheduler.limits.batch_tokens, self._llama.can_abort
        is_shared = time.monotonic() < self._shared_until_s
        budget = prefill_budget(self._prefill.rate, num_decoding, batch_tokens, can_abort, is_shared)
        rows = self._scheduler.plan(budget)
        self.prefilling = frozenset(row.job.key for row in rows if row.job.remaining_prefill)
        return rows

    def _compute(self, rows: Sequence[Row]) -> None:
        batch = []
        for row in rows:
            assert row.job.seq_id is not None
            batch.append(BatchRow(row.job.seq_id, row.start, row.tokens, row.wants_token))
        self._busy_since = began = time.monotonic()
        self._is_decoding = True
        result, outputs = self._llama.decode(batch)
        self._is_decoding = False
        self._busy_since = ended = time.monotonic()
        seconds = ended - began
        if result == NO_ROOM:
            self._make_room()
        elif result == ABORTED:
            self._resync(rows)
        elif result != OK:
            self._abandon(f"llama.cpp could not decode ({result})")
        else:
            self._measure(rows, seconds)
            self._accept(rows, outputs)

    def _embed(self) -> None:
        """As much of it as one step of answers may wait for."""
        self._busy_since, self._is_decoding = time.monotonic(), True
        reply = self._embeds.step()
        self._busy_since, self._is_decoding = time.monotonic(), False
        if reply is not None:
            self._replies.put(reply)
            self._vitals_due = True

    def _accept(self, rows: Sequence[Row], outputs: Sequence[int]) -> None:
        """Take the result of a decode call: positions, then tokens, then what others may share."""
        chosen: list[tuple[Job, int | GrammarError]] = []
        for row, output in zip(rows, outputs, strict=True):
            row.job.num_computed += row.count
            if row.wants_token:
                try:
                    chosen.append((row.job, self._answers[row.job.key].choose(output)))
                except GrammarError as exc:
                    chosen.append((row.job, exc))
        for job, token in chosen:
            if job.seq_id is None:
                continue  # Abandoned a moment ago.
            if isinstance(token, GrammarError):
                self._give_up(job, "bad_request", str(token), False)
            else:
                self._generated(job, token)
        for job in self._scheduler.publishable():
            if not self._publish(job):
                return

    def _publish(self, job: Job) -> bool:
        """Let others share what the job has computed or restored. False: everything was abandoned."""
        if not self._share(job):
            self._abandon("the cache lost a sequence")
            return False
        self._clear(self._scheduler.publish(job, time.monotonic()))
        return True

    def _generated(self, job: Job, token: int) -> None:
        if job.first_token_s is None:
            job.first_token_s = time.monotonic()
        if self._llama.ends_generation(token):
            self._finish(job, "stop")
            return
        job.tokens.append(token)
        answer = self._answers[job.key]
        answer.add(token)
        if answer.is_stopped:
            self._finish(job, "stop")
        elif job.num_generated >= job.max_tokens:
            self._finish(job, "length")

    def _share(self, job: Job) -> bool:
        """Give up the job's duplicates of cells that the tree has. False: the sequence is broken."""
        shareable = self._scheduler.shareable(job)
        if shareable is None:
            return True
        source, length = shareable
        assert job.seq_id is not None
        return self._llama.replace_prefix(source, job.seq_id, length)

    def _make_room(self) -> None:
        """Cells ran out in spite of the reservations (padding, fragments): evict, or give up the newest job."""
        leaf = self._scheduler.evict_one()
        if leaf is not None:
            self._let_go([leaf])
            return
        self._give_up(self._scheduler.running[-1], "overloaded", "the KV cache is full", True)

    def _resync(self, rows: Sequence[Row]) -> None:
        """After an abort: keep the whole micro-batches that were finished, but redo the rows whose logits are lost."""
        for row in rows:
            job = row.job
            assert job.seq_id is not None
            end = row.start + row.count
            kept = min(self._llama.end(job.seq_id), end - 1 if row.wants_token else end)
            job.num_computed = max(row.start, kept)
            if not self._llama.truncate(job.seq_id, job.num_computed):
                self._abandon("the cache lost a sequence")
                return

    def _clear(self, seq_ids: Iterable[int]) -> None:
        for seq_id in seq_ids:
            self._llama.clear(seq_id)

    # --- reports --------------------------------------------------------------------------------------------------

    def _measure(self, rows: Sequence[Row], seconds: float) -> None:
        """Share a step's time between prefill and decode by rows: in one batch a row costs about the same."""
        num_decode = sum(1 for row in rows if not row.job.remaining_prefill)
        num_rows = sum(row.count for row in rows)
        if num_decode:
            self._decode.add(num_decode, seconds * num_decode / num_rows)
        if num_rows > num_decode:
            self._prefill.add(num_rows - num_decode, seconds * (num_rows - num_decode) / num_rows)
        self._scheduler.measured(self._prefill.rate, self._decode.rate)

    def _report(self) -> None:
        """Send what this step produced."""
        if self._tiers is not None:
            self._tiers.poll()
        now = time.monotonic()
        for job in self._scheduler.running:
            if now >= self._answers[job.key].due_s:
                self._say_fresh(job)
        self._say_cache()
        vitals = self._vitals()
        if vitals != self._vitals_sent and (self._vitals_due or now - self._vitals_sent_s >= VITALS_INTERVAL_S):
            self._vitals_sent, self._vitals_sent_s, self._vitals_due = vitals, now, False
            self._replies.put(ipc.LoadChanged(vitals))
        self._replies.flush()
        if self._ended_any and (self._check or (self._check_idle and not self.has_work)):
            self._ended_any = False
            self.check_invariants()

    def _vitals(self) -> Vitals:
        scheduler = self._scheduler
        return Vitals(
            queued_tokens=scheduler.queued_tokens() + self._embeds.queued_tokens,
            active_requests=len(scheduler.running),
            waiting_requests=len(scheduler.waiting) + self._grammars.num_waiting,
            slots=scheduler.limits.slots,
            prefill_rate=round(self._prefill.rate),
            decode_rate=round(self._decode.rate),
            hold_ms=self._hold.mean_ms,
        )

    def _say_fresh(self, job: Job, is_last: bool = False) -> None:
        answer = self._answers[job.key]
        for item in answer.take(is_last):
            answer.due_s = time.monotonic() + COALESCE_S
            self._replies.put(ipc.Generated(job.key, pack_tokens(item.tokens), item.text, item.logprobs))

    def _say_fresh_of_all(self) -> None:
        for job in self._scheduler.running:
            self._say_fresh(job)
        self._replies.flush()

    def _say_cache(self) -> None:
        if self._scheduler.changes:
            change = self._scheduler.changes.take()
            stored = [ipc.StoredLeaf.of(seq_id, path) for seq_id, path in change.stored]
            self._replies.put(ipc.CacheDelta(list(change.evicted), [], change.reset))
            for leaf in stored:  # One a frame: all leaves of a large cache would exceed the frame's bound.
                self._replies.put(ipc.CacheDelta([], [leaf], False))

    def _say_ended(self, job: Job, reason: str, now: float) -> None:
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
        self._forget(job)
        self._replies.put(ipc.Ended(job.key, reason, usage))

    def check_invariants(self) -> None:
        """Raise AssertionError when the scheduler's picture and llama.cpp's cells differ. Call between steps."""
        scheduler = self._scheduler
        scheduler.check_invariants()
        if self._tiers is not None:
            self._tiers.check_invariants()
        expected = {seq_id: len(scheduler.tree.tokens_of(seq_id)) for seq_id in scheduler.tree.seq_ids()}
        expected |= {job.seq_id: job.num_computed for job in scheduler.running if job.seq_id is not None}
        for seq_id in range(scheduler.limits.num_sequences):
            length = self._llama.end(seq_id)
            assert length == expected.get(seq_id, 0), f"sequence {seq_id}: {length} cells, expected {expected}"
        assert self._answers.keys() == {job.key for job in scheduler.running}, "answers without jobs"
