"""Whole small runs: requests are answered, equal seeds are equal, and a scenario gets what it specifies."""

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from mycelia.proto.wire.errors import LocalError
from mycelia.sim.outcome import Outcome, percentile
from mycelia.sim.policies import NAMES
from mycelia.sim.scenario import Scenario
from mycelia.sim.simulate import simulate
from mycelia.sim.traces import TraceRow

SMALL = Scenario(num_peers=6, rate=2.0, warm_s=10.0, measured_s=30.0, rtt_s=0.05)


def run(policy: str = "mycelia", seed: int = 1, **changes: object) -> Outcome:
    return simulate(replace(SMALL, **changes), policy, seed, lambda what: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", NAMES)
def test_every_policy_answers_everything(policy: str) -> None:
    outcome = run(policy)
    assert outcome.num_requests > 30 and outcome.num_failed == 0
    assert 0 < outcome.hit_ratio <= outcome.hit_bound < 1
    assert 0 < outcome.ttft_p50_s <= outcome.ttft_p90_s <= outcome.ttft_p99_s
    assert outcome.load_imbalance >= 1 and outcome.digest_bytes_per_s > 0
    assert 0 < outcome.goodput <= outcome.num_requests / 30.0


def test_equal_seeds_are_equal_runs_whatever_the_hash_seed() -> None:
    code = "from tests.sim.test_simulate import run; print(run(churn_s=20.0, num_entries=3, workload='multi-turn'))"
    printed = set()
    for hash_seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        printed.add(ran.stdout)
    assert len(printed) == 1
    assert run(seed=2) != run(seed=1) == run(seed=1)


def test_far_nodes_answer_later() -> None:
    near, far = run("random", rtt_s=0.0), run("random", rtt_s=0.2)
    # A round trip, except for what a node serves itself.
    assert near.ttft_p50_s + 0.1 < far.ttft_p50_s < near.ttft_p50_s + 0.25
    assert near.hit_bound == far.hit_bound


def test_nothing_is_hit_where_nothing_is_shared() -> None:
    outcome = run(workload="no-sharing")
    assert outcome.hit_ratio == outcome.hit_bound == outcome.stale_share == 0.0


def test_conversations_find_their_earlier_turns() -> None:
    assert run(workload="multi-turn", measured_s=120.0, rate=1.0).hit_ratio > 0.5


def test_nodes_that_leave_cost_no_answer() -> None:
    outcome = run(num_peers=8, num_entries=2, churn_s=15.0, measured_s=60.0)
    assert outcome.num_failed == 0


def test_lost_messages_cost_time_and_no_answer() -> None:
    # (no prompt finds anything cached, so that nothing else differs)
    nothing_shared: dict[str, Any] = {"workload": "no-sharing", "rtt_s": 0.2}
    lossy, clean = run("random", loss=0.3, **nothing_shared), run("random", **nothing_shared)
    assert lossy.num_failed == 0 and lossy.ttft_p50_s > clean.ttft_p50_s


def test_a_prompt_that_no_cache_can_hold_fails() -> None:
    rows = tuple(
        TraceRow(float(at), tokens, 5, tuple(range(-(-tokens // 512))))
        for at, tokens in ((11, 1_000), (12, 1_000_000), (13, 1_000))
    )
    outcome = run(workload="mooncake", trace=rows, rate=None)
    assert (outcome.num_requests, outcome.num_failed) == (3, 1)


def test_load_is_a_share_of_what_the_machines_can_answer() -> None:
    half, tenth = run(load=0.5), run(load=0.1)
    assert half.rate == pytest.approx(5 * tenth.rate, abs=1e-3)
    assert half.num_requests == pytest.approx(half.rate * SMALL.measured_s, rel=0.3)
    # Tokens that are not cached where a prompt enters come in addition.
    assert 0.4 < half.utilisation < 0.8 and 0.1 < tenth.utilisation < 0.2
    assert run("random", load=0.5).rate == half.rate != run(load=0.5, seed=2).rate


def test_nobody_is_used_more_than_fully() -> None:
    outcome = run("random", load=2.0, drain_s=1.0)
    assert outcome.utilisation * outcome.load_imbalance <= 1.0


def test_liars_draw_prompts_until_they_are_late() -> None:
    swarm: dict[str, Any] = {"num_peers": 8, "load": 0.5, "liars": 0.25, "warm_s": 30.0, "measured_s": 20.0}
    assert 0.15 < run("random", **swarm).liar_share < 0.35
    believed, doubted = run("mycelia-no-lateness", **swarm), run(**swarm)
    assert doubted.liar_share < min(0.35, believed.liar_share), "two of eight draw no more than their share"
    assert doubted.ttft_p50_s < 0.4 * believed.ttft_p50_s
    # Claims of dishonest nodes do not count as measurements.
    assert doubted.hit_ratio < doubted.hit_bound and doubted.stale_share > 0 == doubted.num_failed


def test_a_hot_prefix_is_copied_where_its_holders_are_busy() -> None:
    one_subject: dict[str, Any] = {
        "zipf": 20.0,
        "load": 0.6,
        "num_peers": 8,
        "rtt_s": 0.02,
        "warm_s": 20.0,
        "measured_s": 20.0,
    }
    own, affine = run(**one_subject), run("longest_prefix", **one_subject)
    assert own.load_imbalance < affine.load_imbalance and own.ttft_p99_s < 0.2 * affine.ttft_p99_s
    assert own.goodput > 3 * affine.goodput
    assert own.hit_ratio > 0.95 * own.hit_bound, "a copy is computed once"


def test_without_bounces_or_subscriptions_other_nodes_answer() -> None:
    busy: dict[str, Any] = {"load": 0.6, "rtt_s": None, "measured_s": 15.0}
    own = run(**busy)
    assert own == run(**busy)
    assert all(run(f"mycelia-no-{what}", **busy) != own for what in ("bounce", "subscriptions"))


def test_what_cannot_be_simulated_is_said() -> None:
    with pytest.raises(LocalError, match="no policy"):
        run("best")
    with pytest.raises(LocalError, match="no workload"):
        run(workload="words")
    with pytest.raises(LocalError, match="all nodes are liars"):
        run(liars=1.0)
    with pytest.raises(LocalError, match="measured time"):
        run(measured_s=0.0)


def test_percentiles_are_values() -> None:
    assert percentile([], 0.5) == 0.0
    assert [percentile([1.0, 2.0, 3.0], share) for share in (0.0, 0.5, 0.99)] == [1.0, 2.0, 3.0]
