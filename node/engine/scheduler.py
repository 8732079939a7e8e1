"""Who runs next, and where its tokens live: every decision of the engine that needs no llama.cpp.

Theory. The KV cache is one pool of ``num_cells`` cells. A cell belongs to the prefix tree (shared by any number of
sequences) or to one running request. A request shares ``shared(r)`` tokens with the tree, holds ``held(r)`` cells
beyond them, and may come to hold ``own(r) = limit(r) - shared(r)``. Two invariants:

    promise:  pinned tokens of the tree + sum of own(r)  <=  num_cells
    fact:     all tokens of the tree    + sum of held(r) <=  num_cells

The promise is made at admission, so a running request never finds the pool full: what is in its way can be evicted. The
fact is kept by evicting at admission for the prompt, which is certain to come, and step by step for the answer, which
is usually much shorter than it may be (``room_for_step``). When a request's tokens enter the tree, its share grows by
what the tree then holds for it. That is true of the real cells because the worker, before it inserts a request's
tokens, swaps the request's duplicates of cells that the tree has for the tree's (``shareable``).

Cells in use make every step slower, also those of idle leaves: attention walks all cells below the highest one in use.
On one core, 6,800 idle cells of a 135M model made a prefill 1.4 times and a step of 8 rows 1.45 times as long, while a
restore from host memory costs 7 ms per 1,000 tokens. So with ``demote_idle`` idle leaves leave at the next admission.

A running request pins the leaf whose cells it shares, so that the tree keeps counting them. A leaf's id may be the id
of a running request (its prompt is published as soon as it is computed, so that others can share it at once): such a
leaf is pinned by that request.

What waits starts in the order of ``proto.fair_queue``, which is fair among clients. A job whose turn it is and that
lacks cells keeps its turn, whoever else comes or is served meanwhile, so that smaller ones do not starve it.

A request that arrives while another computes a longer prefix of its prompt than the tree has waits for that prefix
instead of computing it again, at most once.

What a request may reuse at all, and where its own tokens stand in the tree, is said by ``proto.sharing``: the tree
knows sequences by their paths, not by their tokens.

Nothing here reads a clock or touches the model. Methods mutate the scheduler and *return* what the worker must do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from node.engine.changes import ChangeLog
from node.engine.job import Job, Limits, Refusal
from proto.fair_queue import FairQueue
from proto.radix import RadixTree, common_prefix
from proto.sharing import PUBLIC, Owner, Sharing, match
from proto.value import Reuse

UNKNOWN_START_S = 1.0
"""Expected between starts of an engine that has not computed anything yet."""
MIN_SHARED_TOKENS = 32
"""Waiting for another request's prefix must save at least this much: less than a prefill chunk is not worth it."""


@dataclass(frozen=True)
class Evicted:
    """A leaf that left the tree. Its sequence still has its cells, until the worker clears it."""

    seq_id: int
    path: Sequence[int]
    """Its tokens from the root, see ``proto.sharing.unpaint``."""
    start: int
    """The cells from here on were the leaf's own; the tree still has those before."""
    reuse: Reuse
    """How often those were used; see ``proto.value``."""


@dataclass(frozen=True)
class Admission:
    """A job starts. The worker saves what it wants of ``evicted``, copies, then clears: ``source`` may be evicted."""

    job: Job
    source: int | None
    length: int
    evicted: Sequence[Evicted]


@dataclass(frozen=True)
class Row:
    """A run of one job's tokens to decode; positions start at ``start``. ``wants_token``: sample after the last."""

    job: Job
    start: int
    count: int
    wants_token: bool

    @property
    def tokens(self) -> list[int]:
        return self.job.tokens[self.start : self.start + self.count]


class Scheduler:
    """Queue, running set, sequence ids and the prefix tree."""

    def __init__(self, limits: Limits, sharing: Sharing | None = None) -> None:
        """sharing: with a secret of this engine's; None: for tests."""
        self.limits = limits
        self.tree = RadixTree()
        self.sharing = sharing or Sharing(b"")
        self.changes = ChangeLog()
        self.running: list[Job] = []
        """In order of admission."""
        self.waiting: FairQueue[Job] = FairQueue(limits.max_waiting)
        self.reach: Callable[[Job, int], int] = lambda job, length: length
        """(job, length of its prefix in the tree) -> length in tree and second tier together; see ``tier.py``."""
        self._turn: Job | None = None
        """A waiting job that lacked cells when it was its turn."""
        self._prefill_rate = self._decode_rate = 0.0
        self._free_ids = list(range(limits.num_sequences - 1, -1, -1))

    # --- arrival --------------------------------------------------------------------------------------------------

    def submit(
        self,
        key: int,
        prompt: Sequence[int],
        max_tokens: int,
        now: float,
        due_s: float | None = None,
        client: bytes = b"",
        owner: Owner = Owner(),  # noqa: B008  immutable
        declared_open: int = 0,
    ) -> Job | Refusal:
        """Queue a request, or say why not. ``max_tokens`` is cut to what the context leaves. due_s: see ``expired``.
        client: whose share of the queue it takes. owner: whose prefixes it may reuse.
        declared_open: how many of its leading tokens everybody may."""
        limits = self.limits
        if not prompt:
            return Refusal("bad_request", "the prompt has no tokens", False)
        if not 0 <= min(prompt) <= max(prompt) < limits.num_vocab:
            return Refusal("bad_request", f"token ids must be below {limits.num_vocab}", False)
        if max_tokens < 1:
            return Refusal("bad_request", "max_tokens must be at least 1", False)
        room = limits.context_tokens - len(prompt)
        if room < 1:
            text = f"the prompt has {len(prompt)} tokens, the context holds {limits.context_tokens} with the answer"
            return Refusal("too_long", text, False)
        job = Job(
            key, tuple(prompt), min(max_tokens, room), now, tokens=list(prompt), due_s=due_s, client=client, owner=owner
        )
        job.declared_open = declared_open
        self._charge_answers()
        wait_s = self.waiting.join(job, now, self._first_start_s())
        if wait_s:
            num_own, num_waiting = self.waiting.num_of(client), len(self.waiting)
            text = f"{num_waiting} requests are waiting already, {num_own} of them of this client"
            return Refusal("overloaded", text, True, wait_s)
        if limits.reuse:
            job.chain = self.sharing.chain(job.prompt[:-1])
            job.expected_cached = self.reach(job, self._match(job)[0])
        return job

    def measured(self, prefill_rate: float, decode_rate: float) -> None:
        """What the engine does, in tokens/s of all requests together; 0: not known yet."""
        self._prefill_rate, self._decode_rate = prefill_rate, decode_rate

    def _first_start_s(self) -> float:
        """Seconds between starts as the running jobs let expect before any was seen: all that is left of them, answers
        as long as they may become, shared by their number."""
        if not (self.running and self._prefill_rate and self._decode_rate):
            return UNKNOWN_START_S
        prefill_s = sum(job.remaining_prefill for job in self.running) / self._prefill_rate
        decode_s = sum(job.max_tokens - job.num_generated for job in self.running) / self._decode_rate
        return (prefill_s + decode_s) / len(self.running)

    # --- admission ------------------------------------------------------------------------------------------------

    def admit(self, now: float) -> Admission | None:
        """Start the first waiting job that can run now; call again until it returns None."""
        if not self.waiting:
            return None
        admission = self._admit_next(now) if len(self.running) < self.limits.slots else None
        if admission is None:
            self.waiting.blocked(now)
        else:
            self.waiting.start(admission.job, admission.job.remaining_prefill, now)
        return admission

    def _admit_next(self, now: float) -> Admission | None:
        self._charge_answers()
        for job in [self._turn, *self.waiting] if self._turn else self.waiting:
            if self._still_waits(job):
                continue
            length, source = self._match(job)
            if self._should_wait(job, length):
                continue
            admission = self._start(job, source, length, now)
            self._turn = job if admission is None else None
            return admission
        return None

    def _charge_answers(self) -> None:
        """What was generated since the last look counts as service of the running jobs' clients."""
        for job in self.running:
            self._charge_answer(job)

    def _charge_answer(self, job: Job) -> None:
        self.waiting.charge_answer(job.client, job.num_generated - job.charged_tokens)
        job.charged_tokens = job.num_generated

    def _match(self, job: Job) -> tuple[int, int | None]:
        """The longest prefix that a job which does not run may reuse; the last prompt token is always computed, for its
        logits. Decides about the job's place in the tree: ``num_open``."""
        if not (self.limits.reuse and job.may_share):
            job.num_open = 0
            return 0, None
        length, leaf, job.num_open = match(self.tree, job.owner, job.prompt[:-1], self.open_tokens(job))
        return length, leaf

    def open_tokens(self, job: Job) -> int:
        """Leading tokens of a job's prompt that any job may reuse where they are cached."""
        return self.sharing.num_open(job.chain)

    def _still_waits(self, job: Job) -> bool:
        if job.awaits is None or job.awaits not in self.running:
            return False
        return job.awaits.shared_tokens < job.awaited_tokens and self._match(job)[0] < job.awaited_tokens

    def _should_wait(self, job: Job, length: int) -> bool:
        """True when another job computes a clearly longer prefix of this one than the tree and second tier have."""
        job.awaits = None
        if job.waited or not (self.limits.reuse and job.may_share):
            return False
        for other in self.running:
            overlap = common_prefix(job.prompt[:-1], other.prompt)
            if other.owner.tag != job.owner.tag:
                overlap = min(overlap, other.num_open, self.open_tokens(job))
            if overlap - length < MIN_SHARED_TOKENS or other.shared_tokens >= overlap:
                continue
            length = self.reach(job, length)
            if overlap - length >= MIN_SHARED_TOKENS:
                job.awaits, job.awaited_tokens, job.waited = other, overlap, True
                job.expected_cached = overlap
                return True
        return False

    def _start(self, job: Job, source: int | None, length: int, now: float) -> Admission | None:
        """Reserve an id and cells for ``job``, evicting as needed. None when the running jobs leave too little."""
        pinned = source
        if pinned is not None:
            self.tree.pin(pinned)
        if not self._can_free(job.limit_tokens - length):
            # The leaf it shares may be what fills the cache. Then take over its prefix and let the leaf go.
            if pinned is not None:
                self.tree.unpin(pinned)
                pinned = None
            if not self._can_free(job.limit_tokens):
                return None
        job.shared_tokens = length if pinned is not None else 0
        job.num_computed = length
        evicted = self._evict_all() if self.limits.demote_idle else []
        evicted += self._make_room(job.held_cells)
        job.seq_id = self._free_ids.pop()
        job.pinned, job.admitted_s, job.cached_tokens = pinned, now, length
        self.running.append(job)
        return Admission(job, source, length, evicted)

    def _reserved(self) -> int:
        return sum(job.own_cells for job in self.running)

    def _can_free(self, num_cells: int) -> bool:
        """Whether evicting every unpinned leaf leaves ``num_cells`` cells and a sequence id."""
        has_id = bool(self._free_ids) or self.tree.least_valuable() is not None
        return has_id and self.limits.num_cells - self._reserved() - self.tree.pinned_tokens() >= num_cells

    def _free_cells(self) -> int:
        return self.limits.num_cells - self.tree.num_tokens - sum(job.held_cells for job in self.running)

    def _make_room(self, num_cells: int) -> list[Evicted]:
        """Evict until ``num_cells`` cells and an id are free; returns what to clear."""
        evicted: list[Evicted] = []
        while not self._free_ids or self._free_cells() < num_cells:
            leaf = self.evict_one()
            assert leaf is not None, "checked by _can_free"
            evicted.append(leaf)
        return evicted

    def _evict_all(self) -> list[Evicted]:
        """Evict every unpinned leaf; returns what to clear."""
        evicted: list[Evicted] = []
        while (leaf := self.evict_one()) is not None:
            evicted.append(leaf)
        return evicted

    def evict_one(self) -> Evicted | None:
        """Evict the least valuable unpinned leaf; returns what to clear, None when there is none."""
        seq_id = self.tree.least_valuable()
        if seq_id is None:
            return None
        path, reuse = self.tree.tokens_of(seq_id), self.tree.reuse(seq_id)
        num_own = self.tree.remove(seq_id)
        self.changes.evict(seq_id)
        self._free_ids.append(seq_id)
        return Evicted(seq_id, path, len(path) - num_own, reuse)

    def restored(self, job: Job, length: int) -> None:
        """The worker gave a job that was just admitted cells up to ``length``, out of those reserved for it."""
        assert job.num_computed <= length < len(job.prompt)
        self.waiting.charge(job.client, job.num_computed - length)
        job.cached_tokens = job.num_computed = length

    def forget_match(self, job: Job) -> list[int]:
        """The prefix could not be copied after all: the job is its client's next again, to compute all of it."""
        assert job.seq_id is not None
        self.waiting.put_back(job, job.remaining_prefill)
        self._turn = job
        self._pin(job, None, 0)
        self.running.remove(job)
        job.cached_tokens = job.num_computed = 0
        job.expected_cached, job.may_share = 0, False
        cleared, job.seq_id = job.seq_id, None
        self._free_ids.append(cleared)
        return [cleared]

    def abandon(self) -> list[Job]:
        """Forget the whole cache and every running job, which is returned: nothing in the cells can be trusted."""
        self._charge_answers()
        abandoned, self.running = self.running, []
        for job in abandoned:
            job.seq_id = job.pinned = None
        self.tree.clear()
        self.changes.reset()
        self._free_ids = list(range(self.limits.num_sequences - 1, -1, -1))
        return abandoned

    # --- steps ----------------------------------------------------------------------------------------------------

    def room_for_step(self) -> list[Evicted]:
        """Evict what is in the way of the next step's generated tokens; returns what to save and clear before it."""
        evicted: list[Evicted] = []
        while self._free_cells() < sum(1 for job in self.running if not job.remaining_prefill):
            leaf = self.evict_one()
            assert leaf is not None, "promised at admission"
            evicted.append(leaf)
        return evicted

    def plan(self, prefill_tokens: int) -> list[Row]:
        """The rows of the next decode call: one per decoding job, then prefill chunks of ``prefill_tokens`` in all.

        Half of the prefill goes to the job admitted first, so that none starves; the rest goes to the jobs with the
        least left, so that a short prompt does not wait for a long one.
        """
        rows = [Row(job, job.num_computed, 1, True) for job in self.running if not job.remaining_prefill]
        prefilling = [job for job in self.running if job.remaining_prefill]
        budget = min(prefill_tokens, self.limits.batch_tokens - len(rows))
        counts = dict.fromkeys(prefilling, 0)
        if prefilling:
            first = prefilling[0]
            counts[first] = min(first.remaining_prefill, (budget + 1) // 2)
            budget -= counts[first]
        for job in sorted(prefilling, key=lambda job: job.remaining_prefill):
            extra = min(job.remaining_prefill - counts[job], budget)
            counts[job] += extra
            budget -= extra
        for job, count in counts.items():
            if count:
                rows.append(Row(job, job.num_computed, count, count == job.remaining_prefill))
        return rows

    def publishable(self) -> list[Job]:
        """Jobs whose computed prompt tokens should enter the tree now: all are there, or another job waits for them."""
        if not self.limits.reuse:
            return []
        awaited: dict[Job, int] = {}
        for job in self.waiting:
            if job.awaits is not None:
                awaited[job.awaits] = min(job.awaited_tokens, awaited.get(job.awaits, job.awaited_tokens))
        ready = []
        for job in self.running:
            needed = min(len(job.prompt), awaited.get(job, len(job.prompt)))
            if job.shared_tokens < needed <= job.num_computed and self._may_pin(job):
                ready.append(job)
        return ready

    def shareable(self, job: Job) -> tuple[int, int] | None:
        """(leaf, length) when the tree holds more of the job's computed tokens than the job shares. What it computed
        may open now, which decides about its place in the tree.

        The worker replaces the job's cells [0, length) by the leaf's before ``publish`` or ``finish``.
        """
        if not self.limits.reuse:
            return None
        self._note(job)
        length, source = self.tree.match(job.path(job.num_computed))
        if source is None or source == job.seq_id or length <= job.shared_tokens:
            return None
        return source, length

    def publish(self, job: Job, now: float) -> list[int]:
        """Insert the job's computed prompt tokens into the tree; returns the sequences to clear.

        Does nothing when ``_may_pin`` says no, which is not so for jobs of ``publishable``.
        """
        self._note(job)
        count = min(job.num_computed, len(job.prompt))
        if not self._may_pin(job):
            return []
        cleared = self._insert(job, count, now)
        _, leaf = self.tree.match(job.path(count))
        assert leaf is not None
        self._pin(job, leaf, count)
        return cleared

    def _note(self, job: Job) -> None:
        """What a running job has computed counts from now on as had by its owner; so some of it may open. As long as
        the job holds nothing of its own in the tree, its place there is where all that is open is everybody's."""
        if job.noted_tokens == job.num_computed:
            return
        job.noted_tokens = job.num_computed
        computed = job.tokens[: job.num_computed]
        self.sharing.note(job.owner, computed, job.declared_open)
        assert job.seq_id is not None
        if job.owner != PUBLIC and job.seq_id not in self.tree and job.shared_tokens <= job.num_open:
            job.num_open = max(job.num_open, self.sharing.num_open(self.sharing.chain(computed)))

    def _may_pin(self, job: Job) -> bool:
        """False when a longer idle leaf has all that the job computed, and pinning it would break the promise."""
        count = min(job.num_computed, len(job.prompt))
        covered, leaf = self.tree.match(job.path(count))
        if covered < count or leaf is None or self.tree.pins(leaf):
            return True
        tail = len(self.tree.tokens_of(leaf)) - covered
        return self.tree.pinned_tokens() + self._reserved() + tail <= self.limits.num_cells

    def finish(self, job: Job, now: float) -> list[int]:
        """End a running job and cache what it computed. Returns the sequences to clear."""
        assert job.seq_id is not None
        self._charge_answer(job)
        self.running.remove(job)
        cleared: list[int] = []
        if self.limits.reuse and job.num_computed:
            self._note(job)
            cleared = self._insert(job, job.num_computed, now)
        self._pin(job, None, 0)
        if job.seq_id not in self.tree:
            cleared.append(job.seq_id)
            self._free_ids.append(job.seq_id)
        job.seq_id = None
        return cleared

    def _insert(self, job: Job, count: int, now: float) -> list[int]:
        """Insert its first ``count`` tokens under the job's id; frees and returns ids that became redundant and belong
        to no running job."""
        assert job.seq_id is not None
        path = job.path(count)
        length, leaf = self.tree.match(path)
        if length == count and leaf is not None:
            if job.counted_tokens < length:
                self.tree.use(path, now, job.counted_tokens)
            job.counted_tokens = length
            return []  # A leaf covers it, maybe the job's own; the job goes on with its own id.
        was_there = job.seq_id in self.tree
        redundant = self.tree.insert(path, job.seq_id, now, job.counted_tokens)
        job.counted_tokens = count
        for seq_id in [job.seq_id] if was_there else redundant:
            self.changes.evict(seq_id)
        self.changes.store(job.seq_id, path)
        in_use = {other.seq_id for other in self.running}
        cleared = [seq_id for seq_id in redundant if seq_id not in in_use]
        self._free_ids.extend(cleared)
        for other in self.running:
            if other.pinned in redundant:
                other.pinned = job.seq_id  # The tree moved the pin along.
        if job.pinned in redundant:
            job.pinned = job.seq_id
        return cleared

    def _pin(self, job: Job, leaf: int | None, length: int) -> None:
        """Move the job's pin to ``leaf``, whose first ``length`` tokens it shares."""
        if leaf is not None:
            self.tree.pin(leaf)
        if job.pinned is not None:
            self.tree.unpin(job.pinned)
        job.pinned, job.shared_tokens = leaf, length

    def withdraw(self, job: Job) -> None:
        """Take a job out of the queue."""
        self.waiting.withdraw(job)
        if self._turn is job:
            self._turn = None

    def expired(self, now: float) -> list[Job]:
        """Running and waiting jobs whose time is over: ``finish`` or ``withdraw`` each. Changes nothing."""
        jobs = [*self.running, *self.waiting]
        return [job for job in jobs if job.due_s is not None and job.due_s <= now]

    # --- load -----------------------------------------------------------------------------------------------------

    def queued_tokens(self) -> int:
        """Prompt tokens taken but not computed yet, less what waiting jobs will probably find in the tree."""
        waiting = sum(len(job.prompt) - job.expected_cached for job in self.waiting)
        return sum(job.remaining_prefill for job in self.running) + waiting

    def check_invariants(self) -> None:
        """Raise AssertionError when the accounting of cells, ids or pins is wrong."""
        self.tree.check_invariants()
        self.waiting.check_invariants()
        assert self._turn is None or self._turn in self.waiting
        promised = self.tree.pinned_tokens() + self._reserved()
        assert promised <= self.limits.num_cells, "more cells promised than there are"
        assert self._free_cells() >= 0, "more cells held than there are"
        active = [job.seq_id for job in self.running]
        held = set(active) | set(self.tree.seq_ids())
        assert None not in held and len(set(active)) == len(active), "running jobs share an id"
        assert len(set(self._free_ids)) == len(self._free_ids) and not held & set(self._free_ids), "a free id is in use"
        assert len(held) + len(self._free_ids) == self.limits.num_sequences, "an id was lost"
        pins: dict[int, int] = {}
        for job in self.running:
            assert 0 <= job.num_computed <= len(job.tokens) <= job.limit_tokens, "a job outgrew its reservation"
            if job.pinned is not None:
                pins[job.pinned] = pins.get(job.pinned, 0) + 1
                covered = self.tree.match(job.path(len(job.tokens)))[0]
                assert job.shared_tokens <= covered, "a job shares what the tree does not hold"
        for seq_id in self.tree.seq_ids():
            assert self.tree.pins(seq_id) == pins.get(seq_id, 0), f"pins of leaf {seq_id}"
            assert seq_id not in active or self.tree.pins(seq_id), "a running job's leaf is not pinned"
