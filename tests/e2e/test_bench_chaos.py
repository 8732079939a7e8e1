"""Real nodes that die under load: every answer is the undisturbed one. How long clients wait is not for tests."""

import pytest
import trio

from node.bench.chaos import ENGINE, KILL, ChaosBench, bench_chaos
from tests.e2e.conftest import DEADLINE_S

pytestmark = pytest.mark.e2e


async def test_no_token_is_lost_or_repeated_when_nodes_and_engines_are_killed() -> None:
    bench = ChaosBench(
        num_nodes=3,
        num_streams=9,
        num_prompts=3,
        max_tokens=150,
        at_once=3,
        every_s=1.0,
        faults=(KILL, ENGINE),
        model="fake",
        exact=False,
    )
    with trio.fail_after(3 * DEADLINE_S):
        report = await bench_chaos(bench)
    value = {row.name: row.value for row in report.rows}
    assert value["finished"] == 9, value
    assert value["lost_tokens"] == value["repeated_tokens"] == value["wrong_tokens"] == 0, value
    assert value["faults"] >= 1
