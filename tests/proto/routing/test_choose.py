"""The cost of a candidate: what must hold for any claims of peers, and what is observed of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.proto.config import RoutingConfig
from mycelia.proto.routing.candidates import UNKNOWN, Candidate, Candidates, Usual
from mycelia.proto.routing.choose import Decision, Rating, rate
from mycelia.proto.routing.choose import choose as choose_among
from mycelia.proto.routing.dispatches import Dispatches, UnderWay
from mycelia.proto.routing.load_table import LoadTable
from mycelia.proto.routing.observed import Observed
from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.messages import MAX_SMALL, Served, Vitals
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
@given(candidates, candidates, st.integers(1, 131_072), st.floats(1, math.inf))
@settings(max_examples=examples(100), deadline=None)
def test_more_of_anything_bad_never_costs_less(one: Candidate, other: Candidate, tokens: int, mean: float) -> None:
    def cost(candidate: Candidate) -> float:
        return float(rate(Candidates.of([candidate, other], Usual(mean)), tokens, CONFIG).cost[0])

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


def test_computing_again_costs_ever_more_the_more_prompts_wait() -> None:
    def recompute_s(queued_tokens: int) -> float:
        table = LoadTable(b"me", CONFIG, Observed(CONFIG))
        for peer in (NEAR, FAR):
            load = Vitals(queued_tokens=queued_tokens, active_requests=1, waiting_requests=0, slots=4, prefill_rate=500)
            table.put(peer, Served(namespace=b"", model="m", context_tokens=9_000, vitals=load), 0.0, 0.0, 0.02)
        sent = {NEAR: [UnderWay(0.0, 50_000, 0.0)]}
        candidates = table.candidates(1_000, {}, {}, sent, set(), 0.0, usual=Usual(2_000, 600))
        assert (candidates.queued_tokens - queued_tokens).tolist() == [50_000, 0] and candidates.usual.tokens == 2_000
        return float(rate(candidates, 1_000, CONFIG).recompute_s[0])

    none, half, one, most = (recompute_s(number) for number in (0, 300, 600, MAX_SMALL))
    assert (none, half, one) == (2.0, 4.5, 8.0), "2 s at the usual rate, times (1 + prompts to compute) squared"
    assert most == 50.0, "claims of more than four prompts count as four"


def test_lateness_counts_for_those_who_are_delayed_too_as_far_as_there_are_any() -> None:
    def lateness_cost(num_requests: int) -> float:
        several = [usual(b"%d" % number, num_requests=num_requests) for number in range(3)]
        late = [replace(several[0], lateness_s=0.5), *several[1:]]
        costs = [rate(Candidates.of(some), 1_000, CONFIG).cost for some in (late, several)]
        return float(costs[0][0] - costs[1][0])

    idle, half, full = (lateness_cost(number) for number in (0, 2, 4))
    assert (idle, half, full) == pytest.approx((1.0, 1.625, 2.5)), "0.5 s, and times (1 + requests per slot) squared"


def test_who_was_late_by_chance_keeps_its_prefix_while_the_swarm_is_idle() -> None:
    late = usual(FAR, matched_tokens=10 * STRIDE, lateness_s=1.2)
    others = [usual(b"%d" % number) for number in range(3)]
    assert choose([*others, late], 1_000, CONFIG).chosen == FAR, "2 x 1.2 s against 2 x 1.28 s of computing"
    busy = [replace(one, num_requests=4) for one in (*others, late)]
    assert choose(busy, 1_000, CONFIG).chosen != FAR, "5 x 1.2 s, which is more"


def test_load_and_luck_do_not_send_a_long_prompt_to_a_slow_node() -> None:
    fast = usual(NEAR, prefill_rate=3_000.0, num_requests=3)
    slow = [usual(b"%d" % number, prefill_rate=600.0) for number in range(3)]

    def chosen(prompt_tokens: int, usual_tokens: float = 1_000.0) -> set[bytes]:
        several, chance = Candidates.of([fast, *slow], Usual(usual_tokens)), np.random.default_rng(1)
        return {choose_among(several, prompt_tokens, CONFIG, chance.random(4)).chosen for _ in range(50)}

    assert chosen(100_000) == {NEAR}
    busier = replace(fast, num_requests=30)
    assert choose([busier, *slow], 100_000, CONFIG).chosen != NEAR, "all of its time counts, if it is usual"
    assert choose_among(Candidates.of([busier, *slow], Usual(1_000)), 100_000, CONFIG).chosen == NEAR
    terms = rate(Candidates.of([fast, *slow], Usual(1_000)), 100_000, CONFIG)
    assert terms.uncertain_s.tolist() == pytest.approx([0.02 + 1 / 3, *[0.02 + 1 / 0.6] * 3])
    assert terms.wait_s.tolist() == pytest.approx([0.02 + 100 / 3, *[0.02 + 100 / 0.6] * 3])


def test_a_long_prompt_stays_away_from_nodes_where_many_prompts_find_their_prefix() -> None:
    popular = usual(NEAR, prefill_rate=1_000.0, num_requests=3, hold_s=2.0)
    quiet = usual(FAR, prefill_rate=800.0, num_requests=1, hold_s=20.0, round_trip_s=0.03)

    def costs(prompt_tokens: int, prompts: Usual, *several: Candidate) -> tuple[list[float], list[float]]:
        terms = rate(Candidates.of(several or [popular, quiet], prompts), prompt_tokens, CONFIG)
        return terms.blocking_s.tolist(), terms.cost.tolist()

    shared, apart = Usual(6_000, 2_000), Usual(6_000, 6_000)
    blocking_s, (at_popular, at_quiet) = costs(30_000, shared)
    assert blocking_s == pytest.approx([1.5 * 30 * 4, 0.05 * 37.5 * 4]), "who goes elsewhere computes 4,000 again"
    assert at_popular > at_quiet
    blocking_s, _ = costs(500, shared)
    assert blocking_s == pytest.approx([1.5 * 0.5 * 0.25, 0.05 * 0.625 * 0.3125]), "or waits for half of a short one"
    for unknown in (apart, UNKNOWN, Usual(6_000)):
        assert costs(30_000, unknown)[0] == [0.0, 0.0]
    assert costs(30_000, shared, replace(popular, hold_s=0.0), quiet)[0][0] == 0.0, "not measured yet"


def test_usual_prompts_are_those_sent_lately() -> None:
    dispatches = Dispatches()
    assert dispatches.usual == UNKNOWN
    dispatches.note(Usual(8_000, 4_000))
    assert dispatches.usual == pytest.approx((8_000, 4_000))
    for _ in range(3):
        dispatches.note(Usual(2_000, 1))
    assert dispatches.usual == pytest.approx((3_500, 1_000.75)), "means of a few"
    for _ in range(200):
        dispatches.note(Usual(1_000, 500))
    assert dispatches.usual == pytest.approx((1_000, 500), rel=0.01)
    decision = choose([usual(matched_tokens=640, precision=0.5)], 1_000, CONFIG)
    assert decision.uncached_tokens == 680


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
    # Luck multiplies what the rule says, without that all of the cost.
    busy, luck = Candidates.of([usual(num_requests=4), usual(FAR, num_requests=4)]), np.array([1.0, 0.0])
    costs = np.array([1.0, 1.6])
    assert choose_among(busy, 1_000, CONFIG, luck, Rating(costs, "")).chosen == FAR
    assert choose_among(busy, 1_000, CONFIG, luck, Rating(costs, "", uncertain=costs / 2)).chosen == NEAR
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
