"""A swarm of the last release and of this version: they share prefixes, and no answer suffers when nodes are killed."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import msgspec
import pytest
import trio

from mycelia.bench.chaos.chaos import bench_chaos
from mycelia.bench.chaos.faults import of_version
from mycelia.bench.plans import ENGINE, FREEZE, KILL, STORM, ChaosBench
from mycelia.node.local_swarm.processes import COMMAND, LocalNode, LocalSwarm
from mycelia.node.version import VERSION, order_of
from mycelia.node.views.state import UpgradeView
from mycelia.proto.wire.blocks import STRIDE
from tests.e2e.conftest import DEADLINE_S, ask, peers_of, run_mycelia
from tests.e2e.releases import last_release, packages_of

pytestmark = [pytest.mark.e2e, pytest.mark.mixed]

MINUTES = 3
PREFIX = "The lighthouse keeper writes down every ship that passes, its flag and its course. " * 8


@pytest.fixture(scope="module")
def release() -> Path:
    return packages_of(last_release()[1])


async def started(swarm: LocalSwarm, release: Path, model: str) -> tuple[LocalNode, LocalNode]:
    """A node of the release, and one of this version that joined through it."""
    old = await swarm.start("old", options=["--model", model], command=(*of_version(release), *COMMAND))
    new = await swarm.start("new", [await old.address()], ["--model", model])
    for node in (old, new):
        await node.wait_ready()
        await node.wait_peers(1)
    return old, new


async def test_each_answers_for_the_other_with_its_prefixes(swarm: LocalSwarm, release: Path) -> None:
    with trio.fail_after(2 * DEADLINE_S):
        old, new = await started(swarm, release, "smollm2")
        (row,) = await peers_of(new)
        assert row.version == last_release()[0] and row.models == ["smollm2"]
        for first, second in ((old, new), (new, old)):
            own = (await first.wait_ready()).peer
            for number in count():  # (a node that is late on a busy machine may be avoided for a while)
                before = await blocks_known_at(second)
                prompt = f"{first.name} asks for the {number}. time. {PREFIX}"
                at = await ask(first, prompt, "--max-tokens", "4", "--temperature", "0")
                while at.answered.served_by == own and await blocks_known_at(second) <= before:
                    pass  # (until the digest with the prefix has arrived)
                again = await ask(second, f"{prompt} Again.", "--max-tokens", "4", "--temperature", "0")
                is_there = again.answered.served_by == at.answered.served_by
                if is_there and again.answered.cached_tokens >= STRIDE:
                    break


async def blocks_known_at(node: LocalNode) -> int:
    """Blocks that the digest of its only peer has."""
    (row,) = await peers_of(node)
    return row.digest_blocks


async def test_upgrade_check_sees_the_release(swarm: LocalSwarm, release: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        _, new = await started(swarm, release, "fake")
        done = await run_mycelia("upgrade", "--check", "--json", "--data-dir", str(new.data_dir))
    view = msgspec.json.decode(done.stdout, type=UpgradeView)
    version, _ = last_release()
    assert (view.newest, view.peers, view.is_newer) == (version, 1, order_of(version) > order_of(VERSION))


async def test_a_directory_of_the_release_is_taken_over(swarm: LocalSwarm, release: Path) -> None:
    """An upgrade in place: stop, start the new version with the same directory, and the swarm is found again."""
    with trio.fail_after(DEADLINE_S):
        old, new = await started(swarm, release, "fake")
        peer = (await old.wait_ready()).peer
        await old.wait_event(lambda event: event.get("event") == "ready")
        await old.stop()
        swarm.nodes.remove(old)
        again = await swarm.start("old", [await new.address()], ["--model", "fake"])
        assert (await again.wait_ready()).peer == peer
        await again.wait_event(lambda event: event.get("event") == "data_migrated")
        await again.wait_peers(1)


async def test_no_token_is_lost_or_wrong_under_faults(release: Path) -> None:
    """Three minutes of them, with the real model in exact mode, in which every token is the undisturbed one."""
    small = ChaosBench(num_nodes=4, num_prompts=6, max_tokens=48, at_once=3, every_s=4.0, threads=1)
    small = replace(small, faults=(KILL, ENGINE, FREEZE, STORM), other_version=release)
    num_faults, num_answered, minutes, round_ = 0.0, 0.0, 0.0, 0
    while minutes < MINUTES:
        with trio.fail_after(10 * DEADLINE_S):
            report = await bench_chaos(replace(small, num_streams=40, seed=round_))
        value = {row.name: row.value for row in report.rows}
        assert value["failed"] == value["lost_tokens"] == value["repeated_tokens"] == value["wrong_tokens"] == 0, value
        num_faults += value["faults"]
        num_answered += value["finished"]
        minutes += value["wall_s"] / 60
        round_ += 1
    assert num_faults >= 5 and num_answered >= 40
