"""The harm that one client or subnet can do to others at an engine: the real scheduler, without a model."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from mycelia.node.engine.child.accounts import REFUSAL_SERVICE
from mycelia.node.engine.child.holdings import SLICE
from mycelia.node.engine.child.job import Job, Limits, Refusal
from mycelia.node.engine.child.rows import LEAST, PART, GiveWay, Row
from mycelia.node.engine.child.scheduler import Scheduler
from mycelia.proto.admission.fair_queue import SLACK

LIMITS = Limits(num_cells=8_192, context_tokens=8_192, num_vocab=2**31, slots=8, num_sequences=64)
STRANGER, OTHER, OWNER = b"stranger", b"other", b""


class Engine:
    """The scheduler with a model that computes a step in 0.01 s. Every token is a function of all tokens before it, so
    an answer that lost or repeated a token would go on differently."""

    def __init__(self, **changes: int) -> None:
        self.sched = Scheduler(replace(LIMITS, **changes))  # type: ignore[arg-type]
        self.sched.accounts.measured(280.0, 60.0)
        self.now = 0.0
        self.done: dict[int, list[int]] = {}
        self.stopped: Counter[int] = Counter()
        self._keys = itertools.count(1)

    def submit(
        self, client: bytes, num_prompt: int = 20, max_tokens: int = 20, subnet: str = "", key: int = 0
    ) -> Job | Refusal:
        key = key or next(self._keys)
        return self.sched.submit(key, [key] * num_prompt, max_tokens, self.now, client=client, subnet=subnet)

    def add(self, *args: object, **options: object) -> Job:
        job = self.submit(*args, **options)  # type: ignore[arg-type]
        assert isinstance(job, Job), job
        return job

    def step(self) -> None:
        self._admit()
        while (outgrown := self.sched.outgrown()) is not None:
            self._stop(outgrown)
        self.sched.room_for_step()
        rows = self.sched.plan(512)
        self.now += 0.01
        self.sched.give_way.computed(rows, 0.01)
        for row in rows:
            job = row.job
            job.num_computed += row.count
            if row.wants_token:
                job.tokens.append(hash((*job.tokens,)) % 1_000_003)
                job.first_token_s = job.first_token_s or self.now
                if job.num_generated >= job.max_tokens:
                    self.done[job.key] = job.tokens
                    self.sched.finish(job, self.now)
        for job in self.sched.prefixes.publishable():
            self.sched.prefixes.publish(job, self.now)

    def _admit(self) -> None:
        while True:
            while self.sched.admit(self.now) is not None:
                self.sched.check_invariants()
            stopping = self.sched.to_preempt(self.now)
            if not stopping:
                return
            for job in stopping:
                self._stop(job)

    def _stop(self, job: Job) -> None:
        self.sched.preempt(job, self.now)
        self.stopped[job.key] += 1
        self.sched.check_invariants()

    def run_until(self, job: Job, most: int = 3_000) -> int:
        """Number of steps until ``job`` has its first token."""
        for num_steps in range(most):
            if job.first_token_s is not None:
                return num_steps
            self.step()
        raise AssertionError(f"no token after {most} steps")


def test_a_request_that_may_fill_the_cache_keeps_no_other_waiting() -> None:
    engine = Engine()
    endless = engine.add(STRANGER, 2, 131_072)
    for _ in range(5):
        engine.step()
    assert engine.run_until(engine.add(OTHER, 1_000)) <= 8
    # Alone it may fill the cache. Then it stops for another, and goes on unchanged.
    while len(endless.tokens) < 8_000:
        engine.step()
    assert not engine.stopped
    assert engine.run_until(engine.add(OTHER, 1_000)) <= 8
    assert engine.stopped == {endless.key: 1}
    while endless.key not in engine.done:
        engine.step()
    alone = Engine()
    alone.add(STRANGER, 2, 131_072)
    while not alone.done:
        alone.step()
    assert engine.done[endless.key] == alone.done[1] and not alone.stopped


def test_one_of_a_subnet_stops_for_each_that_waits_and_none_twice_for_nothing() -> None:
    engine = Engine()
    crowd = [engine.add(b"%d" % number, 20, 400, "203.0.113.0/24") for number in range(30)]
    for _ in range(20):
        engine.step()
    assert len(engine.sched.running) == 8
    others = [engine.add(OTHER, 20, 100) for _ in range(6)]
    assert all(engine.run_until(job) <= 2 for job in others[:4]), "half of the slots"
    assert sum(engine.stopped.values()) == 4, engine.stopped
    while not {job.key for job in [*crowd, *others]} <= engine.done.keys():
        engine.step()
    assert sum(engine.stopped.values()) <= 12, engine.stopped


def test_sixty_keys_of_one_subnet_have_one_share_together() -> None:
    engine = Engine()
    num_waiting = 0
    for number in range(60):
        num_waiting += isinstance(engine.submit(b"%d" % number, 100, 100, "203.0.113.0/24"), Job)
    assert num_waiting == 32, "half of the places"
    engine.step()
    subnet = [engine.add(b"other%d" % number, 100, 100, "198.51.100.0/24") for number in range(8)]
    for _ in range(3_000):
        engine.step()
        if len(engine.done) >= 14:
            break
    assert sum(job.key in engine.done for job in subnet) >= 6, "both are served alike"


def test_prompts_that_were_charged_and_not_computed_yet_keep_nobody_waiting() -> None:
    """A client that begins to wait starts from the counters of running clients, charged ahead for their prompts."""
    engine = Engine()
    for number in range(60):
        engine.submit(b"%d" % number, 400, 16, "203.0.113.0/24")
    engine.step()
    assert sum(job.remaining_prefill for job in engine.sched.running) > 2_000
    job = engine.add(OTHER, 70, 24)
    engine.step()
    assert job in engine.sched.running


def test_nodes_of_one_machine_are_fair_among_each_other() -> None:
    engine = Engine()
    for number in range(40):
        engine.submit(STRANGER, 100, 1_000, "local 127.0.0.1", 100 + number)
    for _ in range(10):
        engine.step()
    assert engine.run_until(engine.add(OTHER, 100, 100, "local 127.0.0.1")) <= 2


def test_the_owners_requests_start_at_once_and_strangers_do_not_starve() -> None:
    engine = Engine()
    for number in range(60):
        engine.submit(b"%d" % (number % 20), 100, 500, f"203.0.{number % 20}.0/24")
    for _ in range(10):
        engine.step()
    assert all(engine.run_until(engine.add(OWNER, 100, 2_000)) <= 2 for _ in range(4))
    num_done = len(engine.done)
    for _ in range(2_500):
        if not engine.sched.waiting.num_of(OWNER):
            engine.submit(OWNER, 100, 2_000)
        engine.step()
    assert sum(not job.client for job in engine.sched.running) >= 4
    assert len(engine.done) > num_done
    served = Counter(job.client for job in engine.sched.running)
    assert served.total() - served[OWNER] >= 1, "strangers have a part of the slots"


def test_answers_that_never_end_do_not_keep_a_full_engine_for_ever() -> None:
    engine = Engine(slots=1)
    endless = engine.add(STRANGER, 20, 8_000)
    engine.step()
    job = engine.add(OTHER, 20, 20)
    num_steps = engine.run_until(job)
    assert (SLICE - SLACK) / 2 < num_steps < 2 * SLICE
    while endless.key not in engine.done:
        engine.step()
    assert engine.stopped[endless.key] == 1


def test_what_is_wrong_with_a_request_costs_its_client_too() -> None:
    engine = Engine()
    engine.add(STRANGER), engine.add(OTHER)
    before = engine.sched.waiting.counter(STRANGER)
    for prompt, max_tokens in ((0, 1), (1, -1), (9_000, 1)):
        assert isinstance(engine.submit(STRANGER, prompt, max_tokens), Refusal)
    assert engine.sched.waiting.counter(STRANGER) == before + 3 * REFUSAL_SERVICE
    assert engine.sched.waiting.counter(OTHER) == before


def test_cells_cost_by_the_time_that_they_are_held() -> None:
    engine = Engine()
    large, small = engine.add(STRANGER, 6_000, 10), engine.add(OTHER, 60, 10)
    engine.step()
    before = [engine.sched.waiting.counter(client) for client in (STRANGER, OTHER)]
    for job in (large, small):
        job.is_choosing = True  # (both hold their slots and compute nothing)
    for _ in range(1_000):
        engine.step()
    after = [engine.sched.waiting.counter(client) for client in (STRANGER, OTHER)]
    assert after[0] - before[0] > 50 * (after[1] - before[1]) > 0


def rows_of(jobs: list[Job]) -> list[Row]:
    return [Row(job, job.num_computed, 1, True) for job in jobs]


@pytest.mark.parametrize(("row_s", "at_least"), [(0.012, 0.78), (0.0001, 0.78)])
def test_beside_those_that_want_much_others_keep_most_of_their_pace(row_s: float, at_least: float) -> None:
    """One light client beside seven rows of a heavy one: on a processor, where the time grows with each row, and on a
    GPU, where an extra row costs almost nothing."""
    heavy = [Job(key, (1,), 9, 0.0, client=STRANGER) for key in range(7)]
    light = Job(7, (1,), 9, 0.0, client=OTHER)
    wanted = dict.fromkeys(heavy, 9_000.0) | {light: 100.0}
    give_way, now, rows = GiveWay(), 0.0, Counter[bytes]()
    alone_s = 0.004 + row_s
    while now < 100:
        out = give_way.sitting_out([*heavy, light], wanted)
        planned = [job for job in [*heavy, light] if job not in out]
        assert light in planned
        seconds = 0.004 + row_s * len(planned)
        give_way.computed(rows_of(planned), seconds)
        now += seconds
        rows.update(job.client for job in planned)
    pace = rows[OTHER] / now * alone_s
    assert pace >= at_least
    heavy_s = rows[STRANGER] * row_s
    assert heavy_s > 0.8 * PART * now or rows[STRANGER] > 6.9 * rows[OTHER], "they do not starve"


def test_those_that_want_about_as_much_share_every_step() -> None:
    jobs = [Job(key, (1,), 9, 0.0, client=b"%d" % key) for key in range(3)]
    give_way = GiveWay()
    for wanted in ([10.0, 100.0, LEAST], [5_000.0, 9_000.0, 20_000.0]):
        for _ in range(9):
            assert not give_way.sitting_out(jobs, dict(zip(jobs, wanted, strict=True)))
            give_way.computed(rows_of(jobs), 0.1)
