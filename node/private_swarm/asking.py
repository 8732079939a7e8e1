"""A private swarm without a node on this machine: joining it, and asking its members as a client."""

import time
from pathlib import Path

from mycelia.node.client.light import LightClient
from mycelia.node.private_swarm.joining import ask_to_join, contacts_of
from mycelia.node.private_swarm.member import PrivateSwarm
from mycelia.node.storage.identity_file import load_or_create_identity
from mycelia.node.storage.known_peers import entries_known
from mycelia.node.storage.private_swarms import check_free, read_swarm, state_dir_of, store_membership, swarm_names
from mycelia.proto.wire.messages import Invitation, Roster


async def join_swarm(data_dir: Path, invitation: Invitation, name: str, label: str) -> Roster:
    """Becomes a member and keeps the membership as ``name``. label: the name of this node for the members. Raises
    LocalError."""
    check_free(data_dir, name, invitation.swarm)
    roster = await ask_to_join(invitation, load_or_create_identity(data_dir), label[:32])
    store_membership(data_dir, name, roster, tuple(contacts_of(invitation)))
    return roster


def name_of(data_dir: Path, swarm: bytes) -> str:
    """The name that a private swarm has here; empty: this machine is not in it. Raises LocalError."""
    return next((name for name in swarm_names(data_dir) if read_swarm(data_dir, name).roster.swarm == swarm), "")


def member_client(data_dir: Path, name: str) -> tuple[LightClient, tuple[str, ...]]:
    """A client that is a member, and the members to ask: those of the invitation, and those that this machine's node
    was connected with. Raises LocalError."""
    identity = load_or_create_identity(data_dir)
    swarm = PrivateSwarm(data_dir, name, identity.peer_id)
    known = entries_known(state_dir_of(data_dir, name), b"", time.time())
    return LightClient(identity, access=swarm, mdns=True), tuple(dict.fromkeys([*known, *swarm.contacts]))
