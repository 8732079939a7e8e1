"""What somebody without the key, or with a key that opens only the entry, gets from a member's port."""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from libp2p.utils import encode_delim

from mycelia.node.network import addresses
from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p.network import open_network
from mycelia.node.network.network import NetworkError, NetworkSettings
from mycelia.node.peer_id import peer_text
from mycelia.node.private_swarm.joining import JoinAccess
from mycelia.node.storage.private_swarms import authority_of
from mycelia.proto.swarm.invitations import read_invitation
from mycelia.proto.swarm.keys import invitation_id_of, join_key_of, proof_key_of, proof_of, tagged_nonce
from mycelia.proto.wire.messages import Join, JoinRefused, Message, RosterQuery
from tests.node.network.libp2p.network_helpers import PATIENCE_S, hello
from tests.node.private_swarm.swarms import NAME, Running, admin, invitation, join, place, running

HELLO = b"\x13/multistream/1.0.0\n\x07/noise\n"
OPENINGS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "plain libp2p": lambda: HELLO + bytes(200),
    "http": lambda: b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "random": lambda: os.urandom(400),
    "a nonce with another key": lambda: tagged_nonce(b"w" * 32, os.urandom(16)) + os.urandom(200),
    "a nonce, slowly": lambda: os.urandom(23),
}


async def received(port: int, opening: bytes) -> bytes:
    """All that a member's port sends to a stranger that says ``opening`` and then waits for the end."""
    said = b""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stranger:
        await stranger.connect(("127.0.0.1", port))
        if opening:
            await stranger.send(opening)
        with suppress(ConnectionResetError):
            while data := await stranger.recv(4_096):
                said += data
    return said


@pytest.mark.parametrize("opening", OPENINGS)
async def test_no_byte_names_the_model_the_swarm_or_its_members(opening: str, tmp_path: Path) -> None:
    at, guest = admin(tmp_path), place(tmp_path, "guest")
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home:
            await join(guest, invitation(at, home))
            port = int(home.network.addresses()[0].split("/")[4])
            both = [b"", b""]

            async def listen(number: int) -> None:
                both[number] = await received(port, OPENINGS[opening]())

            async with trio.open_nursery() as nursery:
                for number in range(2):
                    nursery.start_soon(listen, number)
            first, second = both
            names = [
                NAME.encode(),
                b"secret-model",
                b"guest",
                b"mycelia",
                b"libp2p",
                b"multistream",
                b"noise",
                b"yamux",
            ]
            names += [one for peer in (at.peer, guest.peer) for one in (peer, peer_text(peer).encode())]
            names += [home.swarm.roster.swarm, home.swarm.key, home.swarm.roster.salt]
            assert not any(name in said for name in names for said in (first, second))
            # a fresh nonce, and at most one line of the negotiation, encrypted: nothing repeats
            assert 24 <= len(first) <= 24 + len(encode_delim(b"/multistream/1.0.0")) + len(HELLO)
            assert (first[:24] != second[:24] and first[24:32] != second[24:32]) or len(first) == 24


async def asked(home: Running, key: bytes, request: Message) -> Message:
    """The answer of a member to somebody who has ``key``."""
    peer, address = addresses.parse_peer(home.network.addresses()[0])
    settings = NetworkSettings(identity=new_identity(), overlay=False, access=JoinAccess(key))
    async with open_network(settings) as network:
        return await network.ask_entry(peer, address, request)


async def test_the_secret_of_a_used_or_revoked_invitation_opens_nothing(tmp_path: Path) -> None:
    at, guest = admin(tmp_path), place(tmp_path, "guest")
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home:
            used, revoked = invitation(at, home), invitation(at, home)
            await join(guest, used)
            with authority_of(at.data_dir, NAME) as authority:
                authority.revoke(invitation_id_of(read_invitation(revoked).secret))
            for text, reason in ((used, "used"), (revoked, "revoked")):
                secret = read_invitation(text).secret
                request = Join(invitation_id=invitation_id_of(secret), proof=bytes(16), name="")
                assert await asked(home, join_key_of(secret), request) == JoinRefused(reason="unknown")
                identity = new_identity()
                right = Join(
                    invitation_id=invitation_id_of(secret),
                    proof=proof_of(proof_key_of(secret), home.swarm.roster.swarm, identity.peer_id),
                    name="",
                )
                peer, address = addresses.parse_peer(home.network.addresses()[0])
                settings = NetworkSettings(identity=identity, overlay=False, access=JoinAccess(join_key_of(secret)))
                async with open_network(settings) as network:
                    assert await network.ask_entry(peer, address, right) == JoinRefused(reason=reason)


async def test_the_key_of_an_invitation_gets_no_other_answer(tmp_path: Path) -> None:
    at = admin(tmp_path)
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home:
            key = join_key_of(read_invitation(invitation(at, home)).secret)
            for request in (home.swarm.roster, RosterQuery(version=0), hello()):
                with pytest.raises(NetworkError):
                    await asked(home, key, request)


async def test_the_members_key_without_membership_gets_no_roster(tmp_path: Path) -> None:
    at = admin(tmp_path)
    with trio.fail_after(PATIENCE_S):
        async with running(at) as home:
            assert await asked(home, home.swarm.key, home.swarm.roster) == JoinRefused(reason="removed")
            with pytest.raises(NetworkError):
                await asked(home, home.swarm.key, RosterQuery(version=0))
