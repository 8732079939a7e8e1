"""An invitation of a running node: a secret that the swarm's file remembers, and addresses at which members answer."""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio
from multiaddr import Multiaddr

from mycelia.node.client.local import fetch_state
from mycelia.node.network import addresses
from mycelia.node.peer_id import peer_from_text
from mycelia.node.storage.known_peers import PEERS_FILE
from mycelia.node.storage.private_swarms import authority_of, read_swarm, state_dir_of
from mycelia.node.storage.rundir import RunInfo
from mycelia.proto.swarm.authority import Issued
from mycelia.proto.swarm.invitations import invitation_text
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import MAX_CONTACT_ADDRESSES, MAX_CONTACTS, Contact, Invitation

SECRET_BYTES = 16
WAIT_S, LOOK_EVERY_S = 6.0, 0.3
"""How long a node that just started is given to find out how others reach it."""


@dataclass(frozen=True)
class Invited:
    """A new invitation."""

    text: str
    issued: Issued
    is_for_everywhere: bool
    """Whether it names an address that leads to a member from everywhere."""


async def invited(data_dir: Path, name: str, info: RunInfo, lifetime_s: int, uses: int, now: float) -> Invited:
    """A new invitation. Raises LocalError, which says why there can be none."""
    members = {member.peer for member in read_swarm(data_dir, name).roster.members}
    own = contact(info.peer, await _addresses(info), members)
    if not own.addresses:
        raise LocalError("this node has no address at which others could reach it; give it one with --listen")
    secret = os.urandom(SECRET_BYTES)
    with authority_of(data_dir, name) as authority:
        roster = authority.roster
        known = PEERS_FILE.peek(state_dir_of(data_dir, name)) or []
        others = [
            Contact(peer=one.peer, addresses=found)
            for one in sorted(known, key=lambda one: -one.connected_s)
            if one.peer in members and (found := _dialable(one.addresses, members))
        ]
        issued = authority.invite(secret, lifetime_s, uses, now)
    invitation = Invitation(
        swarm=roster.swarm,
        secret=secret,
        name=roster.name,
        expires=issued.expires,
        contacts=(own, *others[: MAX_CONTACTS - 2]),
    )
    named = [Multiaddr(data) for one in invitation.contacts for data in one.addresses]
    return Invited(invitation_text(invitation), issued, any(map(_leads_from_everywhere, named)))


async def _addresses(info: RunInfo) -> list[str]:
    """The addresses of a running node. Waits a while for one that leads to it from everywhere, if it listens for more
    than this machine."""
    found: list[str] = []
    with trio.move_on_after(WAIT_S):
        while True:
            found = (await fetch_state(info)).addresses
            if any(_leads_from_everywhere(Multiaddr(one)) for one in found) or all(map(_is_loopback, found)):
                break
            await trio.sleep(LOOK_EVERY_S)
    return found


def _leads_from_everywhere(address: Multiaddr) -> bool:
    return addresses.is_circuit(str(address)) or addresses.is_global(address)


def _is_loopback(address: str) -> bool:
    return addresses.is_loopback(Multiaddr(address))


def contact(peer: str, told: Sequence[str], members: Collection[bytes] = ()) -> Contact:
    """told: the full multiaddrs of a running node, those that lead to it from everywhere first."""
    bare = [address.removesuffix(f"/p2p/{peer}") for address in told]
    return Contact(peer=peer_from_text(peer), addresses=_dialable(bare, members))


def _dialable(told: Iterable[str], members: Collection[bytes]) -> tuple[bytes, ...]:
    """The first addresses in binary form. Those of this machine alone count only if there are no others, and those at
    relays that are members not at all: a joining peer cannot use them."""
    found = [Multiaddr(address) for address in told]
    found = [one for one in found if (circuit := addresses.relay_of(one)) is None or circuit[0] not in members]
    found = [address for address in found if not addresses.is_loopback(address)] or found
    return tuple(address.to_bytes() for address in found[:MAX_CONTACT_ADDRESSES])
