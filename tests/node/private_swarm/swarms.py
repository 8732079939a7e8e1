"""Nodes of a private swarm on loopback, each with its own folder, for tests."""

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from mycelia.node.network.identity import Identity, new_identity
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.peer_id import peer_text
from mycelia.node.private_swarm.inviting import contact
from mycelia.node.private_swarm.joining import ask_to_join, contacts_of
from mycelia.node.private_swarm.member import PrivateSwarm
from mycelia.node.storage.private_swarms import authority_of, create_swarm, store_membership
from mycelia.proto.swarm.invitations import invitation_text, read_invitation
from mycelia.proto.wire.messages import Invitation
from tests.node.network.libp2p.network_helpers import node

NAME = "home"


@dataclass
class Place:
    """The folder and the identity of a node."""

    data_dir: Path
    identity: Identity

    @property
    def peer(self) -> bytes:
        return self.identity.peer_id


@dataclass
class Running:
    """A node that runs in the swarm."""

    place: Place
    network: Libp2pNetwork
    swarm: PrivateSwarm


def place(folder: Path, name: str) -> Place:
    made = folder / name
    made.mkdir(mode=0o700)
    return Place(made, new_identity())


def admin(folder: Path, allowed: tuple[bytes, ...] = ()) -> Place:
    """The node that makes the swarm."""
    made = place(folder, "admin")
    create_swarm(made.data_dir, NAME, made.peer, ("secret-model",), allowed, time.time())
    return made


@asynccontextmanager
async def running(where: Place) -> AsyncIterator[Running]:
    swarm = PrivateSwarm(where.data_dir, NAME, where.peer)
    settings = node(identity=where.identity, access=swarm, bootstrap=swarm.contacts)
    async with open_network(settings) as network, trio.open_nursery() as nursery:
        nursery.start_soon(swarm.run, network)
        try:
            yield Running(where, network, swarm)
        finally:
            nursery.cancel_scope.cancel()


def invitation(
    at: Place,
    by: Running,
    lifetime_s: int = 3_600,
    uses: int = 1,
    now: float | None = None,
    only: Sequence[str] = (),
) -> str:
    """An invitation of the admin ``at``, which names the node ``by``. only: its addresses that are named."""
    secret = os.urandom(16)
    with authority_of(at.data_dir, NAME) as authority:
        issued = authority.invite(secret, lifetime_s, uses, time.time() if now is None else now)
        swarm = authority.roster.swarm
    named = contact(peer_text(by.place.peer), only or by.network.addresses())
    return invitation_text(Invitation(swarm=swarm, secret=secret, name=NAME, expires=issued.expires, contacts=(named,)))


async def join(where: Place, text: str) -> None:
    """Raises LocalError when the node does not become a member."""
    read = read_invitation(text)
    roster = await ask_to_join(read, where.identity, where.data_dir.name)
    store_membership(where.data_dir, NAME, roster, tuple(contacts_of(read)))
