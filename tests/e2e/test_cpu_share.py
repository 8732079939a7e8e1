"""The processor time of real nodes can be measured; its value is not for tests."""

from math import isfinite

import pytest
import trio

from mycelia.bench.scale.cpu_share import ROWS, SWARM_2RPS, Setting, measure_cpu
from mycelia.bench.scale.load import Load
from tests.e2e.conftest import DEADLINE_S

pytestmark = pytest.mark.e2e


async def test_the_shares_of_two_nodes_are_measured() -> None:
    steps: list[str] = []
    setting = Setting(num_nodes=2, num_windows=1, rest_window_s=0.2, load_window_s=0.5, ramp_s=0.0, settles=False)
    with trio.fail_after(DEADLINE_S):
        rows = await measure_cpu(ROWS, setting, Load(rate=10.0, max_tokens=4), steps.append)
    names = {row.name for row in rows}
    assert names >= {f"{name}{suffix}" for name in (*ROWS, SWARM_2RPS) for suffix in ("", "_busiest", "_engine")}
    assert all(isfinite(row.value) and 0 <= row.min <= row.value <= row.max for row in rows)
    assert len(steps) == setting.num_steps(ROWS)
