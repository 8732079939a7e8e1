"""The beliefs about one owner in one namespace, and how its heads compare. The rules are in ``estimates.py``."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from mycelia.proto.admission.subnets import counted_as
from mycelia.proto.digests.digest import ChangeLog
from mycelia.proto.digests.entry_set import NOTHING, EntrySet
from mycelia.proto.wire.messages import Head

Key = tuple[bytes, bytes]
"""(owner, namespace)."""

MAX_TELLERS = 4


class State(Enum):
    SYNCING = auto()
    LIVE = auto()
    SUSPECT = auto()


class Source(NamedTuple):
    """A peer that makes this node keep digests, and how it is counted."""

    peer: bytes
    subnet: str
    is_node: bool
    """Whether the peer sent a hello."""

    @property
    def name(self) -> str:
        """The name of its share."""
        return counted_as(self.subnet, self.peer)


@dataclass(slots=True)
class Estimate:
    account: Source
    """The peer for which this counts as kept: the owner while connected, otherwise the first peer that announced it."""
    head: Head | None = None
    """Head of the set held; None before the first set."""
    entries: EntrySet = field(default_factory=lambda: NOTHING)
    wanted: Head | None = None
    """Newest verified head, when it is newer than ``head``."""
    tellers: tuple[bytes, ...] = ()
    """Peers that brought heads of the owner, the latest first: they can be asked for the bytes."""
    heard_at: float = 0.0
    suspect: bool = False
    is_doubted: bool = False
    """A relay's log did not lead on from the set held: relay or owner lied, so the next set is fetched whole."""
    paid_until: float = 0.0
    """Time at which the sets taken so far are paid for, at one per ``delta_min_gap_s``."""
    log: ChangeLog = field(default_factory=ChangeLog)
    """Changes of the set held, to serve readers that are a little behind."""

    @property
    def state(self) -> State:
        if self.suspect:
            return State.SUSPECT
        return State.SYNCING if self.wanted is not None or self.head is None else State.LIVE

    @property
    def newest(self) -> Head | None:
        return self.wanted or self.head

    def told_by(self, peer: bytes) -> None:
        """``peer`` brought a valid head. Mutates."""
        if peer and self.tellers[:1] != (peer,):
            self.tellers = (peer, *(other for other in self.tellers if other != peer))[:MAX_TELLERS]


def version_of(head: Head | None) -> tuple[int, int]:
    """The version of ``head``; (0, 0) for None."""
    return (head.epoch, head.seq) if head is not None else (0, 0)


def same_set(one: Head, other: Head | None) -> bool:
    """Whether both heads commit to one set, at any version."""
    return other is not None and (one.root, one.count) == (other.root, other.count)


def same_signed(one: Head, other: Head | None) -> bool:
    """Whether both heads sign one set under one version."""
    return same_set(one, other) and version_of(one) == version_of(other)


def reaches(held: Head | None, head: Head, from_seq: int) -> bool:
    """Whether changes since ``from_seq`` lead from the set held to ``head``."""
    if held is None:
        return from_seq == 0
    if held.epoch != head.epoch:
        return from_seq == 0 and held.count == 0
    return from_seq <= held.seq < head.seq


def commits(head: Head, entries: EntrySet) -> bool:
    return head.count == len(entries) and head.root == entries.root()
