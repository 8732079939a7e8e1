"""Private swarms on loopback, with real connections and real files: joining, members only, removal, new keys."""

import os
import time
from pathlib import Path

import pytest
import trio

from mycelia.node.network.libp2p.network import open_network
from mycelia.node.network.network import MessageStream, NetworkError
from mycelia.node.private_swarm.member import PrivateSwarm
from mycelia.node.storage.private_swarms import authority_of, read_swarm, store_membership
from mycelia.proto.wire.errors import LocalError
from tests.node.network.libp2p.network_helpers import PATIENCE_S, eventually, hello, node
from tests.node.private_swarm.swarms import NAME, Running, admin, invitation, join, place, running

ECHO = "/mycelia/test-echo/1"


async def echo(stream: MessageStream) -> None:
    await stream.send(await stream.receive())


async def is_answered(one: Running, other: Running) -> bool:
    other.network.serve(ECHO, echo)
    stream = await one.network.open(other.place.peer, ECHO)
    await stream.send(hello())
    return await stream.receive() == hello()


async def test_an_invited_node_joins_and_talks(tmp_path: Path) -> None:
    at, guest = admin(tmp_path), place(tmp_path, "guest")
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home:
            await join(guest, invitation(at, home))
            async with running(guest) as other:
                await eventually(lambda: other.network.peers() == [at.peer])
                assert await is_answered(other, home)


async def test_an_invited_node_joins_through_another_member(tmp_path: Path) -> None:
    at, member, guest = admin(tmp_path), place(tmp_path, "member"), place(tmp_path, "guest")
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home:
            await join(member, invitation(at, home))
            async with running(member) as at_member:
                await eventually(lambda: at_member.network.peers() == [at.peer])
                text = invitation(at, at_member)
                await eventually(lambda: at_member.swarm.roster == read_swarm(at.data_dir, NAME).roster)
                await join(guest, text)
                async with running(guest) as other:
                    await eventually(lambda: member.peer in other.network.peers())
                    assert await is_answered(other, at_member)


async def test_without_its_admin_a_swarm_admits_nobody_and_says_so(tmp_path: Path) -> None:
    at, member, guest = admin(tmp_path), place(tmp_path, "member"), place(tmp_path, "guest")
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home:
            await join(member, invitation(at, home))
            async with running(member) as at_member:
                text = invitation(at, at_member)
                await eventually(lambda: at_member.swarm.roster == read_swarm(at.data_dir, NAME).roster)
        async with running(member) as at_member:
            text = _with_addresses_of(text, at_member)
            with pytest.raises(LocalError, match="not connected now; try again"):
                await join(guest, text)


async def test_the_inviter_is_offline(tmp_path: Path) -> None:
    at, guest = admin(tmp_path), place(tmp_path, "guest")
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home:
            text = invitation(at, home)
        with pytest.raises(LocalError, match="is the node that made it running"):
            await join(guest, text)


async def test_what_a_refused_node_is_told(tmp_path: Path) -> None:
    at = admin(tmp_path)
    one, other = place(tmp_path, "one"), place(tmp_path, "other")
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home:
            text = invitation(at, home)
            await join(one, text)
            await join(one, text)  # (a second time changes nothing)
            with pytest.raises(LocalError, match="used up; ask for a new one"):
                await join(other, text)
            # (the joining node's clock is an hour behind)
            with pytest.raises(LocalError, match="expired; ask for a new one"):
                await join(other, invitation(at, home, lifetime_s=60, now=time.time() - 3_600))
            with pytest.raises(LocalError, match="expired; ask for a new one, or set this machine's clock"):
                await join(other, invitation(at, home, lifetime_s=60, now=time.time() - 3 * 3_600))
            text = invitation(at, home)
            with authority_of(at.data_dir, NAME) as authority:
                authority.revoke(authority.held.issued[-1].invitation_id)
            with pytest.raises(LocalError, match="revoked; ask for a new one"):
                await join(other, text)
            assert len(read_swarm(at.data_dir, NAME).roster.members) == 2


async def test_an_unlisted_peer_learns_what_to_do(tmp_path: Path) -> None:
    guest = place(tmp_path, "guest")
    at = admin(tmp_path, allowed=(place(tmp_path, "friend").peer,))
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home:
            with pytest.raises(LocalError, match="mycelia swarm allow PEER_ID"):
                await join(guest, invitation(at, home))


async def test_a_removed_member_is_cut_off_and_the_others_get_the_new_key(tmp_path: Path) -> None:
    at, loyal, removed = admin(tmp_path), place(tmp_path, "loyal"), place(tmp_path, "removed")
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home:
            for one in (loyal, removed):
                await join(one, invitation(at, home))
            async with running(loyal) as friend, running(removed) as foe:
                await eventually(lambda: len(home.network.peers()) == 2 and len(foe.network.peers()) >= 1)
                old_key = home.swarm.key
                with authority_of(at.data_dir, NAME) as authority:
                    authority.remove(removed.peer, os.urandom(32))
                await eventually(lambda: home.swarm.key == friend.swarm.key != old_key)
                await eventually(lambda: home.network.peers() == [loyal.peer] and foe.network.peers() == [])
                assert foe.swarm.key == old_key
                with pytest.raises(NetworkError):
                    await foe.network.connect(home.network.addresses()[0])
                assert await is_answered(friend, home)


async def test_a_member_that_was_away_gets_the_new_key_when_it_returns(tmp_path: Path) -> None:
    at, away = admin(tmp_path), place(tmp_path, "away")
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home:
            await join(away, invitation(at, home))
            for _ in range(3):
                with authority_of(at.data_dir, NAME) as authority:
                    authority.rotate(os.urandom(32))
            await eventually(lambda: home.swarm.roster.epoch == 4)
            async with running(away) as back:
                await eventually(lambda: back.network.peers() == [at.peer])
                assert back.swarm.key == home.swarm.key
            assert read_swarm(away.data_dir, NAME).roster == home.swarm.roster


async def test_a_member_that_others_have_not_heard_of_is_let_in(tmp_path: Path) -> None:
    at, member, guest = admin(tmp_path), place(tmp_path, "member"), place(tmp_path, "guest")
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home:
            await join(member, invitation(at, home))
            await join(guest, invitation(at, home))
        async with running(member) as old, running(guest) as new:
            assert not old.swarm.is_member(guest.peer)
            assert await new.network.connect(old.network.addresses()[0]) == member.peer
            assert old.swarm.is_member(guest.peer)


async def test_the_key_alone_does_not_make_a_member(tmp_path: Path) -> None:
    at, thief = admin(tmp_path), place(tmp_path, "thief")
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home:
            settings = node(identity=thief.identity, swarm_key=home.swarm.key)
            async with open_network(settings) as outside:
                with pytest.raises(NetworkError, match="another swarm key"):
                    await outside.connect(home.network.addresses()[0])
                with pytest.raises(NetworkError, match="no member of this private swarm"):
                    await home.network.connect(outside.addresses()[0])
                await eventually(lambda: home.network.peers() == [] == outside.peers())


async def test_an_open_node_and_a_member_do_not_meet(tmp_path: Path) -> None:
    at = admin(tmp_path)
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home, open_network(node()) as outside:
            for one, other in ((home.network, outside), (outside, home.network)):
                with pytest.raises(NetworkError):
                    await one.connect(other.addresses()[0])


def test_an_identity_that_is_no_member_is_told_so(tmp_path: Path) -> None:
    at, other = admin(tmp_path), place(tmp_path, "other")
    store_membership(other.data_dir, NAME, read_swarm(at.data_dir, NAME).roster, ())
    with pytest.raises(LocalError, match="under another identity"):
        PrivateSwarm(other.data_dir, NAME, other.peer)


def _with_addresses_of(text: str, at_member: Running) -> str:
    """An invitation that names a node's present addresses."""
    from msgspec.structs import replace

    from mycelia.node.peer_id import peer_text
    from mycelia.node.private_swarm.inviting import contact
    from mycelia.proto.swarm.invitations import invitation_text, read_invitation

    named = contact(peer_text(at_member.place.peer), at_member.network.addresses())
    return invitation_text(replace(read_invitation(text), contacts=(named,)))


async def test_a_new_key_is_noticed(tmp_path: Path) -> None:
    at = admin(tmp_path)
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home, trio.open_nursery() as nursery:
            before = home.swarm.key
            nursery.start_soon(home.swarm.new_key)
            with authority_of(at.data_dir, NAME) as authority:
                authority.rotate(os.urandom(32))
        assert home.swarm.key != before
