"""A swarm behind delay proxies can be measured and predicted; its results are not for tests."""

import pytest
import trio

from mycelia.bench.plans import DIALOGUE, MMLU, SwarmBench
from mycelia.bench.swarm import calibrate, prompts
from mycelia.bench.swarm.swarm import bench_swarm
from tests.e2e.conftest import DEADLINE_S

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("workload", [MMLU, DIALOGUE])
async def test_two_nodes_at_a_distance_are_measured_and_predicted(
    monkeypatch: pytest.MonkeyPatch, workload: str
) -> None:
    for name in ("NUM_COLD", "NUM_WARM"):
        monkeypatch.setattr(calibrate, name, 2)  # (one prompt takes a fake engine seconds)
    monkeypatch.setattr(prompts, "PAUSE_S", 0.01)
    bench = SwarmBench(
        num_nodes=2,
        rtt_ms=30.0,
        workload=workload,
        num_requests=8,
        rate=20.0,
        model="fake",
        cells=65_536,
        policies=("random",),
    )
    with trio.fail_after(2 * DEADLINE_S):
        report, rounds = await bench_swarm(bench)
    value = {row.name: row.value for row in report.rows}
    assert value["requests"] == 8 and value["failed"] == 0
    assert value["rtt_ms_min"] >= 29.9  # (reported in tenths of a millisecond)
    assert 0 <= value["hit_ratio"] <= value["hit_bound"] <= 1
    assert value["sim_ttft_p50_s"] > 0
    (only,) = rounds
    (pair,) = only.pairs
    assert {outcome.served_by for outcome in pair.run.outcomes} <= {0, 1}
