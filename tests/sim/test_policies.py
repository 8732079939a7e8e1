"""Each rule chooses as documented."""

import random
from collections import Counter

import pytest

from mycelia.proto.routing.candidates import Candidate
from mycelia.proto.routing.choose import Policy
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.policies import NAMES, make_policy


def candidate(name: str, matched: int = 0, load: int = 0, **more: float) -> Candidate:
    return Candidate(name.encode(), matched, load, False, **more)  # type: ignore[arg-type]


def policy(name: str) -> Policy:
    made = make_policy(name, random.Random(1), lambda one, chain: one, lambda some, chain: some)
    assert made is not None
    return made


def chosen(name: str, *candidates: Candidate, tokens: int = 1_000, chain: tuple[int, ...] = (1, 2, 3)) -> str:
    decision = policy(name)(candidates, tokens, chain)
    assert decision.chosen == decision.rated[0].candidate.peer
    assert {one.candidate.peer for one in decision.rated} == {one.peer for one in candidates}
    return decision.chosen.decode()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mycelia"])
def test_nobody_to_choose_from_is_an_error(name: str) -> None:
    with pytest.raises(LocalError, match="no node"):
        policy(name)([], 100, [])
    assert chosen(name, candidate("a"), tokens=10, chain=()) == "a"


def test_the_protocol_s_own_rule_and_unknown_names() -> None:
    assert make_policy("mycelia", random.Random(1), lambda one, chain: one, lambda some, chain: some) is None
    with pytest.raises(LocalError, match="no policy best"):
        make_policy("best", random.Random(1), lambda one, chain: one, lambda some, chain: some)


def test_random_takes_everybody() -> None:
    rule = policy("random")
    candidates = [candidate(name) for name in "abcd"]
    counts = Counter(rule(candidates, 10, []).chosen for _ in range(400))
    assert len(counts) == 4 and min(counts.values()) > 60


def test_round_robin_takes_one_after_the_other() -> None:
    rule = policy("round_robin")
    candidates = [candidate(name) for name in "cab"]
    assert b"".join(rule(candidates, 10, []).chosen for _ in range(5)) == b"abcab"
    assert rule([candidate("a"), candidate("c")], 10, []).chosen == b"c"


def test_least_load_takes_the_least_loaded() -> None:
    assert chosen("least_load", candidate("a", 900, 3), candidate("b", 0, 1), candidate("c", 0, 2)) == "b"


def test_chwbl_keeps_a_prefix_in_its_place_until_that_is_full() -> None:
    rule = policy("chwbl")
    names = "abcdef"
    chain = (5 << 60, 7 << 60, 9)
    home = rule([candidate(name) for name in names], 10, chain).chosen
    assert all(rule([candidate(name) for name in names], 10, (first, 7 << 60)).chosen == home for first in range(5))
    # One request more than 1.25 x the mean, this one included.
    loads = dict.fromkeys(names, 4)
    assert rule([candidate(name, load=loads[name]) for name in names], 10, chain).chosen == home
    loads[home.decode()] = 5
    assert rule([candidate(name, load=loads[name]) for name in names], 10, chain).chosen != home
    places = {
        rule([candidate(name) for name in names], 10, (0, random.Random(key).getrandbits(64))).chosen
        for key in range(60)
    }
    assert len(places) == len(names)


def test_longest_prefix_takes_the_longest_match_whatever_the_load() -> None:
    assert chosen("longest_prefix", candidate("a", 640, 100), candidate("b", 576)) == "a"
    assert chosen("longest_prefix", candidate("a", 640, 2), candidate("b", 650, 1)) == "b"


def test_sglang_takes_the_best_match_unless_it_is_short_or_loads_differ() -> None:
    assert chosen("sglang", candidate("a", 640, 30), candidate("b")) == "a"
    assert chosen("sglang", candidate("a", 448, 30), candidate("b")) == "b"
    assert chosen("sglang", candidate("a", 640, 33), candidate("b")) == "b"


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


def test_the_oracle_chooses_by_what_is_true() -> None:
    told = [candidate("a", 960), candidate("b")]
    truth = {
        b"a": candidate("a", 0, 3, prefill_rate=1_000.0, slots=1),
        b"b": candidate("b", 640, 0, prefill_rate=500.0, slots=2),
    }
    made = make_policy("oracle", random.Random(1), lambda one, chain: truth[one.peer], lambda some, chain: some)
    assert made is not None and made(told, 1_000, ()).chosen == b"b"


def test_an_ablation_hides_one_thing() -> None:
    far = candidate("far", 640, round_trip_s=2.0, prefill_rate=1_000.0)
    near = candidate("near", prefill_rate=1_000.0)
    assert chosen("mycelia-no-rtt", far, near) == "far" and chosen("mycelia-no-queue", far, near) == "near"
    fast, slow = candidate("fast", 0, prefill_rate=3_000.0), candidate("slow", 64, prefill_rate=500.0)
    assert chosen("mycelia-no-rate", fast, slow) == "slow" and chosen("mycelia-no-rtt", fast, slow) == "fast"
    untrue = candidate("a", 960, precision=0.1, prefill_rate=1_000.0)
    assert chosen("mycelia-no-precision", untrue, candidate("b", 640, prefill_rate=1_000.0)) == "a"
    assert chosen("mycelia-no-rtt", untrue, candidate("b", 640, prefill_rate=1_000.0)) == "b"
    # (so many slots that the randomness, which grows with the load of all, cannot outweigh it)
    busy, calm = candidate("busy", 64, 8, slots=30, prefill_rate=900.0), candidate("calm", slots=30, prefill_rate=900.0)
    assert chosen("mycelia-no-load", busy, calm) == "busy" and chosen("mycelia-no-rtt", busy, calm) == "calm"
    idle = candidate("idle", slots=9, prefill_rate=900.0)
    full = candidate("full", 640, 9, slots=9, hold_s=20.0, prefill_rate=900.0)
    assert chosen("mycelia-no-hold", full, idle) == "full" and chosen("mycelia-no-rtt", full, idle) == "idle"
    here = candidate("here", 64, slots=9, round_trip_s=0.08, prefill_rate=900.0)
    assert chosen("mycelia-no-recompute", here, idle) == "idle" and chosen("mycelia-no-queue", here, idle) == "here"
    late = candidate("late", 640, slots=9, lateness_s=2.0, prefill_rate=900.0)
    assert chosen("mycelia-no-lateness", late, idle) == "late" and chosen("mycelia-no-queue", late, idle) == "idle"


def test_without_dispatches_only_what_was_told_counts() -> None:
    told = [candidate("a", 0, prefill_rate=1_000.0), candidate("b", 64, prefill_rate=1_000.0)]
    made = make_policy("mycelia-no-dispatches", random.Random(1), lambda one, chain: one, lambda some, chain: told)
    assert made is not None
    assert made([candidate("a", 960, prefill_rate=1_000.0), told[1]], 1_000, ()).chosen == b"b"
