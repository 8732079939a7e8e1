"""The cost of a candidate: what must hold for any claims of peers, and what is observed of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.proto.config import RoutingConfig
from mycelia.proto.routing.candidates import Candidate, Candidates
from mycelia.proto.routing.choose import Decision, Rating, rate
from mycelia.proto.routing.choose import choose as choose_among
from mycelia.proto.routing.observed import Observed
from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.messages import MAX_SMALL
from tests.profiles import examples

CONFIG = RoutingConfig()
NEAR, FAR = b"near", b"far"

_claims = st.integers(0, MAX_SMALL)
candidates = st.builds(
    Candidate,
    peer=st.binary(min_size=1, max_size=4),
    matched_tokens=_claims,
    num_requests=_claims,
    is_local=st.just(False),
    queued_tokens=_claims,
    slots=_claims,
    prefill_rate=_claims.map(float),
    hold_s=_claims.map(float),
    round_trip_s=st.floats(0, 1e3),
    precision=st.floats(0, 1),
    lateness_s=st.floats(0, 600),
    load_age_s=st.floats(0, 1e6),
    sent_tokens=_claims,
)


def choose(several: list[Candidate], prompt_tokens: int, config: RoutingConfig) -> Decision:
    return choose_among(Candidates.of(several), prompt_tokens, config)


def usual(peer: bytes = NEAR, **terms: float) -> Candidate:
    base = Candidate(peer, 0, 0, is_local=False, slots=4, prefill_rate=500.0, round_trip_s=0.02)
    return replace(base, **terms)  # type: ignore[arg-type]


@pytest.mark.properties
@given(st.lists(candidates, min_size=1, max_size=6), st.integers(1, 131_072))
@settings(max_examples=examples(100), deadline=None)
def test_whatever_is_claimed_every_cost_is_a_number_and_one_is_chosen(several: list[Candidate], tokens: int) -> None:
    decision = choose(several, tokens, CONFIG)
    assert decision.chosen == decision.rated[0].candidate.peer and len(decision.rated) == len(several)
    costs = [one.cost for one in decision.rated]
    assert all(math.isfinite(cost) and 0 < cost < 1e18 for cost in costs), "the wire can tell it"
    assert costs[0] <= min(costs) * CONFIG.keep_factor + CONFIG.keep_s


@pytest.mark.properties
@given(candidates, candidates, st.integers(1, 131_072))
@settings(max_examples=examples(100), deadline=None)
def test_more_of_anything_bad_never_costs_less(one: Candidate, other: Candidate, tokens: int) -> None:
    def cost(candidate: Candidate) -> float:
        return float(rate(Candidates.of([candidate, other]), tokens, CONFIG).cost[0])

    worse = [
        replace(one, matched_tokens=one.matched_tokens // 2),
        replace(one, num_requests=one.num_requests + 1),
        replace(one, hold_s=one.hold_s + 1.0),
        replace(one, queued_tokens=one.queued_tokens + 1_000),
        replace(one, round_trip_s=one.round_trip_s + 1.0),
        replace(one, precision=one.precision / 2),
        replace(one, lateness_s=one.lateness_s + 1.0),
    ]
    assert all(cost(candidate) >= cost(one) for candidate in worse)


def test_a_far_match_pays_only_when_it_saves_more_than_the_way() -> None:
    far = usual(FAR, matched_tokens=10 * STRIDE, round_trip_s=0.2)
    assert choose([usual(), far], 1_000, CONFIG).chosen == FAR
    fast = replace(far, prefill_rate=50_000.0)
    assert choose([usual(prefill_rate=50_000.0), fast], 1_000, CONFIG).chosen == NEAR


@given(_claims)
def test_a_liar_that_was_found_out_draws_no_prompt_from_who_holds_it(slots: int) -> None:
    holder = usual(matched_tokens=8_000, is_local=True, round_trip_s=0.0)
    others = [usual(b"%d" % number) for number in range(7)]
    liar = usual(b"liar", matched_tokens=8_064, slots=slots, prefill_rate=2e5, lateness_s=60.0, precision=0.0)
    assert choose([holder, *others, liar], 8_100, CONFIG).chosen == NEAR


def test_who_claims_the_prompt_and_is_late_loses_also_where_computing_again_is_dear() -> None:
    others = [usual(b"%d" % number, num_requests=4) for number in range(10)]
    liar = usual(b"liar", matched_tokens=4_000, num_requests=4, lateness_s=30.0)
    assert choose([*others, liar], 4_000, CONFIG).chosen != b"liar"


def test_claims_of_no_speed_do_not_make_computing_here_dear() -> None:
    here = usual(NEAR, is_local=True, round_trip_s=0.0)
    liars = [usual(b"%d" % n, matched_tokens=2_000, prefill_rate=1.0, lateness_s=100.0) for n in range(2)]
    assert choose([here, *liars], 2_000, CONFIG).chosen == NEAR


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_luck_moves_no_conversation(luck: list[float]) -> None:
    here = usual(FAR, matched_tokens=960, sent_tokens=960, num_requests=4)
    others = [usual(b"%d" % number, matched_tokens=960, num_requests=4) for number in range(3)]
    candidates = Candidates.of([here, *others])
    assert choose_among(candidates, 1_000, CONFIG, np.array(luck)).chosen == FAR


def test_luck_spreads_only_where_the_swarm_is_busy() -> None:
    def chosen(num_requests: int) -> set[bytes]:
        several = [
            usual(b"%d" % number, num_requests=num_requests, round_trip_s=0.02 + number / 50) for number in range(5)
        ]
        chance = np.random.default_rng(1)
        return {choose_among(Candidates.of(several), 500, CONFIG, chance.random(5)).chosen for _ in range(50)}

    assert chosen(0) == {b"0"} and len(chosen(4)) > 2


def test_computing_again_costs_ever_more_the_busier_all_are() -> None:
    def recompute_s(num_requests: int) -> float:
        several = [usual(b"%d" % number, num_requests=num_requests) for number in range(3)]
        return choose(several, 1_000, CONFIG).rated[0].recompute_s

    idle, half, full = (recompute_s(number) for number in (0, 2, 4))
    assert (idle, half, full) == (2.0, 4.5, 8.0), "2 s at the usual rate, times (1 + requests per slot) squared"


def test_lateness_counts_for_those_who_are_delayed_too() -> None:
    late = usual(FAR, matched_tokens=10 * STRIDE, lateness_s=0.5)
    terms = choose([usual(), late], 1_000, CONFIG).rated
    (cost,) = (one.cost - one.wait_s - one.recompute_s for one in terms if one.candidate.peer == FAR)
    assert cost == pytest.approx(0.5 * CONFIG.lateness_weight)
    assert choose([usual(), late], 1_000, CONFIG).chosen == NEAR, "6 x 0.5 s outweigh 2 x 1.28 s of computing"
    assert choose([usual(), late], 1_000, replace(CONFIG, lateness_weight=1.0)).chosen == FAR


def test_another_rule_replaces_the_cost_and_nothing_else() -> None:
    several = Candidates.of([usual(), usual(FAR, matched_tokens=640, round_trip_s=0.3)])
    own = choose_among(several, 1_000, CONFIG)
    other = choose_among(several, 1_000, CONFIG, rating=Rating(np.array([1.0, 2.0]), "by lot"))
    assert (own.chosen, other.chosen) == (FAR, NEAR) and other.reason == "by lot"
    assert other.terms.cost.tolist() == [1.0, 2.0] and (other.terms.wait_s == own.terms.wait_s).all()
    # Equal costs: this node itself, otherwise by luck, so that entry nodes do not all choose the same node.
    equal = Rating(np.zeros(2), "")
    chosen = {choose_among(several, 1_000, CONFIG, np.array(luck), equal).chosen for luck in ((0.1, 0.2), (0.2, 0.1))}
    assert chosen == {NEAR, FAR}
    assert choose_among(several, 1_000, CONFIG, rating=equal).chosen == FAR, "without luck the lowest peer id"


def test_old_news_of_load_counts_less() -> None:
    held = usual(FAR, matched_tokens=6 * STRIDE, num_requests=60)
    assert choose([usual(), held], 1_000, CONFIG).chosen == NEAR
    assert choose([usual(), replace(held, load_age_s=60.0)], 1_000, CONFIG).chosen == FAR


def test_a_conversation_stays_where_it_is_while_that_is_nearly_as_good() -> None:
    here = usual(FAR, matched_tokens=12 * STRIDE, sent_tokens=12 * STRIDE, prefill_rate=500.0)
    slightly_better = usual(matched_tokens=13 * STRIDE)
    assert choose([slightly_better, here], 1_400, CONFIG).chosen == FAR
    assert choose([slightly_better, replace(here, sent_tokens=STRIDE)], 1_400, CONFIG).chosen == NEAR
    assert choose([slightly_better, replace(here, num_requests=2)], 1_400, CONFIG).chosen == NEAR


def test_observations_are_averaged_bounded_and_fade() -> None:
    observed = Observed(RoutingConfig(max_observed=2))
    assert observed.lateness_s(NEAR, 0.0) == 0.0 and observed.precision(NEAR, 0.0) == 1.0
    for now in range(20):
        observed.on_first_token(NEAR, 0.5, 1e9, float(now))
        observed.on_cached(NEAR, 100, 0, float(now))
    assert 300 < observed.lateness_s(NEAR, 20.0) <= CONFIG.max_lateness_s
    assert observed.precision(NEAR, 20.0) < 0.1
    later = 20.0 + 10 * CONFIG.observation_half_life_s
    assert observed.lateness_s(NEAR, later) < 1.0 and observed.precision(NEAR, later) > 0.99
    for peer in (b"a", b"b", b"c"):
        observed.on_cached(peer, 10, 20, 30.0)
    assert len(observed) == 2 and observed.precision(b"c", 30.0) == 1.0
