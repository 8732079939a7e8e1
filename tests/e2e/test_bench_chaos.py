"""Real nodes that fail under load: every answer is the undisturbed one. How long clients wait is not for tests.

Most of this takes a minute of faults and runs in ``make nightly``; in ``make test`` the simulated chaos has the same
faults.
"""

import subprocess
from dataclasses import replace

import pytest
import trio

from mycelia.bench.chaos.chaos import bench_chaos
from mycelia.bench.chaos.faults import can_move_clocks, can_slow_disks
from mycelia.bench.chaos.liveness import bench_liveness
from mycelia.bench.chaos.soak import bench_soak
from mycelia.bench.plans import (
    CLOCK,
    DELAY,
    ENGINE,
    FULL_DISK,
    KILL,
    LOSS,
    PARTITION,
    SLOW_DISK,
    STORM,
    ChaosBench,
    LivenessBench,
    SoakBench,
)  # fmt: skip
from mycelia.node.local_swarm.processes import COMMAND, LocalSwarm
from tests.e2e.conftest import DEADLINE_S, ask, parse_answer

pytestmark = pytest.mark.e2e

SMALL = ChaosBench(num_nodes=3, num_prompts=3, max_tokens=150, at_once=3, every_s=1.0, model="fake", exact=False)
PROMPT = "Tell a long story."
"""The fake model's answer takes long enough for a kill in the middle."""


@pytest.mark.nightly
@pytest.mark.usefixtures("fresh_processes")
async def test_no_token_is_lost_or_repeated_when_nodes_and_engines_are_killed() -> None:
    bench = replace(SMALL, num_streams=9, faults=(KILL, ENGINE))
    with trio.fail_after(3 * DEADLINE_S):
        report = await bench_chaos(bench)
    value = {row.name: row.value for row in report.rows}
    assert value["finished"] == 9, value
    assert value["lost_tokens"] == value["repeated_tokens"] == value["wrong_tokens"] == 0, value
    assert value["faults"] >= 1


@pytest.mark.nightly
@pytest.mark.usefixtures("fresh_processes")
@pytest.mark.parametrize("faults", [(STORM, FULL_DISK), (CLOCK,), (SLOW_DISK,), (DELAY, LOSS, PARTITION)])
async def test_no_answer_suffers_from_storms_bad_disks_wrong_clocks_and_bad_lines(faults: tuple[str, ...]) -> None:
    if CLOCK in faults and not can_move_clocks():
        pytest.skip("libfaketime is not installed")
    if SLOW_DISK in faults and not can_slow_disks():
        pytest.skip("strace is not installed, or may not trace")
    bench = replace(SMALL, num_streams=6, faults=faults)
    with trio.fail_after(3 * DEADLINE_S):
        report = await bench_chaos(bench)
    value = {row.name: row.value for row in report.rows}
    assert value["finished"] == 6 and value["faults"] >= 1, value
    assert value["lost_tokens"] == value["repeated_tokens"] == value["wrong_tokens"] == 0, value


@pytest.mark.nightly
@pytest.mark.usefixtures("fresh_processes")
async def test_others_know_who_is_killed_frozen_cut_off_or_without_an_engine_and_who_is_back() -> None:
    with trio.fail_after(3 * DEADLINE_S):
        report = await bench_liveness(LivenessBench(num_nodes=3, runs=1))
    # (all nodes noticed each fault, or the benchmark would have given up; how soon is not for tests)
    assert len(report.rows) == 8 and all(row.value > 0 for row in report.rows), report.rows


async def test_ask_goes_on_elsewhere_when_the_node_of_this_machine_is_killed(swarm: LocalSwarm) -> None:
    with trio.fail_after(DEADLINE_S):
        here = await swarm.start("here", options=["--model", "fake"])
        other = await swarm.start("other", [await here.address()], ["--model", "fake"])
        await here.wait_peers(1)
        address = await other.address()
        expected = await ask(other, PROMPT, "--max-tokens", "150")
        where = ("--data-dir", str(here.data_dir), "--bootstrap", address)
        process = await trio.lowlevel.open_process(
            [*COMMAND, "ask", "--json", *where, "--max-tokens", "150", PROMPT],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        said = b""
        async for chunk in process.stdout:
            said += bytes(chunk)
            if b'"type":"text"' in said and here.process.returncode is None:
                here.kill()
        assert await process.wait() == 0
    answer = parse_answer(said.decode())
    assert answer.text == expected.text and answer.answered.served_by == (await other.wait_ready()).peer
    assert answer.answered.resumed in (1, 2), "on a busy machine the answer may have moved once more before"
    assert answer.answered.completion_tokens == expected.answered.completion_tokens


@pytest.mark.nightly
@pytest.mark.usefixtures("fresh_processes")
async def test_a_soak_counts_what_is_left() -> None:
    bench = SoakBench(length_s=12.0, num_nodes=2, every_s=3.0, model="fake", think_s=0.1, quiet_s=1.0)
    with trio.fail_after(3 * DEADLINE_S):
        report, soak = await bench_soak(bench)
    value = {row.name: row.value for row in report.rows}
    assert value["answered"] > 5 and value["kills"] >= 1 and value["engines_lost"] == 0, value
    assert value["leaked_streams"] == 0 and set(soak.samples) == {0} and soak.samples[0][0].node_rss > 1 << 20
