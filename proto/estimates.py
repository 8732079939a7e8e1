"""The reader's side: what every peer's cache is believed to hold, at exactly which version.

Per (owner, namespace):

    UNKNOWN --(head)--> SYNCING --(bytes hash to the root)--> LIVE --(gap)--> SYNCING
    LIVE --(quiet for suspect_s, or disconnected)--> SUSPECT --(quiet for evict_s)--> forgotten, version floor kept

While SYNCING, the last verified set stays in use: stale, never wrong.

Invariants:
- an estimate equals the set its owner had at exactly its (epoch, seq), because it hashes to that signed root;
- versions per (owner, namespace) never decrease, also across eviction (floors);
- the index holds exactly the entries of the estimates;
- at most ``max_owners`` estimates with ``max_entries`` entries together. Owner keys cost nothing to make, so when the
  room is spent, owners that are not connected make way for those that are, and never the other way round.

Every method that takes bytes of a peer checks the signature before it changes anything, and raises RemoteError for
what only a misbehaving sender can cause. Late, duplicated and reordered messages are not misbehaviour, and neither is a
relayed head that was in order on the relay's clock and is not on this one: they are no-ops.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum, auto

from proto.cells import Owner
from proto.config import DigestConfig
from proto.digest import (
    LOG,
    NO_ROOT,
    SNAPSHOT,
    ChangeLog,
    Entries,
    Verify,
    repair_from,
    root_of,
    signed_payload,
    unpack_entries,
    unpack_hashes,
)
from proto.errors import RemoteError
from proto.floors import Floor, Floors
from proto.index import Index
from proto.messages import Announce, Delta, Head, Repair, RepairRequest, Version
from proto.refusals import Refusal

Key = tuple[bytes, bytes]
"""(owner, namespace)."""


class State(Enum):
    """Of an estimate; see the module's docstring."""

    SYNCING = auto()
    LIVE = auto()
    SUSPECT = auto()


class Outcome(Enum):
    """What a digest message did."""

    APPLIED = auto()
    """The estimate advanced."""
    STALE = auto()
    """Nothing new."""
    GAP = auto()
    """The head is newer, but the bytes to reach it are missing: ask for a repair."""


class Equivocation(RemoteError):
    """The owner signed two different sets under one version; the two heads prove it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Refusal.EQUIVOCATION)


@dataclass(slots=True)
class _Estimate:
    head: Head | None = None
    """Of the set held; None before the first set."""
    entries: Entries = field(default_factory=dict)
    wanted: Head | None = None
    """Newest verified head, when it is newer than ``head``."""
    heard_at: float = 0.0
    suspect: bool = False
    paid_until: float = 0.0
    """When the sets taken so far are paid for, at one per ``delta_min_gap_s``."""
    log: ChangeLog = field(default_factory=ChangeLog)
    """Of the set held, to serve others that are a little behind."""

    @property
    def state(self) -> State:
        if self.suspect:
            return State.SUSPECT
        return State.SYNCING if self.wanted is not None or self.head is None else State.LIVE


class Estimates:
    """All peers' digests of the namespaces this node follows."""

    def __init__(
        self, me: bytes, verify: Verify, config: DigestConfig, refusals: Counter[Refusal] | None = None
    ) -> None:
        """refusals: counts what is not used and costs nobody; what costs somebody is raised."""
        self._me = me
        self._refusals: Counter[Refusal] = Counter() if refusals is None else refusals
        self._verify = verify
        self._config = config
        self._estimates: dict[Key, _Estimate] = {}
        self._num_entries = 0
        self._connected: set[bytes] = set()
        """Owners whose nodes are connected."""
        self._floors = Floors(config.max_floors, config.floor_keep_s)
        self._indexes: dict[bytes, Index] = {}
        self._covers: dict[bytes, Callable[[bytes], bool]] = {}

    # --- reading ---------------------------------------------------------------------------------------------------

    def follow(self, namespace: bytes, covers: Callable[[bytes], bool] = lambda owner: True) -> None:
        """Accept digests of ``namespace`` from now on: of owners that are connected, and of those that ``covers``."""
        self._indexes.setdefault(namespace, Index())
        self._covers[namespace] = covers

    def follows(self, namespace: bytes) -> bool:
        return namespace in self._indexes

    def matches(self, namespace: bytes, chain: Sequence[int]) -> Mapping[bytes, int]:
        """Owner -> leading blocks of ``chain`` it is estimated to hold; nothing in a namespace that is not followed."""
        index = self._indexes.get(namespace)
        return index.matches(chain) if index else {}

    def state(self, owner: bytes, namespace: bytes) -> State | None:
        """None for an unknown owner."""
        estimate = self._estimates.get((owner, namespace))
        return estimate.state if estimate else None

    def version(self, owner: bytes, namespace: bytes) -> tuple[int, int]:
        """(epoch, seq) of the set held; (0, 0) for none."""
        estimate = self._estimates.get((owner, namespace))
        return _version(estimate.head) if estimate else (0, 0)

    def holds(self, head: Head) -> bool:
        """Whether the set held of ``head.owner`` is the one that ``head`` commits to, at any version."""
        estimate = self._estimates.get((head.owner, head.namespace))
        return estimate is not None and _same_set(head, estimate.head)

    def entries(self, owner: bytes, namespace: bytes) -> Mapping[int, int]:
        estimate = self._estimates.get((owner, namespace))
        return estimate.entries if estimate else {}

    @property
    def num_entries(self) -> int:
        """Kept of all owners together."""
        return self._num_entries

    def needs_repair(self, owner: bytes, namespace: bytes) -> bool:
        """Whether a newer head than the set held is known."""
        estimate = self._estimates.get((owner, namespace))
        return estimate is not None and estimate.wanted is not None

    def versions(self) -> list[Version]:
        """Of every set held and not suspect, sorted: the vector for a reconciliation."""
        held = [
            (key, estimate.head)
            for key, estimate in self._estimates.items()
            if estimate.head is not None and not estimate.suspect
        ]
        return [Version(owner=k[0], namespace=k[1], epoch=h.epoch, seq=h.seq) for k, h in sorted(held, key=_by_key)]

    def live(self, namespace: bytes) -> list[Owner]:
        """Every owner that is not suspect, with its depth as its newest head says."""
        return [
            Owner(owner, newest.cell_bits, owner in self._connected)
            for (owner, space), estimate in self._estimates.items()
            if space == namespace and not estimate.suspect and (newest := estimate.wanted or estimate.head) is not None
        ]

    def depth(self, owner: bytes, namespace: bytes) -> int | None:
        """Of its cell, as its newest head says; None for an unknown owner."""
        estimate = self._estimates.get((owner, namespace))
        newest = (estimate.wanted or estimate.head) if estimate else None
        return newest.cell_bits if newest else None

    def wants(self, owner: bytes, namespace: bytes) -> bool:
        """Whether ``owner``'s digest is kept here, if there is room."""
        covers = self._covers.get(namespace)
        return covers is not None and (owner in self._connected or covers(owner))

    def request(self, owner: bytes, namespace: bytes) -> RepairRequest:
        """Asks for ``owner``'s digest, from what is held of it."""
        estimate = self._estimates.get((owner, namespace))
        head = estimate.head if estimate else None
        return RepairRequest(
            owner=owner,
            namespace=namespace,
            epoch=head.epoch if head else 0,
            seq=head.seq if head else 0,
            count=head.count if head else 0,
            root=head.root if head else NO_ROOT,
        )

    def relay(self, request: RepairRequest) -> Repair | None:
        """Serve another owner's digest: what is held of it, if that is newer than what the asker has."""
        estimate = self._estimates.get((request.owner, request.namespace))
        head = estimate.head if estimate and not estimate.suspect else None
        if estimate is None or head is None or (request.epoch, request.seq) >= _version(head):
            return None
        return repair_from(head, estimate.entries, estimate.log, request)

    def floors(self) -> list[Floor]:
        """What to ``restore`` after a restart. Of an owner that is held, its newest version stays acceptable: it may
        have none newer for a while."""
        held = [(key, estimate.wanted or estimate.head, estimate.heard_at) for key, estimate in self._estimates.items()]
        return [*self._floors, *(Floor(*key, head.epoch, head.seq - 1, at) for key, head, at in held if head)]

    def restore(self, floors: Sequence[Floor]) -> None:
        """Refuse what was refused before a restart. Mutates."""
        for floor in floors:
            self._floors.set(floor)

    # --- what peers send -------------------------------------------------------------------------------------------

    def unused(self, head: Head, now: float) -> Refusal | None:
        """Why ``head`` is of no use, as far as that shows without its signature; None if it may be. Does not mutate."""
        key = (head.owner, head.namespace)
        if head.namespace not in self._indexes:
            return Refusal.WRONG_NAMESPACE
        if head.owner == self._me:
            return Refusal.REPLAYED
        if not self.wants(head.owner, head.namespace):
            return Refusal.WRONG_CELL
        latest_ms = (now + self._config.max_clock_skew_s) * 1000
        if head.issued_at > latest_ms or head.epoch > latest_ms:
            return Refusal.FUTURE
        if head.issued_at < (now - self._config.evict_s) * 1000:
            return Refusal.EXPIRED
        if self._floors.refuse(*key, _version(head)):
            return Refusal.REPLAYED
        estimate = self._estimates.get(key)
        held = estimate.head if estimate else None
        if _version(head) < _version(held) or _same_signed(head, held):
            return Refusal.REPLAYED
        return None

    def on_gossip(self, message: Delta | Announce, now: float) -> Outcome:
        """Apply a delta or note a head. Raises RemoteError (Equivocation) if the owner or the forwarder lied."""
        estimate = self._admit(message.head, now)
        if estimate is None:
            return Outcome.STALE
        head = message.head
        # A head that changes nothing, as every heartbeat's: no bytes, no root to compute.
        says_nothing = isinstance(message, Announce) or not (message.upserts or message.removes)
        if says_nothing and _same_set(head, estimate.head):
            return self._replace(estimate, head, estimate.entries, frozenset(), now)
        if isinstance(message, Announce) or not self._may_patch(estimate, head, message.from_seq, now):
            return self._note(estimate, head, now)
        return self._patch(estimate, message, now)

    def on_repair(self, message: Repair, now: float) -> Outcome:
        """Apply a repair from anybody. Raises RemoteError if its bytes do not hash to the signed root."""
        estimate = self._admit(message.head, now)
        if estimate is None:
            return Outcome.STALE
        if message.mode == SNAPSHOT and self._may_compute(estimate, now):
            entries = unpack_entries(message.upserts)
            return self._apply(estimate, message.head, entries, None, Refusal.WRONG_SNAPSHOT, now)
        if message.mode == LOG and self._may_patch(estimate, message.head, message.from_seq, now):
            return self._patch(estimate, message, now)
        # The set that was SAME when the repair was asked for may have moved on since: a gap, nobody's fault.
        return self._note(estimate, message.head, now)

    # --- what time and the network do ------------------------------------------------------------------------------

    def suspect(self, owner: bytes) -> None:
        """The connection with ``owner`` is gone: do not count on it until it is heard again."""
        self._connected.discard(owner)
        for (one, _), estimate in self._estimates.items():
            if one == owner:
                estimate.suspect = True

    def reinstate(self, owner: bytes, now: float) -> None:
        """``owner`` is connected and talks: count on what is held of it until it says otherwise. Undone by
        ``suspect``."""
        self._connected.add(owner)
        for (one, _), estimate in self._estimates.items():
            if one == owner:
                self._heard(estimate, now)

    def forget(self, owner: bytes, now: float) -> None:
        """Drop everything held of ``owner``; its version floors stay."""
        for key in [key for key in self._estimates if key[0] == owner]:
            self._evict(key, now)

    def forget_unwanted(self, namespace: bytes, now: float) -> None:
        """Drop what ``wants`` no longer holds for: call when the cells changed."""
        for key in [key for key in self._estimates if key[1] == namespace and not self.wants(*key)]:
            self._evict(key, now)

    def sweep(self, now: float) -> list[Key]:
        """Suspect the quiet, forget the gone; returns the forgotten. Call every few seconds."""
        gone = []
        for key, estimate in self._estimates.items():
            quiet = now - estimate.heard_at
            if quiet >= self._config.suspect_s:
                estimate.suspect = True
            if quiet >= self._config.evict_s:
                gone.append(key)
        for key in sorted(gone):
            self._evict(key, now)
        self._floors.expire(now)
        return gone

    def check_invariants(self) -> None:
        """Raises AssertionError when an invariant of the module's docstring is broken."""
        by_namespace: dict[bytes, dict[int, set[bytes]]] = {namespace: {} for namespace in self._indexes}
        for (owner, namespace), estimate in self._estimates.items():
            head = estimate.head
            assert (head is None) == (not estimate.entries) or (head is not None and head.count == 0)
            if head is not None:
                assert _commits(head, estimate.entries)
                estimate.log.check_invariants(head.seq)
            if estimate.wanted is not None:
                assert _version(estimate.wanted) > _version(head)
            for block in estimate.entries:
                by_namespace[namespace].setdefault(block, set()).add(owner)
        assert len(self._estimates) <= self._config.max_owners
        assert self._num_entries == sum(len(e.entries) for e in self._estimates.values()) <= self._config.max_entries
        for namespace, index in self._indexes.items():
            index.check_invariants()
            assert len(index) == len(by_namespace[namespace])
            for block, owners in by_namespace[namespace].items():
                assert index.matches([block]).keys() == owners

    # --- inside ----------------------------------------------------------------------------------------------------

    def _admit(self, head: Head, now: float) -> _Estimate | None:
        """The estimate that ``head`` may advance, not yet kept if it is new; None if ``head`` is old news or there is
        no room. Cheap checks before the signature."""
        key = (head.owner, head.namespace)
        refusal = self.unused(head, now)
        if refusal is not None:
            self._refusals[refusal] += 1
            return None
        estimate = self._estimates.get(key) or _Estimate()
        if not self._verify(head.owner, signed_payload(head), head.signature):
            raise RemoteError("a head's signature is wrong", Refusal.WRONG_SIGNATURE)
        for known in (estimate.head, estimate.wanted):
            if known is not None and _version(head) == _version(known) and not _same_signed(head, known):
                raise Equivocation("the owner signed two sets under one version")
        if key not in self._estimates and not self._make_room(key, 0, now, evict=False):
            self._refusals[Refusal.NO_ROOM] += 1
            return None
        return estimate

    def _may_compute(self, estimate: _Estimate, now: float) -> bool:
        """Whether the owner may cost another root now: what comes too soon is noted and fetched later."""
        ahead = (self._config.max_version_burst - 1) * self._config.delta_min_gap_s
        return estimate.paid_until <= now + ahead

    def _may_patch(self, estimate: _Estimate, head: Head, from_seq: int, now: float) -> bool:
        return _reaches(estimate.head, head, from_seq) and self._may_compute(estimate, now)

    def _patch(self, estimate: _Estimate, message: Delta | Repair, now: float) -> Outcome:
        upserts, removes = unpack_entries(message.upserts), unpack_hashes(message.removes)
        entries = estimate.entries | upserts
        for key in removes:
            entries.pop(key, None)
        touched = upserts.keys() | set(removes)
        return self._apply(estimate, message.head, entries, touched, Refusal.WRONG_DELTA, now)

    def _apply(
        self,
        estimate: _Estimate,
        head: Head,
        entries: Entries,
        touched: Set[int] | None,
        refusal: Refusal,
        now: float,
    ) -> Outcome:
        """``entries`` become what is held, if they are what ``head`` commits to. ``touched``: None if that is not
        known; ``refusal``: what it counts as if they are not."""
        if not _commits(head, entries):
            raise RemoteError("the bytes do not hash to the signed root", refusal)
        estimate.paid_until = max(estimate.paid_until, now) + self._config.delta_min_gap_s
        return self._replace(estimate, head, entries, touched, now)

    def _note(self, estimate: _Estimate, head: Head, now: float) -> Outcome:
        """A newer head is known; keep what is held until its bytes come."""
        if _same_set(head, estimate.head):
            return self._replace(estimate, head, estimate.entries, frozenset(), now)
        if not self._keep(estimate, head, 0, now):
            return Outcome.STALE
        if _version(head) > _version(estimate.wanted):
            estimate.wanted = head
        self._heard(estimate, now)
        return Outcome.GAP

    def _replace(
        self, estimate: _Estimate, head: Head, entries: Entries, touched: Set[int] | None, now: float
    ) -> Outcome:
        if not self._keep(estimate, head, len(entries) - len(estimate.entries), now):
            return Outcome.STALE
        if entries is not estimate.entries:
            index = self._indexes[head.namespace]
            old = estimate.entries
            index.discard(head.owner, [key for key in (touched or old) if key in old and key not in entries])
            index.add(head.owner, [key for key in (touched or entries) if key in entries and key not in old])
            self._num_entries += len(entries) - len(estimate.entries)
        if estimate.head is None or estimate.head.epoch != head.epoch or touched is None:
            estimate.log.clear()
        else:
            estimate.log.add(estimate.head.seq, head.seq, touched, len(entries))
        estimate.head, estimate.entries = head, entries
        if estimate.wanted is not None and _version(estimate.wanted) <= _version(head):
            estimate.wanted = None
        self._heard(estimate, now)
        return Outcome.APPLIED

    def _keep(self, estimate: _Estimate, head: Head, num_entries: int, now: float) -> bool:
        """Hold ``estimate``, grown by ``num_entries``. False if there is no room for that."""
        key = (head.owner, head.namespace)
        if num_entries <= 0 and key in self._estimates:
            return True
        if not self._make_room(key, num_entries, now):
            self._refusals[Refusal.NO_ROOM] += 1
            return False
        self._estimates[key] = estimate
        return True

    def _heard(self, estimate: _Estimate, now: float) -> None:
        estimate.heard_at = now
        estimate.suspect = False

    def _evict(self, key: Key, now: float) -> None:
        estimate = self._estimates.pop(key)
        self._indexes[key[1]].forget(key[0], estimate.entries)
        self._num_entries -= len(estimate.entries)
        if estimate.head is not None:
            self._floors.set(Floor(*key, *_version(estimate.head), now))

    def _make_room(self, key: Key, num_entries: int, now: float, evict: bool = True) -> bool:
        """Room for ``key`` with ``num_entries`` more, by forgetting suspect owners and, for a connected one, owners
        that are not; the longest quiet first. False when that is not enough: nothing is forgotten then. ``evict``:
        whether to do it or only to say."""
        num_excess = len(self._estimates) + (key not in self._estimates) - self._config.max_owners
        entries_excess = self._num_entries + num_entries - self._config.max_entries
        if num_excess <= 0 and (num_entries <= 0 or entries_excess <= 0):
            return True
        is_connected = key[0] in self._connected
        victims = sorted(
            (other[0] in self._connected, not estimate.suspect, estimate.heard_at, other)
            for other, estimate in self._estimates.items()
            if other != key and (is_connected or other[0] not in self._connected)
            if estimate.suspect or (is_connected and other[0] not in self._connected)
        )
        gone = []
        for *_, other in victims:
            if num_excess <= 0 and entries_excess <= 0:
                break
            num_excess -= 1
            entries_excess -= len(self._estimates[other].entries)
            gone.append(other)
        if num_excess > 0 or entries_excess > 0:
            return False
        if evict:
            for other in gone:
                self._evict(other, now)
        return True


def _by_key(item: tuple[Key, Head]) -> Key:
    return item[0]


def _version(head: Head | None) -> tuple[int, int]:
    return (head.epoch, head.seq) if head is not None else (0, 0)


def _same_set(one: Head, other: Head | None) -> bool:
    return other is not None and (one.root, one.count) == (other.root, other.count)


def _same_signed(one: Head, other: Head | None) -> bool:
    """Whether both heads sign one set under one version."""
    return _same_set(one, other) and _version(one) == _version(other)


def _reaches(held: Head | None, head: Head, from_seq: int) -> bool:
    """Whether changes since ``from_seq`` lead from the set held to ``head``."""
    if held is None:
        return from_seq == 0
    if held.epoch != head.epoch:
        return from_seq == 0 and held.count == 0
    return from_seq <= held.seq < head.seq


def _commits(head: Head, entries: Entries) -> bool:
    return head.count == len(entries) and head.root == root_of(entries)
