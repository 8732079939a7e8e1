"""The scheduler's decisions without a model, and a stateful test of all its accounts."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from blake3 import blake3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mycelia.node.engine.child.job import REPORT_ROWS, Job, Limits, Refusal
from mycelia.node.engine.child.rates import prefill_budget
from mycelia.node.engine.child.rows import plan_rows
from mycelia.node.engine.child.scheduler import Admission, Scheduler
from mycelia.proto.admission.shares import MAX_RETRY_S
from mycelia.proto.cache.meters import TokenRateMeter
from mycelia.proto.cache.sharing import PUBLIC, Owner, Sharing, paint, plain
from mycelia.proto.wire.blocks import STRIDE, pack_tokens

LIMITS = Limits(num_cells=100, context_tokens=100, num_vocab=10, num_sequences=9, slots=4, batch_tokens=64)


def scheduler(**changes: int) -> Scheduler:
    return Scheduler(replace(LIMITS, **changes))  # type: ignore[arg-type]


def submit(sched: Scheduler, key: int, prompt: list[int], max_tokens: int = 4, client: bytes = b"") -> Job:
    job = sched.submit(key, prompt, max_tokens, 0.0, client=client)
    assert isinstance(job, Job), job
    return job


def compute(sched: Scheduler, budget: int = 64, token: int = 1, now: float = 1.0) -> None:
    """Run one step of a model that always chooses ``token``."""
    while (job := sched.outgrown()) is not None:
        sched.preempt(job, now)
    sched.room_for_step()
    for row in sched.plan(budget):
        row.job.num_computed += row.count
        if row.wants_token:
            row.job.tokens.append(token)
    for job in sched.prefixes.publishable():
        sched.prefixes.publish(job, now)
    for job in [job for job in sched.running if job.num_generated >= job.max_tokens]:
        sched.finish(job, now)
    sched.check_invariants()


def admit_all(sched: Scheduler, now: float = 0.0) -> list[Admission]:
    admissions = []
    while (admission := sched.admit(now)) is not None:
        admissions.append(admission)
        sched.check_invariants()
    return admissions


def make_way(sched: Scheduler, now: float = 0.0) -> tuple[list[int], list[int]]:
    """(keys of the jobs that stop, keys of the jobs that then start)."""
    stopped, started = [], [one.job.key for one in admit_all(sched, now)]
    while jobs := sched.to_preempt(now):
        for job in jobs:
            sched.preempt(job, now)
            sched.check_invariants()
            stopped.append(job.key)
        admissions = admit_all(sched, now)
        assert admissions, "stopped in vain"
        started += [one.job.key for one in admissions]
    return stopped, started


def run_to_end(sched: Scheduler, now: float = 1.0) -> None:
    admit_all(sched, now)
    while sched.running:
        compute(sched, now=now)
        admit_all(sched, now)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "code"),
    [([], 4, "bad_request"), ([10], 4, "bad_request"), ([-1], 4, "bad_request"), ([1], -1, "bad_request"),
     ([1] * 100, 4, "too_long")],
)  # fmt: skip
def test_impossible_requests_are_refused_at_once(prompt: list[int], max_tokens: int, code: str) -> None:
    refusal = scheduler().submit(1, prompt, max_tokens, 0.0)
    assert isinstance(refusal, Refusal) and refusal.code == code and not refusal.retryable


def test_jobs_expire_wherever_they_are() -> None:
    sched = scheduler(slots=1)
    running, waiting = (sched.submit(key, [1, 2, 3], 4, 0.0, due_s=5.0 + key) for key in (1, 2))
    unhurried = submit(sched, 3, [1])
    assert isinstance(running, Job) and isinstance(waiting, Job)
    (admission,) = admit_all(sched)
    assert admission.job is running
    assert sched.expired(5.9) == [] and sched.expired(6.0) == [running]
    assert sched.expired(1e9) == [running, waiting]
    sched.finish(running, 6.0)
    sched.withdraw(waiting)
    sched.check_invariants()
    assert sched.expired(1e9) == [] and list(sched.waiting) == [unhurried]


def test_the_queue_is_bounded_and_max_tokens_is_cut_to_the_context() -> None:
    sched = scheduler(max_waiting=2)
    assert submit(sched, 1, [1] * 90, 1_000, client=b"one").max_tokens == 10
    refusal = sched.submit(2, [1], 1, 0.0, client=b"one")
    assert isinstance(refusal, Refusal) and refusal.code == "overloaded" and refusal.retryable
    assert refusal.retry_after_s > 0
    submit(sched, 3, [1], client=b"other")
    assert isinstance(sched.submit(4, [1], 1, 0.0, client=b"third"), Refusal)
    submit(sched, 5, [1])


def test_a_second_turn_reuses_the_first_with_its_answer() -> None:
    sched = scheduler()
    submit(sched, 1, [1, 2, 3])
    run_to_end(sched)
    # The last generated token was never decoded, so 3 + 4 - 1 tokens have cells.
    assert sched.tree.match(paint([1, 2, 3, 1, 1, 1, 1], 0, b"")) == (6, 0)
    submit(sched, 2, [1, 2, 3, 1, 1, 1, 1, 5])
    (admission,) = admit_all(sched)
    assert (admission.source, admission.length) == (0, 6)
    assert admission.job.cached_tokens == 6


def test_the_last_prompt_token_is_always_computed() -> None:
    sched = scheduler()
    submit(sched, 1, [1, 2, 3, 4])
    run_to_end(sched)
    submit(sched, 2, [1, 2, 3, 4])
    (admission,) = admit_all(sched)
    assert admission.length == 3
    assert [(row.start, row.count, row.wants_token) for row in sched.plan(64)] == [(3, 1, True)]


def test_decode_rows_come_first_and_prefill_is_shared_fairly() -> None:
    sched = scheduler(num_cells=1000, context_tokens=1000)
    submit(sched, 1, [1], 10)
    admit_all(sched)
    compute(sched)
    submit(sched, 2, [2] * 200)
    submit(sched, 3, [3] * 5)
    submit(sched, 4, [4] * 100)
    admit_all(sched)
    # The oldest job gets half of the budget, the short one all it needs, the next shortest the rest.
    assert [(row.job.key, row.count) for row in sched.plan(40)] == [(1, 1), (2, 20), (3, 5), (4, 15)]
    # The batch bounds the sum.
    assert sum(row.count for row in sched.plan(1_000)) == 64


def test_least_recent_leaf_goes_when_cells_run_out() -> None:
    sched = scheduler()
    for key, first in enumerate((1, 2, 3)):
        submit(sched, key, [first] * 26)
        run_to_end(sched, now=float(key))
    assert sched.tree.num_tokens == 3 * 29
    submit(sched, 9, [4] * 30)
    (admission,) = admit_all(sched)
    assert [leaf.seq_id for leaf in admission.evicted] == [0]
    assert sched.changes.take().evicted == []  # (stored and evicted before the change was read)


def test_a_request_that_may_become_long_empties_the_cache_only_as_it_does() -> None:
    sched = scheduler()
    for key, first in enumerate((1, 2, 3)):
        submit(sched, key, [first] * 16)
        run_to_end(sched, now=float(key))
    job = submit(sched, 9, [4] * 20, max_tokens=80)
    (admission,) = admit_all(sched)
    assert admission.evicted == [] and sched.tree.num_tokens == 3 * 19
    compute(sched)
    evicted: list[int] = []
    while job.num_generated < 50:
        evicted += [leaf.seq_id for leaf in sched.room_for_step()]
        compute(sched)
    assert evicted == [0, 1]
    sched.finish(job, 9.0)
    assert len(sched.tree) == 2


def test_idle_leaves_leave_at_the_next_admission_when_they_can_come_back() -> None:
    sched = scheduler(demote_idle=True)
    for key, first in enumerate((1, 2)):
        submit(sched, key, [first] * 8)
        run_to_end(sched, now=float(key))
    assert len(sched.tree) == 1, "the second request demoted the first's leaf"
    submit(sched, 8, [2] * 8 + [3] * 2)
    submit(sched, 9, [4] * 8)
    one, two = admit_all(sched)
    assert one.length == 8 and one.evicted == two.evicted == [], "what a running request shares stays"


def test_a_repeated_prompt_stays_and_takes_its_uses_along() -> None:
    sched = scheduler()
    for key, first in enumerate((1, 2, 2, 3)):
        submit(sched, key, [first] * 29, 1)
        run_to_end(sched, now=float(key))
    # An answer of one token is never decoded, so the prompt is inserted twice; that counts as no use.
    uses = {plain(sched.tree.tokens_of(seq_id))[0]: sched.tree.reuse(seq_id).uses for seq_id in sched.tree.seq_ids()}
    assert uses == {1: 0.0, 2: 1.0, 3: 0.0}
    for key, first in enumerate((4, 5), 4):
        submit(sched, key, [first] * 29, 1)
        run_to_end(sched, now=float(key))
    assert {plain(sched.tree.tokens_of(seq_id))[0] for seq_id in sched.tree.seq_ids()} == {2, 4, 5}
    while (leaf := sched.cells.evict_one()) is not None:
        assert (leaf.reuse.uses > 0) == (plain(leaf.path)[0] == 2)


def test_a_repeated_prompt_counts_once_a_request_whatever_the_answers() -> None:
    sched = scheduler()
    for key, token in enumerate((1, 1, 3, 4)):
        submit(sched, key, [2] * 20, 4)
        admit_all(sched)
        while sched.running:
            compute(sched, token=token)
    sched.tree.check_invariants()
    assert 2.9 < sched.tree.root.children[paint([2], 0, b"")[0]].reuse.uses <= 3.0


def test_a_job_that_may_not_pin_a_longer_idle_leaf_goes_on_with_its_own_cells() -> None:
    sched = scheduler()
    submit(sched, 1, [1] * 20, 60)
    run_to_end(sched)
    job = submit(sched, 2, [1] * 20, 70)
    (admission,) = admit_all(sched)
    assert admission.length == 19 and job.pinned is None and len(sched.tree) == 1
    for row in sched.plan(64):
        row.job.num_computed += row.count
    assert sched.prefixes.publishable() == [] and sched.prefixes.publish(job, 2.0) == [] and job.pinned is None
    sched.check_invariants()


def test_a_leaf_that_fills_the_cache_gives_its_prefix_to_the_job_and_goes() -> None:
    sched = scheduler()
    submit(sched, 1, [1] * 80 + [2], 10)
    run_to_end(sched)
    submit(sched, 2, [1] * 40 + [3] * 40)
    (admission,) = admit_all(sched)
    assert admission.length == 40 and admission.source == 0
    assert [leaf.seq_id for leaf in admission.evicted] == [0]
    run_to_end(sched)


def test_a_big_request_waits_for_cells_and_is_not_overtaken() -> None:
    sched = scheduler()
    submit(sched, 1, [1] * 50, 20)
    admit_all(sched)
    submit(sched, 2, [2] * 50, 20)
    submit(sched, 3, [3], 1)
    assert admit_all(sched) == []
    run_to_end(sched)
    assert not sched.waiting


def test_a_request_waits_for_a_prefix_that_another_computes() -> None:
    sched = scheduler(num_cells=1000, context_tokens=1000)
    shared = [1] * 100
    submit(sched, 1, [*shared, 2])
    submit(sched, 2, [*shared, 3])
    submit(sched, 3, [4])
    assert [admission.job.key for admission in admit_all(sched)] == [1, 3]
    compute(sched, budget=80)
    assert admit_all(sched) == []
    compute(sched, budget=80)
    (admission,) = admit_all(sched)
    assert admission.job.key == 2 and admission.length == 100


def test_it_waits_only_for_the_shared_part_of_a_long_prompt() -> None:
    sched = scheduler(num_cells=1000, context_tokens=1000)
    submit(sched, 1, [1] * 100 + [2] * 400)
    submit(sched, 2, [1] * 100 + [3])
    admit_all(sched)
    for _ in range(4):
        compute(sched)
    (admission,) = admit_all(sched)
    assert admission.job.key == 2 and admission.length == 100
    assert sched.running[0].remaining_prefill > 200


def test_a_job_whose_helper_vanishes_computes_for_itself() -> None:
    sched = scheduler(num_cells=1000, context_tokens=1000)
    first = submit(sched, 1, [1] * 100)
    submit(sched, 2, [1] * 100)
    admit_all(sched)
    sched.finish(first, 1.0)
    (admission,) = admit_all(sched)
    assert admission.length == 0


def test_abandon_and_forget_match_leave_clean_books() -> None:
    sched = scheduler()
    submit(sched, 1, [1, 2, 3])
    run_to_end(sched)
    job = submit(sched, 2, [1, 2, 3, 4])
    admit_all(sched)
    assert sched.forget_match(job) != []
    sched.check_invariants()
    (admission,) = admit_all(sched)
    assert admission.length == 0
    assert sched.abandon() == [job]
    sched.check_invariants()
    assert sched.changes.take().reset


def test_without_reuse_nothing_is_kept() -> None:
    sched = scheduler(reuse=False)
    submit(sched, 1, [1, 2, 3])
    run_to_end(sched)
    assert len(sched.tree) == 0 and not sched.changes


def test_rates() -> None:
    meter = TokenRateMeter(100)
    assert meter.rate == 0
    meter.add(100, 1.0)
    meter.add(1_000, 2.0)
    assert 400 < meter.rate < 500
    assert prefill_budget(0, 0, 2048) == 64
    assert prefill_budget(50, 1, 2048) == 63
    assert prefill_budget(550, 8, 2048) == 120
    assert prefill_budget(292, 0, 2048) == 576
    assert prefill_budget(292, 0, 2048, is_shared=True) == 128
    assert prefill_budget(292, 1, 2048, is_shared=True) == 63
    assert prefill_budget(50_000, 0, 2048) == 2048
    assert prefill_budget(50, 100, 2048) == 28
    # If a running step cannot be aborted, a cancel waits for at most 0.25 s of work.
    assert prefill_budget(4_000, 0, 2048, can_abort=False, is_shared=True) == 960
    assert prefill_budget(4_000, 0, 2048, can_abort=False) == 960
    assert prefill_budget(50_000, 0, 2048, can_abort=False) == 2048
    assert prefill_budget(0, 0, 2048, can_abort=False) == 64


CLIENTS = {b"": "", b"one": "", b"two": "10.0.0.0/24", b"three": "10.0.0.0/24"}
"""Client -> subnet."""


class SmallBlocks(Sharing):
    """A ``Sharing`` with blocks of four tokens, so that short prompts have many."""

    def chain(self, tokens: Sequence[int], swarm: bytes = b"") -> Sequence[int]:
        packed = pack_tokens(tokens)
        ends = range(16, len(packed) + 1, 16)
        return [int.from_bytes(blake3(swarm + packed[:end]).digest(length=8)) for end in ends]

    def num_open(self, chain: Sequence[int]) -> int:
        return super().num_open(chain) // STRIDE * 4

    def note(self, owner: Owner, tokens: Sequence[int], declared: int = 0) -> Sequence[int]:
        chain = self.chain(tokens)
        self.note_blocks(owner, chain, pack_tokens(tokens), 16, declared)
        return chain


OWNERS = [Owner(bytes([number]) * 16, f"subnet {number % 3}") for number in range(4)] + [Owner(b"s" * 16), PUBLIC]


class SchedulerMachine(RuleBasedStateMachine):
    """Random requests over a tiny alphabet, with a model of the cells that llama.cpp would hold."""

    LIMITS = Limits(
        num_cells=48, context_tokens=40, num_vocab=3, num_sequences=9, slots=3, max_waiting=12, batch_tokens=16
    )

    def __init__(self) -> None:
        super().__init__()
        self.sched = Scheduler(self.LIMITS)
        self.cells: dict[int, list[tuple[int, int]]] = {}
        """Sequence -> its (token, cell) in order; a cell shared by sequences has one number."""
        self.next_cell = 0
        self.key = 0
        self.now = 0.0
        self.mirror: dict[int, tuple[int, ...]] = {}
        self.comes_at: dict[bytes | str, tuple[float, float]] = {}
        """Subnet or client -> (time of the refusal, time of the retry)."""

    @initialize(demote_idle=st.booleans())
    def start(self, demote_idle: bool) -> None:
        self.sched = Scheduler(replace(self.LIMITS, demote_idle=demote_idle), SmallBlocks(b""))

    def clear(self, seq_ids: list[int]) -> None:
        for seq_id in seq_ids:
            self.cells.pop(seq_id, None)

    def share(self, job: Job) -> None:
        shareable = self.sched.prefixes.shareable(job)
        if shareable is not None and job.seq_id is not None:
            source, length = shareable
            self.cells[job.seq_id] = self.cells[source][:length] + self.cells[job.seq_id][length:]

    def finish(self, job: Job) -> None:
        self.share(job)
        self.clear(self.sched.finish(job, self.now))

    @rule(
        prompt=st.lists(st.integers(0, 2), min_size=1, max_size=38),
        max_tokens=st.integers(1, 9),
        client=st.sampled_from(list(CLIENTS)),
        owner=st.sampled_from(OWNERS),
    )
    def submit(self, prompt: list[int], max_tokens: int, client: bytes, owner: Owner = OWNERS[0]) -> None:
        self.key += 1
        num_own, num_waiting = self.num_waiting(client)
        share = CLIENTS[client] or client
        was_told = share in self.comes_at and self.now >= self.comes_at[share][1]
        outcome = self.sched.submit(self.key, prompt, max_tokens, self.now, None, client, CLIENTS[client], owner)
        if isinstance(outcome, Refusal):
            assert outcome.code == "overloaded" and 0 < outcome.retry_after_s <= MAX_RETRY_S
            assert num_waiting, "an engine at which nobody waits refuses nobody"
            at = self.now + outcome.retry_after_s
            if share not in self.comes_at or abs(self.comes_at[share][1] - at) > 1e-6:  # (the last retry time counts)
                self.comes_at[share] = (self.now, at)
        else:
            # A client that keeps its retry time may exceed its share by one each time, also when the engine stalls.
            assert num_waiting < 12 and (num_own <= 5 or was_told)
            self.comes_at.pop(share, None)

    def num_waiting(self, client: bytes) -> tuple[int, int]:
        """(waiting jobs of the client's subnet, of all clients that share places with it)."""
        rivals = [job for job in self.sched.waiting if bool(job.client) == bool(client)]
        share = CLIENTS[client] or client
        return sum((job.subnet or job.client) == share for job in rivals), len(rivals)

    @rule(
        prefix=st.integers(0, 1),
        length=st.integers(33, 37),
        last=st.integers(0, 2),
        client=st.sampled_from(list(CLIENTS)),
        owner=st.sampled_from(OWNERS),
    )
    def submit_similar(self, prefix: int, length: int, last: int, client: bytes, owner: Owner) -> None:
        self.submit([prefix] * length + [last], 2, client, owner)

    @precondition(lambda self: self.comes_at)
    @rule(data=st.data())
    def come_again(self, data: st.DataObject) -> None:
        """A client that comes at its retry time finds a place, unless all are taken."""
        share = data.draw(st.sampled_from(sorted(self.comes_at, key=str)))
        client = next(client for client in CLIENTS if (CLIENTS[client] or client) == share)
        refused_at, at = self.comes_at[share]
        self.now = max(self.now, at)
        has_place, is_late = self.num_waiting(client)[1] < 12, self.now - at > 0.9 * (at - refused_at)
        self.submit([1], 1, client)
        assert is_late or has_place == (share not in self.comes_at)

    @precondition(lambda self: self.sched.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        self.sched.withdraw(data.draw(st.sampled_from(list(self.sched.waiting))))

    @rule()
    def preempt(self) -> None:
        self.now += 1
        for job in self.sched.to_preempt(self.now):
            self.stop(job)

    def stop(self, job: Job) -> None:
        self.share(job)
        self.clear(self.sched.preempt(job, self.now))

    @rule()
    def admit(self) -> None:
        self.now += 1
        while (admission := self.sched.admit(self.now)) is not None:
            seq_id = admission.job.seq_id
            assert seq_id is not None
            prefix = self.cells[admission.source][: admission.length] if admission.source is not None else []
            self.clear([leaf.seq_id for leaf in admission.evicted])
            self.cells[seq_id] = prefix
            assert len(prefix) == admission.length
        if not self.sched.running:
            assert not self.sched.waiting, "a request starves beside an idle engine"

    @precondition(lambda self: self.sched.running)
    @rule(budget=st.integers(1, 16), data=st.data())
    def step(self, budget: int, data: st.DataObject) -> None:
        self.now += 1
        while (job := self.sched.outgrown()) is not None:
            self.stop(job)
        self.clear([leaf.seq_id for leaf in self.sched.room_for_step()])
        rows = self.sched.plan(budget)
        self.sched.give_way.computed(rows, 0.01 * len(rows))
        assert (rows or not self.sched.running) and sum(row.count for row in rows) <= 16
        for row in rows:
            for token in row.tokens:
                assert row.job.seq_id is not None
                self.cells[row.job.seq_id].append((token, self.next_cell))
                self.next_cell += 1
            row.job.num_computed += row.count
            if row.wants_token:
                row.job.tokens.append(data.draw(st.integers(0, 2)))
                if row.job.num_generated >= row.job.max_tokens:
                    self.finish(row.job)
        for job in self.sched.prefixes.publishable():
            self.share(job)
            self.clear(self.sched.prefixes.publish(job, self.now))

    @precondition(lambda self: self.sched.running)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.finish(data.draw(st.sampled_from(self.sched.running)))

    @rule()
    def read_changes(self) -> None:
        change = self.sched.changes.take()
        for seq_id in change.evicted:
            del self.mirror[seq_id]
        for seq_id, tokens in change.stored:
            assert seq_id not in self.mirror
            self.mirror[seq_id] = tuple(tokens)
        tree = self.sched.tree
        assert self.mirror == {seq_id: tree.tokens_of(seq_id) for seq_id in tree.seq_ids()}

    @invariant()
    def books_balance(self) -> None:
        self.sched.check_invariants()
        tree = self.sched.tree
        running = {job.seq_id: tuple(job.tokens[: job.num_computed]) for job in self.sched.running}
        held = {seq_id: tuple(plain(tree.tokens_of(seq_id))) for seq_id in tree.seq_ids()} | running
        assert {seq_id: tuple(token for token, _ in cells) for seq_id, cells in self.cells.items()} == held
        used = {cell for cells in self.cells.values() for _, cell in cells}
        assert len(used) <= self.sched.limits.num_cells, "more real cells than there are"


SchedulerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_books_under_random_load = SchedulerMachine.TestCase


def reporting(num_tokens: int, start: int = 1, computed: int = 0) -> Job:
    prompt = tuple(range(num_tokens))
    job = Job(1, prompt, 1, 0.0, list(prompt), num_computed=computed, num_to_prefill=num_tokens)
    job.to_report = range(start, num_tokens)
    return job


@pytest.mark.parametrize(
    ("num_tokens", "start", "computed", "budget", "planned"),
    [
        (400, 1, 0, 512, [(128, 128)]),  # (no more logits at once than allowed)
        (400, 301, 0, 256, [(256, 0)]),
        (400, 301, 256, 512, [(144, 100)]),
        (386, 384, 322, 512, [(64, 3)]),
        (150, 1, 0, 128, [(86, 86)]),  # (64 are left for the last chunk)
        (100, 1, 0, 64, [(100, 100)]),  # (36 would be left)
        (40, 1, 0, 512, [(40, 40)]),
    ],
)
def test_rows_of_a_prompt_whose_logprobs_are_reported(
    num_tokens: int, start: int, computed: int, budget: int, planned: list[tuple[int, int]]
) -> None:
    rows = plan_rows([reporting(num_tokens, start, computed)], budget, 2_048, 128)
    assert [(row.count, row.num_outputs) for row in rows] == planned


def test_such_a_prompt_may_reuse_only_what_was_reported_and_not_its_last_rows() -> None:
    assert reporting(400).num_reusable == 0 and reporting(400, 101).num_reusable == 100
    assert reporting(400, 399).num_reusable == 400 - REPORT_ROWS and reporting(40, 39).num_reusable == 0
    done = reporting(400)
    done.to_report = range(400, 400)
    assert done.num_reusable == 399


def test_several_such_prompts_share_the_logits_of_a_step() -> None:
    jobs = [reporting(400), reporting(400, 200), reporting(300)]
    while jobs:
        rows = plan_rows(jobs, 600, 2_048, 128)
        assert rows and sum(row.num_outputs for row in rows) <= 128 + 63
        for row in rows:
            row.job.num_computed += row.count
            row.job.to_report = row.job.to_report[max(row.start + row.count - row.job.first_output, 0) :]
        jobs = [job for job in jobs if job.remaining_prefill]
