"""Each rule chooses as documented."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mycelia.proto.config import RoutingConfig
from mycelia.proto.routing.candidates import Candidate, Candidates, Column, Usual
from mycelia.proto.routing.choose import Policy, choose
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.policies import ABLATIONS, NAMES, ORACLES, make_policy

CONFIG = RoutingConfig(keep_factor=0.0, keep_s=0.0)


class Known:
    """A truth that is what is known."""

    def candidates(self, known: Candidates, chain: Sequence[int]) -> Candidates:
        return known

    def waits_s(self, known: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Column:
        return known.round_trip_s


def candidate(name: str, matched: int = 0, load: int = 0, **more: float) -> Candidate:
    return Candidate(name.encode(), matched, load, False, **more)  # type: ignore[arg-type]


def as_told(some: Sequence[Candidate], chain: Sequence[int]) -> Sequence[Candidate]:
    return some


def policy(name: str) -> Policy:
    made = make_policy(name, random.Random(1), Known(), as_told)
    assert made is not None
    return made


def choice(rule: Policy, candidates: Sequence[Candidate], tokens: int = 10, chain: Sequence[int] = ()) -> bytes:
    known = Candidates.of(candidates)
    rating = rule(known, tokens, chain)
    assert len(rating.cost) == len(candidates) and rating.cost.min() >= 0 and np.isfinite(rating.cost).all()
    return choose(known, tokens, CONFIG, rating=rating).chosen


def chosen(name: str, *candidates: Candidate, tokens: int = 1_000, chain: tuple[int, ...] = (1, 2, 3)) -> str:
    return choice(policy(name), candidates, tokens, chain).decode()


@pytest.mark.parametrize(
    "name", [name for name in (*NAMES, *ABLATIONS) if make_policy(name, random.Random(1), Known())]
)
def test_one_candidate_is_chosen_by_all(name: str) -> None:
    assert chosen(name, candidate("a"), tokens=10, chain=()) == "a"
    assert chosen(name, candidate("a", 3_000, 70, slots=0), tokens=4_000) == "a"


def test_the_protocol_s_own_rule_and_unknown_names() -> None:
    assert (
        make_policy("mycelia", random.Random(1)) is None and make_policy("mycelia-no-moves", random.Random(1)) is None
    )
    for name in ("best", "oracle", "gorgo-no-rtt"):
        with pytest.raises(LocalError, match=f"no policy {name}"):
            make_policy(name, random.Random(1))


def test_random_takes_everybody() -> None:
    rule = policy("random")
    candidates = [candidate(name) for name in "abcd"]
    counts = Counter(choice(rule, candidates) for _ in range(400))
    assert len(counts) == 4 and min(counts.values()) > 60


def test_round_robin_takes_one_after_the_other() -> None:
    rule = policy("round_robin")
    candidates = [candidate(name) for name in "cab"]
    assert b"".join(choice(rule, candidates) for _ in range(5)) == b"abcab"
    assert choice(rule, [candidate("a"), candidate("c")]) == b"c"


def test_least_load_takes_the_least_loaded() -> None:
    assert chosen("least_load", candidate("a", 900, 3), candidate("b", 0, 1), candidate("c", 0, 2)) == "b"


def test_chwbl_keeps_a_prefix_in_its_place_until_that_is_full() -> None:
    rule = policy("chwbl")
    names = "abcdef"
    chain = (5 << 60, 7 << 60, 9)
    home = choice(rule, [candidate(name) for name in names], 10, chain)
    assert all(choice(rule, [candidate(name) for name in names], 10, (one, 7 << 60)) == home for one in range(5))
    # One request more than 1.25 x the mean, this one included.
    loads = dict.fromkeys(names, 4)
    assert choice(rule, [candidate(name, load=loads[name]) for name in names], 10, chain) == home
    loads[home.decode()] = 5
    assert choice(rule, [candidate(name, load=loads[name]) for name in names], 10, chain) != home
    places = {
        choice(rule, [candidate(name) for name in names], 10, (0, random.Random(key).getrandbits(64)))
        for key in range(60)
    }
    assert len(places) == len(names)


def test_longest_prefix_takes_the_longest_match_whatever_the_load() -> None:
    assert chosen("longest_prefix", candidate("a", 640, 100), candidate("b", 576)) == "a"
    assert chosen("longest_prefix", candidate("a", 640, 2), candidate("b", 650, 1)) == "b"


def test_sglang_takes_the_best_match_unless_it_is_short_or_loads_differ() -> None:
    assert chosen("sglang", candidate("a", 320, 64), candidate("b")) == "a"
    assert chosen("sglang", candidate("a", 256, 30), candidate("b")) == "b"
    assert chosen("sglang", candidate("a", 640, 65), candidate("b")) == "b"
    assert chosen("sglang", candidate("a", 640, 200), candidate("b", 0, 134)) == "a", "by less than half"


def test_lmetric_multiplies_work_and_load() -> None:
    assert chosen("lmetric", candidate("a", 640, 1), candidate("b", 0, 0)) == "a"
    assert chosen("lmetric", candidate("a", 640, 2), candidate("b", 0, 0)) == "b"


def test_gorgo_adds_round_trip_and_work_at_one_rate_for_all() -> None:
    near = candidate("near", round_trip_s=0.0, prefill_rate=1_000.0)
    far = candidate("far", 640, round_trip_s=0.7, prefill_rate=1_000.0)
    assert chosen("gorgo", near, far) == "near"
    far = candidate("far", 640, round_trip_s=0.6, prefill_rate=1_000.0)
    assert chosen("gorgo", near, far) == "far"
    busy = candidate("near", queued_tokens=500, prefill_rate=1_000.0)
    assert chosen("gorgo", busy, candidate("far", 640, round_trip_s=0.7, prefill_rate=1_000.0)) == "far"


def test_dynamo_adds_blocks_to_prefill_and_active_blocks() -> None:
    # A request there counts as long as this router's prompts, here 1,000 tokens.
    assert chosen("dynamo", candidate("a", 640, 1), candidate("b")) == "b"
    assert chosen("dynamo", candidate("a", 960, 1, queued_tokens=100), candidate("b", 0, 1)) == "a"
    assert chosen("dynamo", candidate("a", 960, 1, queued_tokens=1_000), candidate("b", 0, 1)) == "b"
    rule = policy("dynamo")
    for _ in range(99):
        choice(rule, [candidate("a")], 100)
    assert choice(rule, [candidate("a", 640, 1), candidate("b")], 1_000) == b"a", "109 tokens on average"


def test_llmd_weighs_match_free_slots_and_queue() -> None:
    assert chosen("llmd", candidate("a", 640, 4, slots=4), candidate("b", 64, 0, slots=4)) == "a", "3 for the match"
    assert chosen("llmd", candidate("a", 640, 5, slots=4), candidate("b", 64, 0, slots=4)) == "b", "2 and 2"
    assert chosen("llmd", candidate("a", 640, 1, slots=4), candidate("b", 640, 0, slots=4)) == "b"
    assert chosen("llmd", candidate("a", 0, 1, slots=4), candidate("b", 64, 3, slots=4)) == "b"


def test_preble_exploits_a_long_match_and_explores_otherwise() -> None:
    near: dict[str, Any] = {"prefill_rate": 1_000.0, "hold_s": 1.0, "slots": 4}
    assert chosen("preble", candidate("a", 640, 1, **near), candidate("b", **near)) == "a"
    assert chosen("preble", candidate("a", 640, 1, **near), candidate("b", 640, 0, **near)) == "b", "the least loaded"
    assert chosen("preble", candidate("a", 448, 4, **near), candidate("b", **near)) == "b", "less than half is cached"
    assert chosen("preble", candidate("a", 640, 9, **near), candidate("b", **near)) == "b", "out of balance"


def test_least_ttft_adds_what_a_prompt_waits_for() -> None:
    slow, fast = candidate("slow", 640, prefill_rate=200.0), candidate("fast", 0, prefill_rate=800.0)
    assert chosen("least_ttft", slow, fast) == "fast"
    assert chosen("least_ttft", slow, candidate("fast", 0, prefill_rate=800.0, round_trip_s=0.6)) == "slow"


def test_oracles_choose_by_what_is_true() -> None:
    told = [candidate("a", 960), candidate("b")]

    class Truth(Known):
        def candidates(self, known: Candidates, chain: Sequence[int]) -> Candidates:
            busy = candidate("a", 0, 3, prefill_rate=1_000.0, slots=1)
            return Candidates.of([busy, candidate("b", 640, 0, prefill_rate=500.0, slots=2)])

        def waits_s(self, known: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Column:
            return np.array([3.0, 1.0])

    for name in ORACLES:
        made = make_policy(name, random.Random(1), Truth())
        assert made is not None and choice(made, told, 1_000) == b"b", name


def test_an_ablation_hides_one_thing() -> None:
    far = candidate("far", 640, round_trip_s=2.0, prefill_rate=1_000.0)
    near = candidate("near", prefill_rate=1_000.0)
    assert chosen("mycelia-no-rtt", far, near) == "far" and chosen("mycelia-no-queue", far, near) == "near"
    fast, slow = candidate("fast", 0, prefill_rate=3_000.0), candidate("slow", 64, prefill_rate=500.0)
    assert chosen("mycelia-no-rate", fast, slow) == "slow" and chosen("mycelia-no-rtt", fast, slow) == "fast"
    untrue = candidate("a", 960, precision=0.1, prefill_rate=1_000.0)
    assert chosen("mycelia-no-precision", untrue, candidate("b", 640, prefill_rate=1_000.0)) == "a"
    assert chosen("mycelia-no-rtt", untrue, candidate("b", 640, prefill_rate=1_000.0)) == "b"
    busy, calm = candidate("busy", 64, 8, slots=30, prefill_rate=900.0), candidate("calm", slots=30, prefill_rate=900.0)
    assert chosen("mycelia-no-load", busy, calm) == "busy" and chosen("mycelia-no-rtt", busy, calm) == "calm"
    idle = candidate("idle", slots=9, prefill_rate=900.0)
    full = candidate("full", 640, 9, slots=9, hold_s=20.0, prefill_rate=900.0)
    assert chosen("mycelia-no-hold", full, idle) == "full" and chosen("mycelia-no-rtt", full, idle) == "idle"
    here = candidate("here", 64, slots=9, round_trip_s=0.08, prefill_rate=900.0)
    assert chosen("mycelia-no-recompute", here, idle) == "idle" and chosen("mycelia-no-queue", here, idle) == "here"
    late = candidate("late", 640, slots=9, lateness_s=2.0, prefill_rate=900.0)
    assert chosen("mycelia-no-lateness", late, idle) == "late" and chosen("mycelia-no-queue", late, idle) == "idle"
    slower = candidate("slower", 9 * 640, 9, slots=9, lateness_s=12.0, prefill_rate=900.0)
    others = [candidate(f"{number}", 0, 9, slots=9, prefill_rate=900.0) for number in range(9)]
    assert chosen("mycelia-no-crowd", slower, *others, tokens=9_000) == "slower"
    assert chosen("mycelia-no-rtt", slower, *others, tokens=9_000) != "slower"
    several = [candidate("busy", 0, 30, prefill_rate=3_000.0), candidate("slow", prefill_rate=600.0)]
    known = Candidates.of(several, usual=Usual(1_000, 200))
    for name, best in (("mycelia-no-usual", 1), ("mycelia-no-queue", 0)):
        assert policy(name)(known, 100_000, ()).cost.argmin() == best, name
    popular = candidate("popular", 0, 3, slots=3, hold_s=2.0, prefill_rate=1_000.0)
    known = Candidates.of([popular, candidate("quiet", slots=3, prefill_rate=900.0)], usual=Usual(6_000, 2_000))
    for name, best in (("mycelia-no-blocking", 0), ("mycelia-no-crowd", 1)):
        assert policy(name)(known, 100_000, ()).cost.argmin() == best, name


def test_without_dispatches_only_what_was_told_counts() -> None:
    told = [candidate("a", 0, prefill_rate=1_000.0), candidate("b", 64, prefill_rate=1_000.0)]
    made = make_policy("mycelia-no-dispatches", random.Random(1), told=lambda some, chain: told)
    assert made is not None
    assert choice(made, [candidate("a", 960, prefill_rate=1_000.0), told[1]], 1_000) == b"b"
