"""The reader's side: what every peer's cache is believed to hold, at exactly which version.

Per (owner, namespace):

    UNKNOWN --(head)--> SYNCING --(bytes hash to the root)--> LIVE --(gap)--> SYNCING
    LIVE --(quiet for suspect_s, or disconnected)--> SUSPECT --(quiet for evict_s)--> forgotten, version floor kept

While SYNCING, the last verified set stays in use: stale, never wrong.

Invariants:
- an estimate equals the set its owner had at exactly its (epoch, seq), because it hashes to that signed root;
- versions per (owner, namespace) never decrease, also across eviction (floors);
- the index holds exactly the entries of the estimates;
- at most ``max_owners`` estimates with ``max_entries`` entries together, shared as ``room.py`` says.

Every method that takes bytes of a peer checks the signature before it changes anything, and raises RemoteError for
what only a misbehaving sender can cause. Late, duplicated and reordered messages are not misbehaviour, and neither is a
relayed head that was in order on the relay's clock and is not on this one: they are no-ops. A relay's log that does not
lead on from the set held is no offence either: the owner may have signed two sets under one version and shown the relay
the other one.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto

import numpy as np

from mycelia.proto.admission.limits import Limits
from mycelia.proto.cells.cells import Owner
from mycelia.proto.config import DigestConfig
from mycelia.proto.digests.digest import LOG, NO_ROOT, SNAPSHOT, Verify, repair_from, signed_payload
from mycelia.proto.digests.entry_set import NOTHING, EntrySet, Keys, unpack_keys, without
from mycelia.proto.digests.estimate import (
    Estimate,
    Key,
    Source,
    State,
    commits,
    reaches,
    same_set,
    same_signed,
    version_of,
)
from mycelia.proto.digests.floors import Floor, Floors
from mycelia.proto.digests.index import Index
from mycelia.proto.digests.room import Room
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import Announce, Delta, Head, Repair, RepairRequest, Version
from mycelia.proto.wire.refusals import Refusal

__all__ = ["Equivocation", "Estimates", "Key", "Outcome", "State"]

_WRONG_LOGS_PER_S, _WRONG_LOGS_BURST = 1 / 60, 3.0
"""Logs that one relay may bring which do not lead on from the set held."""


class Outcome(Enum):
    """What a digest message did."""

    APPLIED = auto()
    """The estimate advanced."""
    STALE = auto()
    """Nothing new."""
    GAP = auto()
    """The head is newer, but the bytes to reach it are missing: ask for a repair."""
    DOUBT = auto()
    """As a gap, and a relay's log did not lead on from what is held: ask the relay for the whole set."""


class Equivocation(RemoteError):
    """The owner signed two different sets under one version; the two heads prove it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Refusal.EQUIVOCATION)


class Estimates:
    """All peers' digests of the namespaces this node follows."""

    def __init__(
        self,
        me: bytes,
        verify: Verify,
        config: DigestConfig,
        refusals: Counter[Refusal] | None = None,
        source_of: Callable[[bytes], Source] = lambda peer: Source(peer, peer.hex(), True),
    ) -> None:
        """refusals: counts what is not used and costs nobody; what costs somebody is raised. source_of: what is known
        of a peer that tells of digests."""
        self._me = me
        self._refusals: Counter[Refusal] = Counter() if refusals is None else refusals
        self._verify = verify
        self._config = config
        self._source_of = source_of
        self._estimates: dict[Key, Estimate] = {}
        self._connected: set[bytes] = set()
        """Owners whose nodes are connected."""
        self._room = Room(config, self._estimates, self._connected)
        self._wrong_logs: Limits[bytes] = Limits(_WRONG_LOGS_PER_S, _WRONG_LOGS_BURST)
        """Of relays."""
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
        return version_of(estimate.head) if estimate else (0, 0)

    def holds(self, head: Head) -> bool:
        """Whether the set held of ``head.owner`` is the one that ``head`` commits to, at any version."""
        estimate = self._estimates.get((head.owner, head.namespace))
        return estimate is not None and same_set(head, estimate.head)

    def entries(self, owner: bytes, namespace: bytes) -> Mapping[int, int]:
        estimate = self._estimates.get((owner, namespace))
        return estimate.entries if estimate else NOTHING

    @property
    def num_entries(self) -> int:
        """Kept of all owners together."""
        return self._room.num_entries

    def needs_repair(self, owner: bytes, namespace: bytes) -> bool:
        """Whether a newer head than the set held is known, and there is room for its set."""
        estimate = self._estimates.get((owner, namespace))
        return estimate is not None and estimate.wanted is not None and self._fits(estimate, estimate.wanted)

    def tellers(self, owner: bytes, namespace: bytes) -> tuple[bytes, ...]:
        """Peers that brought heads of ``owner``, the latest first: whom to ask for its bytes."""
        estimate = self._estimates.get((owner, namespace))
        return estimate.tellers if estimate else ()

    def is_known(self, owner: bytes, namespace: bytes) -> bool:
        """Whether a set of ``owner`` is held, or was within the last day."""
        key = (owner, namespace)
        estimate = self._estimates.get(key)
        return (estimate is not None and estimate.head is not None) or key in self._floors

    def account(self, owner: bytes, namespace: bytes) -> Source | None:
        """Of whom it counts as kept; None for an unknown owner."""
        estimate = self._estimates.get((owner, namespace))
        return estimate.account if estimate else None

    def versions(self) -> list[Version]:
        """Of every set held and not suspect, sorted: the vector for a reconciliation."""
        held = [
            (key, estimate.head)
            for key, estimate in self._estimates.items()
            if estimate.head is not None and not estimate.suspect
        ]
        return [Version(owner=k[0], namespace=k[1], epoch=h.epoch, seq=h.seq) for k, h in sorted(held, key=_by_key)]

    def live(self, namespace: bytes, most_told: int = 2**31) -> list[Owner]:
        """Owners that are not suspect, with their depths as their newest heads say: the connected ones, and of those
        that one household told of at most ``most_told``, none if it never said hello."""
        num_told: Counter[str] = Counter()
        live = []
        for (owner, space), estimate in self._estimates.items():
            newest, account = estimate.newest, estimate.account
            if space != namespace or estimate.suspect or newest is None:
                continue
            is_connected = owner in self._connected
            num_told[account.household] += not is_connected
            if is_connected or (account.is_node and num_told[account.household] <= most_told):
                live.append(Owner(owner, newest.cell_bits, is_connected))
        return live

    def depth(self, owner: bytes, namespace: bytes) -> int | None:
        """Of its cell, as its newest head says; None for an unknown owner."""
        estimate = self._estimates.get((owner, namespace))
        newest = estimate.newest if estimate else None
        return newest.cell_bits if newest else None

    def wants(self, owner: bytes, namespace: bytes) -> bool:
        """Whether ``owner``'s digest is kept here, if there is room."""
        covers = self._covers.get(namespace)
        return covers is not None and (owner in self._connected or covers(owner))

    def request(self, owner: bytes, namespace: bytes, of: bytes = b"", now: float = 0.0) -> RepairRequest:
        """Asks peer ``of`` for ``owner``'s digest, from what is held of it; for all of it where a log would not do."""
        estimate = self._estimates.get((owner, namespace))
        is_whole = estimate is None or estimate.is_doubted or not self._wrong_logs.has(of, now)
        head = None if is_whole or estimate is None else estimate.head
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
        if estimate is None or head is None or (request.epoch, request.seq) >= version_of(head):
            return None
        return repair_from(head, estimate.entries, estimate.log, request)

    def floors(self) -> list[Floor]:
        """What to ``restore`` after a restart. Of an owner that is held, its newest version stays acceptable: it may
        have none newer for a while."""
        held = [(key, estimate.newest, estimate.heard_at) for key, estimate in self._estimates.items()]
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
        if self._floors.refuse(*key, version_of(head)):
            return Refusal.REPLAYED
        estimate = self._estimates.get(key)
        held = estimate.head if estimate else None
        if version_of(head) < version_of(held) or same_signed(head, held):
            return Refusal.REPLAYED
        return None

    def on_gossip(self, message: Delta | Announce, now: float, by: bytes = b"") -> Outcome:
        """Apply a delta or note a head that peer ``by`` passed on. Raises RemoteError (Equivocation) if the owner
        lied."""
        estimate = self._admit(message.head, now, by)
        if estimate is None:
            return Outcome.STALE
        head = message.head
        # A head that changes nothing, as every heartbeat's: no bytes, no root to compute.
        says_nothing = isinstance(message, Announce) or not (message.upserts or message.removes)
        if says_nothing and same_set(head, estimate.head):
            return self._replace(estimate, head, estimate.entries, NOTHING.hashes, now)
        if isinstance(message, Announce) or not self._may_patch(estimate, head, message.from_seq, now):
            return self._note(estimate, head, now)
        patched, touched = _patched(estimate, message)
        if not commits(head, patched):
            raise RemoteError("the bytes do not hash to the signed root", Refusal.WRONG_DELTA)
        return self._take(estimate, head, patched, touched, now)

    def on_repair(self, message: Repair, now: float, by: bytes = b"") -> Outcome:
        """Apply a repair that peer ``by`` brought. Raises RemoteError if its bytes do not hash to the signed root."""
        head = message.head
        estimate = self._admit(head, now, by)
        if estimate is None:
            return Outcome.STALE
        if message.mode == SNAPSHOT and self._may_compute(estimate, head, now):
            entries = EntrySet.unpack(message.upserts)
            if not commits(head, entries):
                raise RemoteError("the bytes do not hash to the signed root", Refusal.WRONG_SNAPSHOT)
            return self._take(estimate, head, entries, None, now)
        if message.mode == LOG and self._may_patch(estimate, head, message.from_seq, now, by):
            patched, touched = _patched(estimate, message)
            if commits(head, patched):
                return self._take(estimate, head, patched, touched, now)
            if by == head.owner:
                raise RemoteError("the bytes do not hash to the signed root", Refusal.WRONG_DELTA)
            self._refusals[Refusal.WRONG_DELTA] += 1
            self._wrong_logs.take(by, now)
            if estimate.head is not None:
                estimate.is_doubted = True
                return Outcome.DOUBT if self._note(estimate, head, now) is Outcome.GAP else Outcome.STALE
        # The set that was SAME when the repair was asked for may have moved on since: a gap, nobody's fault.
        return self._note(estimate, head, now)

    # --- what time and the network do ------------------------------------------------------------------------------

    def suspect(self, peer: bytes) -> None:
        """The connection with ``peer`` is gone: do not count on its digests until it is heard again. What it made this
        node keep of others without ever having said hello goes with it."""
        self._connected.discard(peer)
        for key, estimate in self._of(peer):
            self._doubt(key, estimate)
        told = [key for key, one in self._estimates.items() if one.account.peer == peer and not one.account.is_node]
        for key in told:
            self._drop(key)

    def reinstate(self, owner: bytes, now: float) -> None:
        """``owner`` is connected and talks: count on what is held of it until it says otherwise. Undone by
        ``suspect``."""
        self._connected.add(owner)
        account = self._source_of(owner)
        for key, estimate in self._of(owner):
            self._heard(key, estimate, now)
            self._room.add(owner, estimate.account, -1, -len(estimate.entries))
            estimate.account = account
            self._room.add(owner, account, 1, len(estimate.entries))
        for surplus in self._room.surplus(account):
            self._evict(surplus, now)

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
                self._doubt(key, estimate)
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
            assert head is not None or not estimate.entries
            if head is not None:
                assert commits(head, estimate.entries)
                estimate.log.check_invariants(head.seq)
            if estimate.wanted is not None:
                assert version_of(estimate.wanted) > version_of(head)
            for block in estimate.entries:
                by_namespace[namespace].setdefault(block, set()).add(owner)
        self._room.check_invariants()
        for namespace, index in self._indexes.items():
            index.check_invariants()
            assert len(index) == len(by_namespace[namespace])
            for block, owners in by_namespace[namespace].items():
                assert index.matches([block]).keys() == owners

    # --- inside ----------------------------------------------------------------------------------------------------

    def _admit(self, head: Head, now: float, by: bytes) -> Estimate | None:
        """The estimate that ``head`` may advance, not yet kept if it is new; None if ``head`` is old news or there is
        no room. Cheap checks before the signature."""
        key = (head.owner, head.namespace)
        refusal = self.unused(head, now)
        if refusal is not None:
            self._refusals[refusal] += 1
            return None
        is_own_account = head.owner in self._connected or not by
        estimate = self._estimates.get(key) or Estimate(self._source_of(head.owner if is_own_account else by))
        if not self._verify(head.owner, signed_payload(head), head.signature):
            raise RemoteError("a head's signature is wrong", Refusal.WRONG_SIGNATURE)
        for known in (estimate.head, estimate.wanted):
            if known is not None and version_of(head) == version_of(known) and not same_signed(head, known):
                raise Equivocation("the owner signed two sets under one version")
        if key not in self._estimates and not self._fits(estimate, head):
            self._refusals[Refusal.NO_ROOM] += 1
            return None
        estimate.told_by(by)
        return estimate

    def _fits(self, estimate: Estimate, head: Head) -> bool:
        """Whether the account of ``estimate`` has room for the set of ``head``."""
        num_more = head.count - len(estimate.entries)
        return num_more <= 0 or self._room.fits(head.owner, estimate.account, num_more)

    def _may_compute(self, estimate: Estimate, head: Head, now: float) -> bool:
        """Whether the owner may cost another root now: what comes too soon is noted and fetched later. Nothing is
        computed for what has no room."""
        ahead = (self._config.max_version_burst - 1) * self._config.delta_min_gap_s
        return estimate.paid_until <= now + ahead and self._fits(estimate, head)

    def _may_patch(self, estimate: Estimate, head: Head, from_seq: int, now: float, by: bytes = b"") -> bool:
        if estimate.is_doubted or not self._wrong_logs.has(by, now):
            return False
        return reaches(estimate.head, head, from_seq) and self._may_compute(estimate, head, now)

    def _note(self, estimate: Estimate, head: Head, now: float) -> Outcome:
        """A newer head is known; keep what is held until its bytes come."""
        if same_set(head, estimate.head):
            return self._replace(estimate, head, estimate.entries, NOTHING.hashes, now)
        if not self._keep(estimate, head, 0, now):
            return Outcome.STALE
        if version_of(head) > version_of(estimate.wanted):
            estimate.wanted = head
        self._heard((head.owner, head.namespace), estimate, now)
        return Outcome.GAP

    def _take(self, estimate: Estimate, head: Head, entries: EntrySet, touched: Keys | None, now: float) -> Outcome:
        """``entries``, which ``head`` commits to, become what is held. ``touched``: None if that is not known."""
        estimate.paid_until = max(estimate.paid_until, now) + self._config.delta_min_gap_s
        return self._replace(estimate, head, entries, touched, now)

    def _replace(self, estimate: Estimate, head: Head, entries: EntrySet, touched: Keys | None, now: float) -> Outcome:
        if not self._keep(estimate, head, len(entries) - len(estimate.entries), now):
            return Outcome.STALE
        if entries is not estimate.entries:
            index = self._indexes[head.namespace]
            old = estimate.entries
            index.discard(
                head.owner, without(old.hashes if touched is None else old.only(touched).hashes, entries.hashes)
            )
            index.add(
                head.owner, without(entries.hashes if touched is None else entries.only(touched).hashes, old.hashes)
            )
            self._room.add(head.owner, estimate.account, 0, len(entries) - len(old))
        if estimate.head is None or estimate.head.epoch != head.epoch or touched is None:
            estimate.log.clear()
        else:
            estimate.log.add(estimate.head.seq, head.seq, touched, len(entries))
        estimate.head, estimate.entries, estimate.is_doubted = head, entries, False
        if estimate.wanted is not None and version_of(estimate.wanted) <= version_of(head):
            estimate.wanted = None
        self._heard((head.owner, head.namespace), estimate, now)
        return Outcome.APPLIED

    def _keep(self, estimate: Estimate, head: Head, num_entries: int, now: float) -> bool:
        """Hold ``estimate``, which is about to grow by ``num_entries``. False if there is no room for that."""
        key = (head.owner, head.namespace)
        is_new = key not in self._estimates
        if num_entries <= 0 and not is_new:
            return True
        fits = num_entries <= 0 or self._room.fits(head.owner, estimate.account, num_entries)
        victims = self._room.victims(key, estimate.account, num_entries) if fits else None
        if victims is None:
            self._refusals[Refusal.NO_ROOM] += 1
            return False
        for other in victims:
            self._evict(other, now)
        if is_new:
            self._estimates[key] = estimate
            self._room.add(head.owner, estimate.account, 1, 0)
        return True

    def _of(self, owner: bytes) -> list[tuple[Key, Estimate]]:
        """Of ``owner``, in all namespaces."""
        keys = [(owner, namespace) for namespace in self._indexes]
        return [(key, self._estimates[key]) for key in keys if key in self._estimates]

    def _heard(self, key: Key, estimate: Estimate, now: float) -> None:
        estimate.heard_at = now
        estimate.suspect = False
        self._room.note_suspect(key, False)

    def _doubt(self, key: Key, estimate: Estimate) -> None:
        estimate.suspect = True
        self._room.note_suspect(key, True)

    def _evict(self, key: Key, now: float) -> None:
        """Leaves a floor."""
        head = self._drop(key).head
        if head is not None:
            self._floors.set(Floor(*key, *version_of(head), now))

    def _drop(self, key: Key) -> Estimate:
        estimate = self._estimates.pop(key)
        self._room.note_suspect(key, False)
        self._indexes[key[1]].forget(key[0], estimate.entries.hashes)
        self._room.add(key[0], estimate.account, -1, -len(estimate.entries))
        return estimate


def _patched(estimate: Estimate, message: Delta | Repair) -> tuple[EntrySet, Keys]:
    """The set held as ``message`` changes it, and the keys that it touches. Raises RemoteError for bytes that are not
    packed as they must be."""
    upserts, removes = EntrySet.unpack(message.upserts), unpack_keys(message.removes)
    return estimate.entries.patched(upserts, removes), np.union1d(upserts.hashes, removes)


def _by_key(item: tuple[Key, Head]) -> Key:
    return item[0]
