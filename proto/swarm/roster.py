"""A member's side of a private swarm: the newest roster that it knows, and what it may do for others.

Invariant: the roster is signed by the swarm's authority, its version only grows, and this node is one of its members.
Rosters spread from member to member, so the greatest version wins wherever it comes from. A member that is no longer in
a newer roster has been removed: the old roster stays, and no peer accepts it any more.
"""

from collections.abc import Callable
from enum import Enum, auto

from msgspec.structs import replace

from mycelia.proto.swarm.keys import key_of_nonce
from mycelia.proto.wire.codec import encode
from mycelia.proto.wire.messages import Roster

SIGNED_PREFIX = b"mycelia swarm roster v1\x00"
PUBLIC_KEY_PREFIX = bytes.fromhex("002408011220")
"""The peer id of an Ed25519 key is this and the key."""

Verify = Callable[[bytes, bytes, bytes], bool]
"""(peer id of the signer, payload, signature) -> whether the signature is right."""


def roster_payload(roster: Roster) -> bytes:
    """The bytes that the authority signs."""
    return SIGNED_PREFIX + encode(replace(roster, signature=bytes(64)))


def is_signed(roster: Roster, verify: Verify) -> bool:
    return verify(PUBLIC_KEY_PREFIX + roster.swarm, roster_payload(roster), roster.signature)


class Purpose(Enum):
    """What a connection is for, by the key that it uses."""

    MEMBERS = auto()
    """A member's connection."""
    RENEWAL = auto()
    """An earlier epoch's key: only the newest roster is handed out, to members."""
    JOIN = auto()
    """An invitation's key: only a request for membership is answered."""


class Adoption(Enum):
    """What became of a roster that arrived."""

    NEW = auto()
    OLD = auto()
    """Known already, or older."""
    WRONG = auto()
    """The roster of another swarm, or one that its authority did not sign."""
    REMOVED = auto()
    """Newer, and this node is not in it."""


class RosterView:
    """The roster as one member sees it. Pure: it neither reads clocks nor sends."""

    def __init__(self, roster: Roster, me: bytes, verify: Verify) -> None:
        self._me = me
        self._verify = verify
        self.is_removed = False
        """Whether a newer roster leaves this node out."""
        self._take(roster)

    def _take(self, roster: Roster) -> None:
        self.roster = roster
        self._members = {member.peer for member in roster.members}
        self._purposes = dict.fromkeys((join.key for join in roster.join_keys), Purpose.JOIN)
        self._purposes |= dict.fromkeys(roster.old_keys, Purpose.RENEWAL)
        self._purposes = {roster.key: Purpose.MEMBERS} | {
            key: purpose for key, purpose in self._purposes.items() if key != roster.key
        }

    @property
    def key(self) -> bytes:
        """The key with which to dial."""
        return self.roster.key

    def is_member(self, peer: bytes) -> bool:
        return peer in self._members and not self.is_removed

    def opened_by(self, nonce: bytes) -> tuple[bytes, Purpose]:
        """The key and the purpose of a connection whose dialler sent ``nonce``. Untagged nonces, as of other libp2p
        programs, mean the members' key."""
        key = key_of_nonce(nonce, self._purposes)
        return (self.roster.key, Purpose.MEMBERS) if key is None else (key, self._purposes[key])

    def adopt(self, roster: Roster) -> Adoption:
        """Takes a roster that a peer sent, if it is newer. Mutates."""
        if roster.swarm != self.roster.swarm:
            return Adoption.WRONG
        if roster.version <= self.roster.version:
            return Adoption.OLD
        if not is_signed(roster, self._verify):
            return Adoption.WRONG
        if all(member.peer != self._me for member in roster.members):
            self.is_removed = True
            return Adoption.REMOVED
        self.is_removed = False
        self._take(roster)
        return Adoption.NEW

    def check_invariants(self) -> None:
        assert is_signed(self.roster, self._verify)
        assert self._me in self._members
        assert len(self._purposes) <= 1 + len(self.roster.old_keys) + len(self.roster.join_keys)
