"""The times at which a node writes its state. After a kill at any moment only the latest changes are missing."""

from pathlib import Path

import pytest
import trio
import trio.testing

from mycelia.node.app import Node
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.settings import FakeSettings
from mycelia.node.network.identity import Identity
from mycelia.node.network.network import NetworkSettings
from mycelia.node.peer_id import peer_text
from mycelia.node.storage import saving
from mycelia.node.storage.known_peers import PEERS_FILE
from mycelia.node.storage.saving import AT_ONCE_S, FLOORS_FILE, NEW_PEER_S, SAVE_INTERVAL_S, TRUST_FILE, load_kept
from mycelia.proto.events import Malformed
from tests.damage import contents
from tests.node.members import Member, open_members
from tests.node.threads import run_here

NOW = 2_000_000_000.0
STABLE_ENOUGH_S = 11.0


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "run_in_thread", run_here)


def listens_at(port: int) -> tuple[str, ...]:
    return (f"/ip4/192.0.2.1/tcp/{port}",)


async def test_a_node_that_is_killed_remembers_who_was_there(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_members(2, listen=listens_at) as (_, (one, two)), trio.open_nursery() as nursery:
        nursery.start_soon(one.node.state_saver(tmp_path).run)
        await trio.sleep(SAVE_INTERVAL_S + 1)
        kept = load_kept(tmp_path, NOW)
        assert [known.peer for known in kept.known.rows(NOW)] == [two.peer]
        assert kept.known.full_addresses() == [f"{listens_at(2)[0]}/p2p/{peer_text(two.peer)}"]
        assert [floor.owner for floor in kept.floors] == [two.peer]
        nursery.cancel_scope.cancel()


async def test_a_new_peer_is_written_soon(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2, listen=listens_at) as (swarm, (one, two)), trio.open_nursery() as nursery:
        swarm.cut(two.peer)
        nursery.start_soon(one.node.state_saver(tmp_path).run)
        await trio.sleep(1)
        swarm.heal(two.peer)
        await trio.sleep(NEW_PEER_S + 2)
        assert len(load_kept(tmp_path, NOW).known) == 1
        nursery.cancel_scope.cancel()


async def test_who_is_put_in_quarantine_is_forgotten_at_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_members(3, listen=listens_at) as (_, (one, two, three)), trio.open_nursery() as nursery:
        nursery.start_soon(one.node.state_saver(tmp_path).run)
        await trio.sleep(SAVE_INTERVAL_S + 1)
        assert len(load_kept(tmp_path, NOW).known) == 2
        misbehave(one, two)
        await trio.sleep(AT_ONCE_S + 1)
        kept = load_kept(tmp_path, NOW)
        assert [known.peer for known in kept.known.rows(NOW)] == [three.peer]
        assert [(one.peer, one.offences) for one in kept.trust.offenders] == [(two.peer, 10.0)]
        nursery.cancel_scope.cancel()


def misbehave(one: Member, other: Member) -> None:
    for _ in range(10):
        one.network.events_queue.offer(Malformed(other.peer, "nonsense"))


async def test_all_is_written_at_the_end(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2, listen=listens_at) as (_, (one, _)), trio.open_nursery() as nursery:
        nursery.start_soon(one.node.state_saver(tmp_path).run)
        await trio.sleep(STABLE_ENOUGH_S)
        nursery.cancel_scope.cancel()
    kept = load_kept(tmp_path, NOW)
    assert len(kept.known) == 1 and kept.floors


async def test_what_did_not_change_is_not_written_again(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, (one,)), trio.open_nursery() as nursery:
        nursery.start_soon(one.node.state_saver(tmp_path).run)
        await trio.sleep(SAVE_INTERVAL_S + 1)
        for name in contents(tmp_path):
            (tmp_path / name).unlink()
        await trio.sleep(3 * SAVE_INTERVAL_S)
        assert not contents(tmp_path)
        nursery.cancel_scope.cancel()


async def test_a_directory_that_cannot_be_written_ends_nothing(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_members(2, listen=listens_at) as (_, (one, _)), trio.open_nursery() as nursery:
        nursery.start_soon(one.node.state_saver(tmp_path / "gone").run)
        await trio.sleep(3 * SAVE_INTERVAL_S)
        (tmp_path / "gone").mkdir()
        await trio.sleep(SAVE_INTERVAL_S)
        assert contents(tmp_path / "gone").keys() == {file.name for file in (FLOORS_FILE, PEERS_FILE, TRUST_FILE)}
        nursery.cancel_scope.cancel()


async def test_a_quarantine_outlives_a_restart(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2) as (swarm, (one, two)):
        misbehave(one, two)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.node.state_saver(tmp_path).run)
            await trio.sleep(AT_ONCE_S + 2)
            nursery.cancel_scope.cancel()
        assert not one.node.state().peers
        settings = NetworkSettings(identity=Identity(b"again" + bytes(27)))
        async with swarm.open_network(settings) as network, trio.open_nursery() as nursery:
            again = Node(settings.identity, FakeEngine(FakeSettings()), network, 2, load_kept(tmp_path, NOW))
            await nursery.start(again.run)
            await trio.sleep(5)
            assert [row.peer for row in again.state().peers] == [peer_text(one.peer)]
            nursery.cancel_scope.cancel()
