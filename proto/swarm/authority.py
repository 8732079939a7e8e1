"""The authority of a private swarm: who is invited, who is a member, and the key.

One node, the admin, holds the authority's secret. Every change makes a new roster with a greater version, signed with
that secret. Times are the admin's: it issues invitations and judges them by the same clock, so the clocks of others do
not matter.

Invariant: at most MAX_INVITATIONS invitations are remembered, the oldest closed ones are forgotten first. An invitation
admits at most its number of uses. A peer that was removed does not come back through an invitation.
"""

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from mycelia.proto.swarm.keys import invitation_id_of, join_key_of, proof_key_of, proof_of
from mycelia.proto.swarm.roster import roster_payload
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import (
    MAX_INVITATIONS,
    MAX_MEMBERS,
    MAX_OLD_KEYS,
    Join,
    JoinKey,
    JoinRefused,
    Member,
    Roster,
)

MAX_REMOVED = 4_096
"""Removed peers that are remembered."""
MAX_ALLOWED = 512
Sign = Callable[[bytes], bytes]


class Issued(Struct, frozen=True):
    """An invitation as the admin remembers it."""

    invitation_id: bytes
    join_key: bytes
    proof_key: bytes
    made_at: int
    expires: int
    uses_left: int
    is_revoked: bool = False

    def state(self, now: float) -> str:
        """In a word: open, expired, used or revoked."""
        if self.is_revoked:
            return "revoked"
        if self.uses_left <= 0:
            return "used"
        return "expired" if now > self.expires else "open"


class Held(Struct, frozen=True):
    """All that the admin has to keep besides the roster."""

    seed: bytes
    """32 bytes, the authority's secret."""
    issued: tuple[Issued, ...] = ()
    allowed: tuple[bytes, ...] = ()
    """The only peers that may join; empty: all that are invited."""
    removed: tuple[bytes, ...] = ()


def founded(
    swarm: bytes, held: Held, sign: Sign, name: str, admin: Member, key: bytes, salt: bytes, models: tuple[str, ...]
) -> "Authority":
    """A new swarm whose only member is the admin. swarm: the public key of ``held.seed``."""
    roster = Roster(
        swarm=swarm,
        version=0,
        name=name,
        admin=admin.peer,
        epoch=1,
        key=key,
        old_keys=(),
        salt=salt,
        models=models,
        members=(admin,),
        join_keys=(),
        signature=bytes(64),
    )
    authority = Authority(roster, held, sign)
    authority.publish(roster)
    return authority


class Authority:
    """The admin's decisions. ``roster`` and ``held`` are what to save after each call that changes something."""

    def __init__(self, roster: Roster, held: Held, sign: Sign) -> None:
        self.roster = roster
        self.held = held
        self._sign = sign

    def publish(self, roster: Roster) -> None:
        """Makes ``roster``, with the next version and a signature, the swarm's. Mutates."""
        roster = replace(
            roster,
            version=self.roster.version + 1,
            join_keys=tuple(JoinKey(invitation_id=one.invitation_id, key=one.join_key) for one in self.held.issued),
        )
        self.roster = replace(roster, signature=self._sign(roster_payload(roster)))

    def invite(self, secret: bytes, lifetime_s: int, uses: int, now: float) -> Issued:
        """A new invitation. Raises LocalError when too many are open."""
        issued = Issued(
            invitation_id_of(secret), join_key_of(secret), proof_key_of(secret), int(now), int(now) + lifetime_s, uses
        )
        before = list(self.held.issued)
        while len(before) >= MAX_INVITATIONS:
            closed = next((one for one in before if one.state(now) != "open"), None)
            if closed is None:
                raise LocalError(
                    f"{MAX_INVITATIONS} invitations are open; close one with 'mycelia swarm revoke', or let one expire"
                )
            before.remove(closed)
        self.held = replace(self.held, issued=(*before, issued))
        self.publish(self.roster)
        return issued

    def join(self, request: Join, joiner: bytes, now: float) -> Roster | JoinRefused:
        """The answer to a request of ``joiner``, which has proven its peer id. Mutates when it becomes a member.

        A member that asks again, because it lost the answer or its files, gets the roster without a further use."""
        issued = next((one for one in self.held.issued if one.invitation_id == request.invitation_id), None)
        if issued is None or proof_of(issued.proof_key, self.roster.swarm, joiner) != request.proof:
            return JoinRefused(reason="unknown")
        if joiner in self.held.removed:
            return JoinRefused(reason="removed")
        if issued.is_revoked:
            return JoinRefused(reason="revoked")
        if any(member.peer == joiner for member in self.roster.members):
            return self.roster
        if (state := issued.state(now)) != "open":
            return JoinRefused(reason=state)
        if self.held.allowed and joiner not in self.held.allowed:
            return JoinRefused(reason="not_allowed")
        if len(self.roster.members) >= MAX_MEMBERS:
            return JoinRefused(reason="full")
        used = replace(issued, uses_left=issued.uses_left - 1)
        self.held = replace(self.held, issued=tuple(used if one is issued else one for one in self.held.issued))
        member = Member(peer=joiner, name=request.name, since=max(int(now), 0))
        self.publish(replace(self.roster, members=(*self.roster.members, member)))
        return self.roster

    def remove(self, peer: bytes, new_key: bytes) -> None:
        """Ends a membership and changes the key. Raises LocalError when ``peer`` is no member, or is the admin."""
        if peer == self.roster.admin:
            raise LocalError("this node keeps the swarm and cannot be removed from it")
        rest = tuple(member for member in self.roster.members if member.peer != peer)
        if len(rest) == len(self.roster.members):
            raise LocalError("no member has this peer id; see 'mycelia swarm members'")
        removed = (*(one for one in self.held.removed if one != peer), peer)[-MAX_REMOVED:]
        self.held = replace(self.held, removed=removed)
        self._rekeyed(replace(self.roster, members=rest), new_key)

    def allow(self, peer: bytes) -> None:
        """Lets a peer join with an invitation, also one that was removed. Raises LocalError when too many are
        listed."""
        removed = tuple(one for one in self.held.removed if one != peer)
        allowed = self.held.allowed
        if allowed and peer not in allowed:
            if len(allowed) >= MAX_ALLOWED:
                raise LocalError(f"{MAX_ALLOWED} peers may join already")
            allowed = (*allowed, peer)
        self.held = replace(self.held, allowed=allowed, removed=removed)

    def revoke(self, invitation_id: bytes) -> None:
        """Closes an invitation. Raises LocalError when there is none with this id."""
        if all(one.invitation_id != invitation_id for one in self.held.issued):
            raise LocalError("there is no invitation with this id; see 'mycelia swarm members'")
        self.held = replace(
            self.held,
            issued=tuple(
                replace(one, is_revoked=True) if one.invitation_id == invitation_id else one for one in self.held.issued
            ),
        )
        self.publish(self.roster)

    def rotate(self, new_key: bytes) -> None:
        """Starts the next epoch with ``new_key``."""
        self._rekeyed(self.roster, new_key)

    def _rekeyed(self, roster: Roster, new_key: bytes) -> None:
        old_keys = (roster.key, *roster.old_keys)[:MAX_OLD_KEYS]
        self.publish(replace(roster, epoch=roster.epoch + 1, key=new_key, old_keys=old_keys))

    def check_invariants(self) -> None:
        assert len(self.held.issued) <= MAX_INVITATIONS
        assert len(self.roster.members) <= MAX_MEMBERS
        assert self.roster.key not in self.roster.old_keys
        members = [member.peer for member in self.roster.members]
        assert len(set(members)) == len(members) and self.roster.admin in members
        assert not set(members) & set(self.held.removed)
        assert all(one.uses_left >= 0 for one in self.held.issued)
