"""How answers are compared, and as what each difference counts."""

import click
import pytest
from click.testing import CliRunner

from mycelia.bench.chaos.chaos import Difference, Stream, _rows, compare
from mycelia.bench.chaos.chaos_sim import bench_chaos_sim
from mycelia.bench.cli import bench
from mycelia.bench.plans import FAULTS, ChaosSimBench
from mycelia.proto.wire.errors import LocalError


@pytest.mark.parametrize(
    ("expected", "got", "difference"),
    [
        ([1, 2, 3], [1, 2, 3], Difference()),
        ([], [], Difference()),
        ([1, 2, 3, 4], [1, 2], Difference(num_lost=2, first=2)),
        ([1, 2, 3, 4], [1, 4], Difference(num_lost=2, first=1)),
        ([1, 2, 3, 4], [1, 2, 2, 3, 4], Difference(num_repeated=1, first=1)),
        ([1, 2, 3, 4], [1, 2, 3, 4, 3, 4], Difference(num_repeated=2, first=2)),
        ([1, 2, 3, 4], [1, 9, 3, 4], Difference(num_wrong=1, first=1)),
        ([1, 2, 3, 4], [9, 9], Difference(num_lost=2, num_wrong=2, first=0)),
    ],
)
def test_differences(expected: list[int], got: list[int], difference: Difference) -> None:
    found = compare(expected, got)
    assert (found.num_lost, found.num_repeated, found.num_wrong) == (
        difference.num_lost,
        difference.num_repeated,
        difference.num_wrong,
    )
    assert (found.first is None) == (difference.first is None)
    if difference.first is not None and not difference.num_repeated:  # (which of two equal tokens repeats?)
        assert found.first == difference.first


def test_failures_and_ties_are_told_apart_from_differences() -> None:
    streams = [
        Stream(tokens=[1], gap_s=0.5, resumed=1, computed_s=0.2),
        Stream(failure="no node"),
        Stream(tokens=[2], gap_s=9.0),
        Stream(tokens=[3], gap_s=0.7, resumed=2, num_retries=1),
    ]
    differences = [Difference(num_wrong=3, first=0), Difference(num_lost=9, first=0), Difference(), Difference(1, 2, 3)]
    rows = {row.name: row.value for row in _rows(streams, differences, {0}, 5, 60.0)}
    assert (rows["finished"], rows["failed"], rows["ties"], rows["faults"]) == (3, 1, 1, 5)
    assert (rows["lost_tokens"], rows["repeated_tokens"], rows["wrong_tokens"]) == (1, 2, 3)
    assert rows["gap_s_p99"] == 0.7 and rows["resumed"] == 2 and rows["retried"] == 1
    assert rows["gap_over_prefill_s_p99"] == pytest.approx(0.3)


def test_the_simulated_bench_counts_what_its_clients_saw() -> None:
    report = bench_chaos_sim(ChaosSimBench(num_peers=4, length_s=60.0, rate=2.0))
    rows = {row.name: row.value for row in report.rows}
    assert rows["requests"] > 3 and rows["ttft_s_p50"] > 0
    assert [rows[f"{kind}_tokens"] for kind in ("lost", "repeated", "wrong")] == [0, 0, 0] and not rows["lost_requests"]
    with pytest.raises(LocalError, match="no prompt was asked"):
        bench_chaos_sim(ChaosSimBench(num_peers=2, length_s=0.001, rate=0.001))


def test_every_fault_can_be_chosen() -> None:
    (option,) = (param for param in bench.commands["chaos"].params if param.name == "faults")
    assert isinstance(option.type, click.Choice) and tuple(option.type.choices) == (*FAULTS, "all")


def test_an_unknown_fault_is_an_error() -> None:
    ran = CliRunner().invoke(bench, ["chaos-sim", "--fault", "earthquake"])
    assert ran.exit_code == 2 and "no fault earthquake; there are kill," in ran.output
