"""The order of requests and the places of their tokens: every decision of the engine that needs no llama.cpp.

Theory. The KV cache is one pool of ``num_cells`` cells. A cell belongs to the prefix tree (shared by any number of
sequences) or to one running request. A request shares ``shared(r)`` tokens with the tree, holds ``held(r)`` more cells,
and has a promise of ``own(r) = promised(r) - shared(r)`` cells. Two invariants:

    promise:  pinned tokens of the tree + sum of own(r)  <=  num_cells
    fact:     all tokens of the tree    + sum of held(r) <=  num_cells

The promise at admission covers the whole request if that is at most a slot's part of the pool. Else it covers the
prompt and a little more, and grows with the answer (``outgrown``). So a running request never finds the pool full:
either leaves can be evicted, or the promise cannot grow and the request with the largest holding stops (``preempt``).
A request also stops when the client of a waiting one holds less: see ``holdings.py``. A stopped request keeps its
computed tokens in the tree, waits as the first of its client, and goes on where it stopped. A client alone may use
everything.

The fact holds because leaves are evicted for the prompt at admission, as all of it will be computed, and for the answer
step by step, as answers are usually much shorter than their limit (``room_for_step``). When a request's tokens enter
the tree, its share grows by the tokens that the tree then holds for it. This is also true of the real cells: before the
worker inserts a request's tokens, it replaces the request's duplicates of the tree's cells (``shareable``).

All cells in use make every step slower, also those of idle leaves: attention reads all cells below the highest one in
use. On one core, 6,800 idle cells of a 135M model made a prefill 1.4 times and a step of 8 rows 1.45 times as long,
while a restore from host memory takes 7 ms per 1,000 tokens. So ``demote_idle`` evicts idle leaves at each admission.

Waiting jobs start in the order of ``proto.fair_queue``, which is fair among clients. A job that lacks cells when its
turn comes keeps the turn, so that smaller jobs do not starve it. Only jobs of clients that received less service, and
that will hold less than this job needs, may pass it.

``prefixes.py`` has the rules of reuse between requests. A job of a model that keeps states (``Limits.state_grid``)
begins at a saved state. It shares the cells up to there and computes the rest again, also where the tree has cells.

Nothing here reads a clock or touches the model. Methods mutate the scheduler and *return* what the worker must do.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from mycelia.node.engine.changes import ChangeLog
from mycelia.node.engine.child.accounts import REFUSAL_SERVICE, Accounts
from mycelia.node.engine.child.cells import Cells, Evicted
from mycelia.node.engine.child.holdings import holding, largest_of_all, victims, wanted_holding
from mycelia.node.engine.child.job import Job, Limits, Refusal
from mycelia.node.engine.child.precedence import Precedence
from mycelia.node.engine.child.prefixes import Prefixes
from mycelia.node.engine.child.rows import GiveWay, Row, plan_rows
from mycelia.proto.admission.fair_order import Key
from mycelia.proto.admission.fair_queue import ANSWER_WEIGHT, SLACK, FairQueue, share_of
from mycelia.proto.cache.checkpoints import NEAR_END_TOKENS, lengths
from mycelia.proto.cache.radix import RadixTree
from mycelia.proto.cache.sharing import Owner, Sharing

COMPARE_S, MAX_COMPARED = 0.1, 4
"""Seconds between two checks whether running jobs must stop, and clients compared per subnet: 60 us each."""
GROWTH_TOKENS = 128
"""Cells by which a promise grows: some seconds of an answer."""


@dataclass(frozen=True)
class Admission:
    """The start of a job. The worker saves ``evicted`` leaves, copies, then clears: ``source`` may be one of them."""

    job: Job
    source: int | None
    length: int
    evicted: Sequence[Evicted]


class Scheduler:
    """Queue, running set, sequence ids and the prefix tree."""

    def __init__(self, limits: Limits, sharing: Sharing | None = None) -> None:
        """sharing: keyed with a secret of this engine; None: for tests."""
        self.limits = limits
        self.tree = RadixTree()
        self.sharing = sharing or Sharing(b"")
        self.changes = ChangeLog()
        self.running: list[Job] = []
        """In order of admission."""
        self.cells = Cells(limits, self.tree, self.changes, self.running)
        self.waiting: FairQueue[Job] = FairQueue(limits.max_waiting)
        self.prefixes = Prefixes(limits, self.tree, self.sharing, self.changes, self.cells, self.running, self.waiting)
        self.accounts = Accounts(self.waiting, limits.num_cells)
        self.precedence = Precedence(self.waiting, self.running)
        self.give_way = GiveWay()
        self._turn: Job | None = None
        """A waiting job that lacked cells when it was its turn."""
        self._is_changed, self._compared_s = True, 0.0
        """Whether waiting or running jobs changed since the last comparison, and its time."""

    # --- arrival --------------------------------------------------------------------------------------------------

    def submit(
        self,
        key: int,
        prompt: Sequence[int],
        max_tokens: int,
        now: float,
        due_s: float | None = None,
        client: bytes = b"",
        subnet: str = "",
        owner: Owner = Owner(),  # noqa: B008  immutable
        declared_open: int = 0,
        to_report: range = range(0),
        resumed: int = 0,
    ) -> Job | Refusal:
        """Queue a request, or return the refusal. ``max_tokens`` is cut to fit the context. due_s: see ``expired``.
        client, subnet: the share of the queue to take; owner: the owner of the prefixes that the request may reuse.
        declared_open: leading tokens that every request may reuse. to_report: see ``Job``. resumed: number of tokens at
        the end of the prompt that another node generated. The client also pays for an invalid request."""
        limits = self.limits
        self.accounts.look(self.running, now)
        refusal = limits.refusal(prompt, max_tokens)
        if refusal is not None:
            self.accounts.charge(client, subnet, REFUSAL_SERVICE)
            return refusal
        most = min(max_tokens, limits.context_tokens - len(prompt))
        job = Job(key, tuple(prompt), most, now, list(prompt), due_s=due_s, client=client, subnet=subnet, owner=owner)
        job.declared_open, job.num_to_prefill, job.to_report = declared_open, len(prompt), to_report
        job.num_written = len(prompt) - resumed
        self._is_changed = True
        wait_s = self.waiting.join(job, now, self.accounts.first_start_s(self.running))
        if wait_s:
            num_own, num_waiting = self.waiting.num_of(client, subnet), len(self.waiting)
            text = f"{num_waiting} requests are waiting already, {num_own} of them of this client"
            return Refusal("overloaded", text, True, wait_s)
        if limits.reuse:
            job.chain = self.sharing.chain(job.prompt[:-1], owner.swarm)
            job.expected_cached = self.prefixes.expected(job)
        return job

    # --- admission ------------------------------------------------------------------------------------------------

    def admit(self, now: float) -> Admission | None:
        """Start the first waiting job that can run now; call again until it returns None, then ask ``to_preempt``."""
        self.accounts.look(self.running, now)
        if not self.waiting:
            return None
        admission = self._admit_next(now) if len(self.running) < self.limits.slots else None
        if admission is None:
            self.waiting.blocked(now)
        else:
            self.accounts.start(admission.job)
        return admission

    def _admit_next(self, now: float) -> Admission | None:
        turn = None
        for job in [self._turn, *self.waiting] if self._turn else self.waiting:
            if (
                job.is_choosing
                or self.prefixes.still_waits(job)
                or (turn is not None and not self._may_pass(job, turn))
            ):
                continue
            length, source = self.prefixes.match(job)
            if turn is None and self.prefixes.should_wait(job, length):
                continue
            admission = self._start(job, source, length, now)
            if admission is not None:
                self._turn = turn if turn is not job else None
                return admission
            turn = turn or job
        self._turn = turn
        return None

    def _may_pass(self, job: Job, turn: Job) -> bool:
        """Whether ``job`` may start before the job ``turn``, which lacks cells."""
        if job is turn or (share_of(job), job.client) == (share_of(turn), turn.client):
            return False
        wants = wanted_holding(job, self._promise(job), self.running, self.limits, turn)
        return wants < holding((), self.limits, self._promise(turn)) and self.precedence.lead(job, turn)[0] >= -SLACK

    def to_preempt(self, now: float) -> Sequence[Job]:
        """Running jobs that must stop so that a waiting one can start: call ``preempt`` for each, then ``admit``."""
        is_due = self._is_changed or not 0 <= now - self._compared_s < COMPARE_S
        if not self.waiting or not self.running or not is_due:
            return ()
        self._is_changed, self._compared_s = False, now
        self.accounts.look(self.running, now)
        free, freed, tried = self.cells.num_unpromised(), self.cells.freed_by, defaultdict[Key, set[bytes]](set)
        for job in self.waiting:
            clients = tried[share_of(job)]
            if (
                job.client in clients
                or len(clients) >= MAX_COMPARED
                or job.is_choosing
                or self.prefixes.still_waits(job)
            ):
                continue
            clients.add(job.client)
            lead, num_cells = partial(self.precedence.lead, job), self._promise(job)
            stop = victims(job, num_cells, free, freed, self.running, self.limits, lead, now)
            if stop:
                self._turn = job
                return stop
        return ()

    def preempt(self, job: Job, now: float) -> list[int]:
        """Stop a running job, which then waits as the first of its client. Returns the sequences to clear."""
        self._settle(job, now)
        job.expected_cached = job.num_computed if self.limits.reuse else 0
        self.accounts.stop(job, is_next=False)
        cleared = self._leave(job, now)
        job.num_computed = 0
        return cleared

    def _promise(self, job: Job) -> int:
        """Number of cells promised to a job at its start."""
        limits = self.limits
        return min(job.limit_tokens, max(limits.num_cells // limits.slots, len(job.tokens) + GROWTH_TOKENS))

    def _start(self, job: Job, source: int | None, length: int, now: float) -> Admission | None:
        """Reserve an id and cells for ``job``, with evictions if necessary. None when running jobs leave too few."""
        pinned, promised = source, self._promise(job)
        if pinned is not None:
            self.tree.pin(pinned)
        if not self.cells.can_free(promised - length):
            # The shared leaf itself may fill the cache. Then the job takes over its prefix, and the leaf is evicted.
            if pinned is not None:
                self.tree.unpin(pinned)
                pinned = None
            if not self.cells.can_free(promised):
                return None
        job.shared_tokens = length if pinned is not None else 0
        job.num_computed, job.num_to_prefill, job.promised = length, len(job.tokens), promised
        job.stops = self._stops(job)
        evicted = self.cells.evict_all() if self.limits.demote_idle else []
        evicted += self.cells.make_room(job.held_cells)
        job.seq_id = self.cells.free_ids.pop()
        job.pinned = pinned
        job.num_starts, job.started_s = job.num_starts + 1, now
        if job.num_starts == 1:
            job.admitted_s, job.cached_tokens = now, length
        self._is_changed = True
        self.running.append(job)
        return Admission(job, source, length, evicted)

    def _stops(self, job: Job) -> dict[int, int]:
        limits = self.limits
        if not (limits.state_grid and limits.reuse):
            return {}
        prompt, control = job.prompt, limits.control_tokens
        near = range(len(prompt) - 1, max(len(prompt) - NEAR_END_TOKENS, 0) - 1, -1)
        turn = next((place + 1 for place in near if prompt[place] in control), 0)
        return lengths(job.state_tokens, len(prompt), job.known_tokens, turn, limits.state_grid)

    def restored(self, job: Job, length: int) -> None:
        """Note that the worker restored the first ``length`` tokens of a just admitted job, into its reserved cells."""
        assert job.num_computed <= length < job.num_to_prefill
        self.accounts.charge(job.client, job.subnet, job.num_computed - length)
        if job.num_starts == 1:
            job.cached_tokens = length
        job.num_computed = length

    def forget_match(self, job: Job) -> list[int]:
        """Queue a job again as the next of its client, to compute all tokens: its prefix could not be copied. Returns
        the sequences to clear."""
        assert job.seq_id is not None
        self.accounts.stop(job, is_next=True)
        self._turn = job
        self.prefixes.pin(job, None, 0)
        self.running.remove(job)
        job.num_starts -= 1
        job.cached_tokens, job.num_computed = job.cached_tokens if job.num_starts else 0, 0
        job.expected_cached, job.may_share = 0, False
        cleared, job.seq_id = job.seq_id, None
        self.cells.free_ids.append(cleared)
        return [cleared]

    def abandon(self) -> list[Job]:
        """Forget the whole cache and return all running jobs: the contents of the cells are unknown."""
        self.accounts.charge_running(self.running)
        abandoned = list(self.running)
        self.running.clear()
        for job in abandoned:
            job.seq_id = job.pinned = None
        self.tree.clear()
        self.changes.reset()
        self.cells.reset()
        return abandoned

    # --- steps ----------------------------------------------------------------------------------------------------

    def outgrown(self) -> Job | None:
        """A running job that must stop before the next step because the answers need more cells than there are:
        ``preempt`` it and call again. None: each job has the cells for its next token. Grows promises."""
        for job in self.running:
            lacking = len(job.tokens) - job.promised
            if lacking > 0:
                room = self.cells.num_unpromised()
                if room < lacking:
                    return largest_of_all(self.running, self.limits)
                job.promised = min(job.promised + min(room, GROWTH_TOKENS), job.limit_tokens)
        return None

    def room_for_step(self) -> list[Evicted]:
        """Evict leaves so that the next step's generated tokens have cells; returns the leaves to save and clear before
        it. Call after ``outgrown`` returned None."""
        evicted: list[Evicted] = []
        while self.cells.num_free() < sum(1 for job in self.running if not job.remaining_prefill):
            leaf = self.cells.evict_one()
            assert leaf is not None, "promised"
            evicted.append(leaf)
        return evicted

    def wanted(self) -> dict[Key, float]:
        """The service of all waiting and running jobs of each share, with answers of maximum length."""
        wanted = defaultdict[Key, float](float)
        for job in [*self.running, *self.waiting.unordered()]:
            wanted[share_of(job)] += len(job.prompt) + ANSWER_WEIGHT * job.max_tokens
        return wanted

    def able(self) -> list[Job]:
        """The running jobs that get a row in the next decode call, in order of admission."""
        jobs = [job for job in self.running if not job.is_choosing]
        wanted = self.wanted()
        out = self.give_way.sitting_out(jobs, {job: wanted[share_of(job)] for job in jobs})
        return [job for job in jobs if job not in out]

    def plan(self, prefill_tokens: int) -> list[Row]:
        return plan_rows(self.able(), prefill_tokens, self.limits.batch_tokens, self.limits.reported_tokens)

    def finish(self, job: Job, now: float) -> list[int]:
        """End a running job and cache its computed tokens. Returns the sequences to clear."""
        self._settle(job, now)
        return self._leave(job, now)

    def _settle(self, job: Job, now: float) -> None:
        self.accounts.now = max(self.accounts.now, now)
        self.accounts.charge_running([job])

    def _leave(self, job: Job, now: float) -> list[int]:
        assert job.seq_id is not None
        self._is_changed = True
        self.running.remove(job)
        cleared: list[int] = []
        if self.limits.reuse and job.num_computed:
            self.prefixes.note(job)
            cleared = self.prefixes.insert(job, job.num_computed, now)
        self.prefixes.pin(job, None, 0)
        if job.seq_id not in self.tree:
            cleared.append(job.seq_id)
            self.cells.free_ids.append(job.seq_id)
        job.seq_id = None
        return cleared

    def withdraw(self, job: Job) -> None:
        self.waiting.withdraw(job)
        if self._turn is job:
            self._turn = None

    def expired(self, now: float) -> list[Job]:
        """Running and waiting jobs whose deadline passed: ``finish`` or ``withdraw`` each. Does not mutate."""
        return [job for job in [*self.running, *self.waiting] if job.due_s is not None and job.due_s <= now]

    # --- load -----------------------------------------------------------------------------------------------------

    def queued_tokens(self) -> int:
        """Tokens accepted but not computed yet, without the cached tokens that waiting jobs expect."""
        waiting = sum(max(len(job.tokens) - job.expected_cached, 1) for job in self.waiting)
        return sum(job.remaining_prefill for job in self.running) + waiting

    def check_invariants(self) -> None:
        """Raise AssertionError when the accounting of cells, ids or pins is wrong."""
        self.tree.check_invariants()
        self.waiting.check_invariants()
        assert self._turn is None or self._turn in self.waiting
        self.cells.check_invariants()
