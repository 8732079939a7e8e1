"""The simulated engine: what is cached is not computed again, slots, order, the cache's limits."""

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field

import pytest

from mycelia.proto.cache.sharing import PUBLIC, Owner
from mycelia.proto.wire.blocks import STRIDE
from mycelia.sim.engine import Engine, Job, Listener
from mycelia.sim.machine import EngineSpec, draw_spec

SPEC = EngineSpec(prefill_rate=1_000.0, decode_rate=10.0, slots=2, cache_blocks=40)


@dataclass
class Bench:
    """One engine, a clock of its own, and its reports."""

    spec: EngineSpec = SPEC
    now: float = 0.0
    begun: list[bytes] = field(default_factory=list)
    first: dict[bytes, float] = field(default_factory=dict)
    done: dict[bytes, float] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    """Leaves as a listener knows them that only gets changes."""
    _heap: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _number: int = 0

    def __post_init__(self) -> None:
        self.engine = Engine(
            self.spec,
            Listener(
                at=self.at,
                on_begin=lambda job: self.begun.append(job.request_id),
                on_first=lambda job: self.first.update({job.request_id: self.now}),
                on_done=lambda job: self.done.update({job.request_id: self.now}),
                on_cache=self._on_cache,
                on_load=lambda: None,
            ),
        )

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._heap, (time, self._number, action))

    def submit(
        self,
        name: bytes,
        blocks: Sequence[int],
        num_answer: int = 1,
        extra_tokens: int = 0,
        owner: Owner = PUBLIC,
        declared_open: int = 0,
    ) -> Job:
        num_prompt = len(blocks) * STRIDE + extra_tokens
        job = Job(name, 1, tuple(blocks), (0,) * (num_prompt + num_answer), num_prompt, num_answer)
        job.owner, job.declared_open = owner, declared_open
        assert not self.engine.submit(job, self.now)
        return job

    def knock(self, name: bytes, client: bytes) -> float:
        """Submit a prompt of ten new blocks for ``client``."""
        self._number += 1
        chain = range(1_000 * self._number, 1_000 * self._number + 10)
        job = Job(name, 1, tuple(chain), (0,) * (10 * STRIDE + 1), 10 * STRIDE, 1, client)
        return self.engine.submit(job, self.now)

    def run(self, until: float = 1e9) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
            self.engine.check_invariants()

    def _on_cache(self, stored: list[tuple[int, Sequence[int]]], dropped: list[int]) -> None:
        self.held |= {leaf for leaf, _ in stored}
        assert self.held >= set(dropped)
        self.held -= set(dropped)


def test_what_is_cached_is_not_computed_again() -> None:
    bench = Bench()
    bench.submit(b"cold", range(10))
    bench.run()
    assert bench.first[b"cold"] == pytest.approx(0.64)
    began = bench.now
    warm = bench.submit(b"warm", [*range(10), 99])
    bench.run()
    assert warm.cached == 640
    assert bench.first[b"warm"] - began == pytest.approx(0.064)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    bench = Bench()
    bench.submit(b"a", range(10))
    bench.run()
    again = bench.submit(b"b", range(10))
    bench.run()
    assert again.cached == 639


def test_a_waiting_prompt_finds_what_the_one_before_it_left() -> None:
    bench = Bench()
    bench.submit(b"a", range(10))
    second = bench.submit(b"b", [*range(10), 99])
    bench.run()
    assert second.expected_cached == 0 and second.cached == 640


def test_one_prefill_at_a_time_in_order_of_arrival() -> None:
    bench = Bench()
    for number in range(3):
        bench.submit(b"%d" % number, range(100 * number, 100 * number + 10))
    bench.run()
    assert bench.begun == [b"0", b"1", b"2"]
    assert [bench.first[name] for name in bench.begun] == pytest.approx([0.64, 1.28, 1.92])


def test_answers_are_decoded_side_by_side_while_there_are_slots() -> None:
    bench = Bench()
    for number in range(3):
        bench.submit(b"%d" % number, range(100 * number, 100 * number + 10), num_answer=101)
    assert bench.engine.vitals(0.0).waiting_requests == 2
    bench.run()
    assert bench.done[b"0"] == pytest.approx(10.64) and bench.done[b"1"] == pytest.approx(11.28)
    # The third one waits for the first one's slot, not for the second's.
    assert bench.first[b"2"] == pytest.approx(11.28)


def test_load_counts_what_is_still_to_be_computed() -> None:
    bench = Bench()
    bench.submit(b"a", range(10), num_answer=5)
    bench.submit(b"b", range(100, 110))
    bench.run(until=0.0)
    bench.now = 0.3
    vitals = bench.engine.vitals(0.3)
    assert (vitals.queued_tokens, vitals.active_requests, vitals.waiting_requests) == (980, 1, 1)
    assert (vitals.slots, vitals.prefill_rate, vitals.decode_rate) == (2, 1_000, 10)


def test_a_full_cache_drops_leaves_and_tells_of_it() -> None:
    bench = Bench()
    for number in range(12):
        bench.submit(b"%d" % number, range(100 * number, 100 * number + 10))
        bench.run()
    assert len(bench.held) == 4
    assert bench.engine.held_blocks(tuple(range(1_100, 1_110))) == 10
    assert bench.engine.held_blocks(tuple(range(10))) == 0


def test_a_conversation_extends_its_leaf() -> None:
    bench = Bench()
    bench.submit(b"a", range(5), num_answer=1)
    bench.run()
    bench.submit(b"b", range(8), num_answer=1)
    bench.run()
    assert len(bench.held) == 1 and bench.engine.held_blocks(tuple(range(9))) == 8


def test_an_answer_s_blocks_are_kept() -> None:
    bench = Bench()
    job = Job(b"a", 1, tuple(range(4)), (0,) * (4 * STRIDE), 2 * STRIDE, 2 * STRIDE)
    bench.engine.submit(job, 0.0)
    bench.run(until=1.0)
    assert bench.engine.held_blocks(tuple(range(4))) == 2
    bench.run()
    assert bench.engine.held_blocks(tuple(range(4))) == 4


def test_a_cancelled_request_frees_its_place() -> None:
    bench = Bench(EngineSpec(1_000.0, 10.0, slots=1, cache_blocks=40))
    bench.submit(b"decoding", range(10), num_answer=1_000)
    bench.submit(b"waiting", range(100, 110), num_answer=1)
    bench.submit(b"last", range(200, 210), num_answer=1)
    bench.run(until=1.0)
    bench.engine.cancel(b"waiting", 1, 1.0)
    bench.engine.cancel(b"decoding", 1, 1.0)
    bench.engine.cancel(b"unknown", 1, 1.0)
    bench.run()
    assert bench.done == {b"last": pytest.approx(1.64)}
    assert bench.engine.jobs() == []
    assert bench.engine.used(2.0).busy_s == pytest.approx(0.64 + 0.36 + 0.64)


def test_a_prefill_can_be_cancelled() -> None:
    bench = Bench()
    bench.submit(b"a", range(10))
    bench.submit(b"b", range(100, 110))
    bench.now = 0.1
    bench.engine.cancel(b"a", 1, 0.1)
    bench.run()
    assert bench.first == {b"b": pytest.approx(0.74)}


def test_what_is_used_of_an_engine_is_that_of_its_scarcer_resource() -> None:
    bench = Bench()  # (two slots)
    bench.submit(b"a", range(10), num_answer=11)  # (0.64 s of prefill, 1 s of decode)
    bench.run(until=0.5)
    assert astuple(bench.engine.used(0.5)) == pytest.approx((0.5, 0.25))
    bench.run(until=1.0)
    assert astuple(bench.engine.used(1.0)) == pytest.approx((0.64, 0.5))
    bench.run()
    used = bench.engine.used(9.0)
    assert astuple(used) == pytest.approx((0.64, 0.82)) and used.busy_s == used.slots_s


def test_machines_are_within_their_bounds() -> None:
    rng = random.Random(1)
    specs = [draw_spec(rng) for _ in range(200)]
    assert all(300 <= one.prefill_rate <= 3_000 and 10 <= one.decode_rate <= 60 for one in specs)
    assert {one.slots for one in specs} == set(range(1, 9))
    assert all(600 <= one.cache_blocks <= 2_400 for one in specs)
    uneven = [draw_spec(rng, unevenness=20.0).prefill_rate for _ in range(200)]
    assert 15 < max(uneven) / min(uneven) <= 20
    assert draw_spec(rng, unevenness=1.0).prefill_rate == pytest.approx((300 * 3_000) ** 0.5)


def test_who_floods_an_engine_is_refused_for_a_while_and_delays_nobody() -> None:
    bench = Bench()
    retries_s = [bench.knock(b"hog %d" % number, b"hog") for number in range(40)]
    # One begins; the others get half of the queue.
    assert retries_s[:33] == [0.0] * 33 and min(retries_s[33:]) > 0
    assert bench.knock(b"small", b"small") == 0.0
    bench.run(until=2.0)
    assert b"small" in bench.first and len(bench.begun) == 4, "its turn comes with the next start or the one after"
    bench.run(until=retries_s[33])
    bench.now = retries_s[33]
    assert bench.knock(b"again", b"hog") == 0.0
    bench.run()
    assert len(bench.done) == 35


def test_owners_share_what_two_subnets_asked_and_what_holds_no_secrets() -> None:
    bench, cached = Bench(), []
    owners = [Owner(bytes([number]) * 16, f"subnet {number}") for number in range(4)]
    for number, owner in enumerate(owners):
        job = bench.submit(bytes([number]), [*range(10), 100 + number, 200], owner=owner)
        bench.run()
        cached.append(job.cached)
    assert cached == [0, 0, 640, 640]
    assert bench.submit(b"own", [*range(10), 101, 200, 300], owner=owners[1]).cached == 12 * STRIDE
    for name, found in ((b"first", 0), (b"second", 5 * STRIDE)):
        owner = Owner(name.ljust(16))
        job = bench.submit(name, range(50, 60), owner=owner, declared_open=5 * STRIDE + 7)
        bench.run()
        assert job.cached == found
