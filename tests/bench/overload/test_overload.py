"""The overload benchmark: rows of small runs, and which retry times count as true."""

from dataclasses import replace

import pytest

from mycelia.bench.overload.overload import bench_overload, rows_of
from mycelia.bench.overload.real import capacity
from mycelia.bench.plans import OverloadBench
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.overload import OverloadOutcome, overload
from mycelia.sim.policies import OWN
from mycelia.sim.scenario import Scenario
from tests import profiles

AT_CAPACITY = OverloadOutcome(
    offered=10.0,
    tries=10.0,
    answered=8.0,
    answered_tokens=80.0,
    refused_share=0.1,
    unfinished=0,
    failed=0,
    given_up=1.0,
    num_told=0,
    told_true=0.0,
    told_p50_s=1.0,
    num_on_time=0,
    kept=0.0,
    most_waiting=9,
    most_in_flight=9,
    ttft_p50_s=1.0,
    ttft_p99_s=2.0,
    total_p99_s=4.0,
)


def test_rows_are_beside_the_peak_and_beside_capacity() -> None:
    told = replace(AT_CAPACITY, num_told=4, told_true=0.75, num_on_time=8, kept=0.5)
    crowded = replace(told, answered=6.0, answered_tokens=90.0, ttft_p99_s=3.0)
    rows = {row.name: row.value for row in rows_of("x_", {1.0: [AT_CAPACITY], 3.0: [crowded]})}
    assert rows["x_1x_goodput"] == 1.0 and rows["x_3x_goodput"] == 0.75
    assert rows["x_3x_goodput_tokens"] == 1.0 and rows["x_3x_ttft_p99_ratio"] == 1.5
    assert rows["x_3x_told_true"] == 0.75 and rows["x_3x_kept"] == 0.5
    assert not {"x_1x_told_true", "x_1x_kept"} & rows.keys(), "of nobody nothing is true"
    with pytest.raises(LocalError, match="nothing"):
        rows_of("x_", {1.0: [replace(AT_CAPACITY, answered=0.0)]})


def test_an_overloaded_swarm_answers_as_much_and_tells_the_truth() -> None:
    scenario = Scenario(num_peers=4, warm_s=20.0, measured_s=30.0, tail_s=30.0, drain_s=120.0)
    busy_p99_s = crowded_p99_s = 0.0
    for seed in (1, 2, 3) if profiles.is_full() else (1,):
        busy, crowded = (
            overload(replace(scenario, load=load), True, OWN, seed, lambda what: None) for load in (1.0, 3.0)
        )
        assert crowded.answered > 0.9 * busy.answered and crowded.failed == 0
        assert crowded.refused_share > 0.5 > busy.refused_share
        assert crowded.num_told >= 10 and crowded.told_true >= 0.8
        assert crowded.tries < 3 * crowded.offered, "who is told the truth need not ask often"
        assert busy.unfinished == crowded.unfinished == 0
        assert crowded.num_on_time > 50 and crowded.kept >= 0.9
        busy_p99_s += busy.total_p99_s
        crowded_p99_s += crowded.total_p99_s
    # (of half a minute of one swarm it is chance)
    assert crowded_p99_s < 2 * busy_p99_s or not profiles.is_full()


def test_a_request_without_an_end_is_seen() -> None:
    scenario = Scenario(num_peers=3, load=3.0, warm_s=5.0, measured_s=10.0, tail_s=0.0, drain_s=0.0)
    assert overload(scenario, False, OWN, 1, lambda what: None).unfinished > 0


def test_a_small_bench_has_rows_of_both_kinds_of_users() -> None:
    report = bench_overload(OverloadBench(loads=(1.0,), num_nodes=3, seconds=5.0, seeds=1))
    assert {row.name.partition("_")[0] for row in report.rows} == {"retry", "leave"}


def test_what_real_nodes_can_answer_is_known_from_their_engines() -> None:
    assert capacity(OverloadBench(num_nodes=4)) == pytest.approx(2 * capacity(OverloadBench(num_nodes=2)))
    assert 5 < capacity(OverloadBench(real=True).filled()) < 20
