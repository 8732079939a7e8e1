"""A command on a machine without a node: its retries are one client's, at the entry node that gave it a retry time."""

import socket
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import click
import pytest
import trio
import trio.testing

from mycelia.bench.chaos.chaos import ask_once
from mycelia.node.client import ask
from mycelia.node.client.ask import ask_swarm
from mycelia.node.client.light import LightClient, NoEntryError
from mycelia.node.commands.ask import _ask
from mycelia.node.commands.checks import read_bootstrap
from mycelia.node.commands.entering import entering
from mycelia.node.network.identity import new_identity
from mycelia.node.network.memory import MemoryNetwork, MemorySwarm
from mycelia.node.network.network import NetworkSettings
from mycelia.node.peer_id import peer_text
from mycelia.node.storage.identity_file import load_or_create_identity
from mycelia.node.storage.private_swarms import create_swarm
from mycelia.node.storage.rundir import RunInfo
from mycelia.node.views.frames import AnsweredView, TextView
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Failed
from tests.node.members import LONG, Member, an_ask, open_members

NUM_RIVALS = 12
"""Clients at each node: more than run and wait there."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> "Opened":
    opened = Opened()
    monkeypatch.setattr("mycelia.node.network.libp2p.network.open_network", opened.open_network)
    return opened


class Opened:
    """A fake for libp2p: opens networks of ``swarm``, and records their peer ids."""

    def __init__(self) -> None:
        self.swarm: MemorySwarm | None = None
        self.peers: list[bytes] = []

    def open_network(self, settings: NetworkSettings) -> AbstractAsyncContextManager[MemoryNetwork]:
        assert self.swarm is not None
        self.peers.append(settings.identity.peer_id)
        return self.swarm.open_network(settings)


def addresses(members: Sequence[Member]) -> tuple[str, ...]:
    return tuple(f"/ip4/127.0.0.1/tcp/1/p2p/{peer_text(member.peer)}" for member in members)


async def keep_busy(member: Member, name: str) -> None:
    """Another client: it sends one prompt after the other, and asks again after each given retry time."""
    number = 0
    while True:
        async with member.node.ask(an_ask(f"{name} {number}", max_tokens=50), None, name.encode()) as frames:
            end = [frame async for frame in frames][-1]
        if isinstance(end, Failed):
            await trio.sleep(max(end.retry_after_ms / 1000, 0.2))
        else:
            number += 1


async def test_asking_finds_a_place_when_it_comes_again_as_told(
    autojump_clock: trio.testing.MockClock, opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        open_members(2, slots=1, max_waiting=4, decode_rate=10.0) as (opened.swarm, members),
        trio.open_nursery() as rivals,
    ):
        for member in members:
            for number in range(NUM_RIVALS):
                rivals.start_soon(keep_busy, member, f"rival {number} of {peer_text(member.peer)}")
        await trio.sleep(60)  # (of virtual time)
        with trio.fail_after(6_000):
            prompt, where = an_ask("at last", max_tokens=8), addresses(members)
            for _ in range(30):  # (a place may be free at this moment: one of so many tries has to come again)
                opened.peers.clear()
                await _ask(prompt, tmp_path, where, LightClient(), None, wait=True, explain=False, as_json=False)
                if len(opened.peers) > 1:
                    break
        rivals.cancel_scope.cancel()
    assert len(opened.peers) == 2 and len(set(opened.peers)) == 1, "refused once, then held until a node had a place"
    assert capsys.readouterr().out.strip()


async def test_a_client_enters_where_it_did_before_if_it_can(
    autojump_clock: trio.testing.MockClock, opened: Opened, tmp_path: Path
) -> None:
    async with open_members(2) as (opened.swarm, members):
        client = LightClient(entry=members[1].peer)

        async def entered() -> bytes | None:
            async with ask_swarm(an_ask("hello"), tmp_path, addresses(members), 60.0, client) as frames:
                assert isinstance([frame async for frame in frames][-1], AnsweredView)
            return client.entry

        assert await entered() == await entered() == members[1].peer
        opened.swarm.cut(members[1].peer)
        assert await entered() == members[0].peer
        opened.swarm.heal(members[1].peer)
        assert await entered() == members[0].peer
    assert len(set(opened.peers)) == 1


async def test_who_waits_tries_again_while_no_node_can_be_reached(
    autojump_clock: trio.testing.MockClock, opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_members(1) as (opened.swarm, members):
        opened.swarm.cut(members[0].peer)
        prompt, where = an_ask("hello", max_tokens=4), addresses(members)
        with pytest.raises(NoEntryError, match="no node could be reached"):
            await _ask(prompt, tmp_path, where, LightClient(), None, wait=False, explain=False, as_json=False)
        with pytest.raises(NoEntryError):
            await _ask(prompt, tmp_path, where, LightClient(), 30.0, wait=True, explain=False, as_json=False)
        num_tries = len(opened.peers)
        assert 4 < num_tries < 20

        async def heal() -> None:
            await trio.sleep(60)  # (of virtual time)
            assert opened.swarm is not None
            opened.swarm.heal(members[0].peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(heal)
            await _ask(prompt, tmp_path, where, LightClient(), None, wait=True, explain=False, as_json=False)
        told = capsys.readouterr()
        assert told.out.strip() and told.err.count("trying again") == 2, "once a command"
        opened.swarm.cut(members[0].peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(heal)
            stream = await ask_once(an_ask("hello"), addresses(members))
    assert not stream.failure and stream.num_retries > 4


async def test_of_a_node_that_takes_long_only_words_are_told(
    opened: Opened, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_members(1, prefill_rate=1.0) as (swarm, members):
        opened.swarm = swarm
        async with ask_swarm(an_ask(LONG, 3), tmp_path, addresses(members)) as frames:
            told = [frame async for frame in frames]
    assert isinstance(told[-1], AnsweredView) and told[-1].ttft_ms > 300_000
    assert "" not in [frame.text for frame in told if isinstance(frame, TextView)]


@pytest.mark.parametrize(("model", "num_opened"), [("", 0), ("@public", 1)])
async def test_a_prompt_of_a_private_swarm_goes_to_nobody_else_when_its_node_is_lost(
    model: str,
    num_opened: int,
    opened: Opened,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The bootstrap peers are those of the open network."""

    async def lost(*_: object) -> None:
        raise ask.EntryLostError("the node went away")

    home = RunInfo(1, "http://127.0.0.1:1", peer_text(new_identity().peer_id), swarm="home", public=True)
    monkeypatch.setattr(ask, "ask_local", lost)
    monkeypatch.setattr(ask, "find_running", lambda _: home)
    async with open_members(1) as (opened.swarm, members):

        async def answered() -> bool:
            async with ask_swarm(an_ask("hello", model=model), tmp_path, addresses(members)) as frames:
                return isinstance([frame async for frame in frames][-1], AnsweredView)

        if num_opened:
            assert await answered()
        else:
            with pytest.raises(LocalError, match="private swarm is asked through it alone"):
                await answered()
    assert len(opened.peers) == num_opened


def test_where_a_private_swarm_is_known_nobody_else_is_asked_unless_the_user_says_so(tmp_path: Path) -> None:
    default, me = read_bootstrap(()), load_or_create_identity(tmp_path)
    assert entering(tmp_path, (), False, "", "", None)[1] == default
    create_swarm(tmp_path, "home", me.peer_id, (), (), 0.0)
    given = f"/ip4/192.0.2.1/tcp/1/p2p/{peer_text(new_identity().peer_id)}"
    for swarm in ("", "home"):
        client, entries = entering(tmp_path, (), False, swarm, "", None)
        assert client.access is not None and client.identity.peer_id == me.peer_id and entries == ()
    for bootstrap, is_public, entries in (((), True, default), ((given,), False, (given,))):
        client, found = entering(tmp_path, bootstrap, is_public, "", "", None)
        assert found == entries and client.access is None and client.identity.peer_id != me.peer_id
    with pytest.raises(click.UsageError):
        entering(tmp_path, (), True, "home", "", None)
    create_swarm(tmp_path, "work", me.peer_id, (), (), 0.0)
    with pytest.raises(LocalError, match="in the private swarms home, work: name one"):
        entering(tmp_path, (), False, "", "", None)


def test_a_node_in_another_swarm_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_swarm(tmp_path, "home", load_or_create_identity(tmp_path).peer_id, (), (), 0.0)
    for swarm, says in (("", "the open network, not in home"), ("work", "work, not in home")):
        info = RunInfo(1, "http://127.0.0.1:1", "", swarm=swarm)
        monkeypatch.setattr("mycelia.node.storage.rundir.find_running", lambda _, info=info: info)
        with pytest.raises(LocalError, match=says):
            entering(tmp_path, (), False, "home", "", None)


async def test_a_node_here_that_is_silent_costs_no_more_than_the_time_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was stopped: the kernel still takes its connections."""
    monkeypatch.setattr(ask, "LATE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        info = RunInfo(1, f"http://127.0.0.1:{silent.getsockname()[1]}", "12D3")
        monkeypatch.setattr(ask, "find_running", lambda data_dir: info)
        with trio.fail_after(60), pytest.raises(LocalError, match="did not answer in the time it was given"):
            await asked_within(0.1, tmp_path)


async def asked_within(timeout_s: float, data_dir: Path) -> None:
    async with ask_swarm(an_ask("Hi"), data_dir, (), timeout_s) as frames:
        async for _ in frames:
            pass
