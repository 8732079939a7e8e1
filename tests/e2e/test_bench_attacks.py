"""The benchmark of attacks: its attackers follow their plans, and attack only this machine."""

import msgspec
import pytest
import trio

from mycelia.bench.attacks.command import bench_attacks
from mycelia.bench.attacks.honest import attacked, client_answer, open_victims
from mycelia.bench.attacks.strangers import ATTACKS, Plan, main
from mycelia.bench.plans import AttacksBench
from mycelia.node.engine.models import FAKE_MODEL
from mycelia.proto.wire.errors import LocalError
from tests.e2e.conftest import DEADLINE_S

pytestmark = pytest.mark.e2e


async def test_whoever_has_a_key_is_let_in_beside_half_heads_of_strangers() -> None:
    with trio.fail_after(3 * DEADLINE_S):
        report = await bench_attacks(AttacksBench(runs=1, groups=("http",)))
    assert [row.name for row in report.rows] == ["idle_http_s", "half_heads_http_ratio"]
    assert all(row.value > 0 and row.runs == 1 for row in report.rows)


@pytest.mark.parametrize("kind", ["connections", "kad_streams"])
async def test_a_client_is_answered_beside_strangers(kind: str) -> None:
    with trio.fail_after(3 * DEADLINE_S):
        async with open_victims([FAKE_MODEL] * 2) as victims, attacked(await victims.plan(kind)):
            answer = await client_answer(victims.addresses[0])
    assert not answer.failure, answer


async def test_nobody_else_is_attacked() -> None:
    for kind in ATTACKS:
        with pytest.raises(LocalError, match="only nodes on this machine"):
            await main(msgspec.json.decode(msgspec.json.encode(Plan(kind, ["/ip4/192.0.2.1/tcp/1"])), type=Plan))
