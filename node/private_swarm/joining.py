"""Joining a private swarm with an invitation, from a node that is in none of its rooms yet."""

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

import trio
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.identity import Identity, verify
from mycelia.node.network.network import NetworkError, NetworkSettings
from mycelia.node.peer_id import peer_text
from mycelia.proto.swarm.invitations import is_over
from mycelia.proto.swarm.keys import invitation_id_of, join_key_of, proof_key_of, proof_of
from mycelia.proto.swarm.roster import Purpose, is_signed
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Invitation, Join, JoinRefused, Message, Roster

JOIN_DEADLINE_S = 30.0
TRY_DEADLINE_S = 10.0
MAX_TRIES, AGAIN_S = 4, 0.5
"""Tries of each address, and the pause between them."""

REFUSALS = {
    "unknown": "its members do not know this invitation; ask for a new one",
    "expired": "this invitation has expired; ask for a new one",
    "used": "this invitation has been used up; ask for a new one",
    "revoked": "this invitation has been revoked; ask for a new one",
    "removed": "this node was removed from it; its admin can change that with 'mycelia swarm allow PEER_ID'",
    "not_allowed": "only listed peers may join it; its admin can add yours, which 'mycelia id' prints, with"
    " 'mycelia swarm allow PEER_ID'",
    "full": "it has no room for more members",
    "admin_away": "the node that decides who joins is not connected now; try again when it runs",
}
"""What each reason means for the user."""


@dataclass(frozen=True)
class JoinAccess:
    """The ``SwarmAccess`` of a node that is not a member yet: it dials with the invitation's key and lets nobody in."""

    key: bytes

    async def new_key(self) -> None:
        await trio.sleep_forever()

    def opened_by(self, nonce: bytes) -> tuple[bytes, Purpose]:
        return self.key, Purpose.JOIN

    def members(self) -> list[bytes]:
        return []

    def is_member(self, peer: bytes) -> bool:
        return False

    def request(self) -> Message:
        raise AssertionError("a node that joins makes its own request")

    async def learn(self, answer: Message) -> bool:
        return False

    async def answer(self, request: Message, peer: bytes, purpose: Purpose) -> Message | None:
        return None


def contacts_of(invitation: Invitation) -> list[str]:
    """Full multiaddrs of the members that an invitation names. Those that cannot be dialled are left out."""
    found = []
    for contact in invitation.contacts:
        for data in contact.addresses:
            try:
                text = f"{Multiaddr(data)}/p2p/{peer_text(contact.peer)}"
                addresses.parse_peer(text)
            except (LocalError, *addresses.UNREADABLE):
                continue
            found.append(text)
    return found


async def ask_to_join(invitation: Invitation, identity: Identity, name: str) -> Roster:
    """Asks all the members that the invitation names until one answers. Raises LocalError, which says why this node did
    not become a member, and what to do."""
    if is_over(invitation, time.time()):
        raise LocalError(f"cannot join {invitation.name}: {REFUSALS['expired']}, or set this machine's clock")
    targets = contacts_of(invitation)
    if not targets:
        raise LocalError("this invitation names no member that can be dialled; ask for a new one")
    request = Join(
        invitation_id=invitation_id_of(invitation.secret),
        proof=proof_of(proof_key_of(invitation.secret), invitation.swarm, identity.peer_id),
        name=name,
    )
    from mycelia.node.network.libp2p.network import open_network  # (imports libp2p, which takes a second)

    settings = NetworkSettings(identity=identity, overlay=False, access=JoinAccess(join_key_of(invitation.secret)))
    failures: dict[str, str] = {}
    answers: list[Message] = []
    async with open_network(settings) as network, AsyncExitStack() as carriers:
        if any(map(addresses.is_circuit, targets)):
            from mycelia.node.network.libp2p.carrier import open_carrier

            await carriers.enter_async_context(open_carrier(network, NetworkSettings(identity, overlay=False)))

        async def try_one(target: str, scope: trio.CancelScope) -> None:
            peer, address = addresses.parse_peer(target)
            for _ in range(MAX_TRIES):
                try:
                    with trio.fail_after(TRY_DEADLINE_S):
                        answer = await network.ask_entry(peer, address, request)
                except (NetworkError, trio.TooSlowError) as exc:
                    failures[target] = str(exc) or "no answer in time"
                    await trio.sleep(AGAIN_S)
                    continue
                answers.append(answer)
                if not (isinstance(answer, JoinRefused) and answer.reason == "admin_away"):
                    scope.cancel()
                return

        with trio.move_on_after(JOIN_DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for target in targets:
                    nursery.start_soon(try_one, target, nursery.cancel_scope)
    return _roster_in(answers, invitation, failures)


def _roster_in(answers: list[Message], invitation: Invitation, failures: dict[str, str]) -> Roster:
    for answer in reversed(answers):
        match answer:
            case Roster() if answer.swarm == invitation.swarm and is_signed(answer, verify):
                return answer
            case JoinRefused():
                raise LocalError(f"cannot join {invitation.name}: {REFUSALS[answer.reason]}")
    if answers:
        raise LocalError(f"cannot join {invitation.name}: a member sent a roster that its authority did not sign")
    told = "; ".join(f"{target}: {reason}" for target, reason in list(failures.items())[:3])
    raise LocalError(
        f"cannot join {invitation.name}: no member that the invitation names can be reached ({told or 'no answer'});"
        " is the node that made it running? Was the invitation revoked or expired long ago?"
    )
