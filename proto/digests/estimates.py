"""The reader's side: what every peer's cache is believed to hold, at exactly which version.

Per (owner, namespace):

    UNKNOWN --(head)--> SYNCING --(bytes hash to the root)--> LIVE --(gap)--> SYNCING
    LIVE --(quiet for suspect_s, or disconnected)--> SUSPECT --(quiet for evict_s)--> forgotten, version floor kept

While SYNCING, the last verified set stays in use: stale, never wrong.

Invariants:
- an estimate equals the set its owner had at exactly its (epoch, seq), because it hashes to that signed root;
- versions per (owner, namespace) never decrease, also across eviction (floors);
- the index holds exactly the entries of the estimates;
- at most ``max_owners`` estimates with ``max_entries`` entries in total, shared as ``room.py`` says.

Every method that takes a peer's bytes checks the signature before it changes anything, and raises RemoteError for what
only a misbehaving sender can cause. Late, duplicated and reordered messages are no misbehaviour and do nothing. The
same holds for a relayed head that was valid by the relay's clock and is not by this node's. A relay's log that does not
lead on from the set held is no offence either: the owner may have sent the relay another set under the same version.
"""

from collections import Counter
from collections.abc import Callable
from enum import Enum, auto

import numpy as np

from mycelia.proto.admission.limits import Limits
from mycelia.proto.config import DigestConfig
from mycelia.proto.digests.digest import LOG, NO_ROOT, SNAPSHOT, Verify, signed_payload
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
from mycelia.proto.digests.store import EstimateStore
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import Announce, Delta, Head, Repair, RepairRequest
from mycelia.proto.wire.refusals import Refusal

__all__ = ["Equivocation", "Estimates", "Key", "Outcome", "State"]

_WRONG_LOGS_PER_S, _WRONG_LOGS_BURST = 1 / 60, 3.0
"""Logs that one relay may bring without leading on from the set held."""


class Outcome(Enum):
    APPLIED = auto()
    """The estimate advanced."""
    STALE = auto()
    """Nothing new."""
    GAP = auto()
    """The head is newer, but the bytes to reach it are missing: ask for a repair."""
    DOUBT = auto()
    """A gap, and a relay's log did not lead on from the set held: ask the relay for the whole set."""


class Equivocation(RemoteError):
    """The owner signed two different sets under one version; the two heads prove it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Refusal.EQUIVOCATION)


class Estimates(EstimateStore):
    """Changes the store by what peers send."""

    def __init__(
        self,
        me: bytes,
        verify: Verify,
        config: DigestConfig,
        refusals: Counter[Refusal] | None = None,
        source_of: Callable[[bytes], Source] = lambda peer: Source(peer, peer.hex(), True),
    ) -> None:
        """refusals, source_of: see ``EstimateStore``. Refusals that cost their sender are raised."""
        super().__init__(config, refusals, source_of)
        self._me = me
        self._verify = verify
        self._wrong_logs: Limits[bytes] = Limits(_WRONG_LOGS_PER_S, _WRONG_LOGS_BURST)
        """Per relay."""

    def request(self, owner: bytes, namespace: bytes, of: bytes = b"", now: float = 0.0) -> RepairRequest:
        """Asks peer ``of`` for ``owner``'s digest, from the version held; for all of it where a log would not do."""
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

    def unused(self, head: Head, now: float) -> Refusal | None:
        """Why ``head`` is useless, before its signature is checked; None if it may be useful. Does not mutate."""
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
        """Apply a delta or note a head from peer ``by``. Raises RemoteError (Equivocation) if the owner lied."""
        estimate = self._admit(message.head, now, by)
        if estimate is None:
            return Outcome.STALE
        head = message.head
        # A head that changes nothing, like every heartbeat's: no bytes, no root to compute.
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
        # The set that was SAME when the repair was requested may have changed since: a gap, and no offence.
        return self._note(estimate, head, now)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _admit(self, head: Head, now: float, by: bytes) -> Estimate | None:
        """The estimate that ``head`` may advance, not yet kept if it is new; None if ``head`` is old or there is no
        room. Cheap checks come before the signature."""
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

    def _may_compute(self, estimate: Estimate, head: Head, now: float) -> bool:
        """Whether the owner may cost another root now and there is room; a set too soon is noted and fetched later."""
        ahead = (self._config.max_version_burst - 1) * self._config.delta_min_gap_s
        return estimate.paid_until <= now + ahead and self._fits(estimate, head)

    def _may_patch(self, estimate: Estimate, head: Head, from_seq: int, now: float, by: bytes = b"") -> bool:
        if estimate.is_doubted or not self._wrong_logs.has(by, now):
            return False
        return reaches(estimate.head, head, from_seq) and self._may_compute(estimate, head, now)

    def _note(self, estimate: Estimate, head: Head, now: float) -> Outcome:
        """A newer head is known; keep the present set until its bytes come."""
        if same_set(head, estimate.head):
            return self._replace(estimate, head, estimate.entries, NOTHING.hashes, now)
        if not self._keep(estimate, head, 0, now):
            return Outcome.STALE
        if version_of(head) > version_of(estimate.wanted):
            estimate.wanted = head
        self._heard((head.owner, head.namespace), estimate, now)
        return Outcome.GAP

    def _take(self, estimate: Estimate, head: Head, entries: EntrySet, touched: Keys | None, now: float) -> Outcome:
        """``entries``, which ``head`` commits to, become the set held. ``touched``: None if unknown."""
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


def _patched(estimate: Estimate, message: Delta | Repair) -> tuple[EntrySet, Keys]:
    """The set held after ``message``, and the keys that it touches. Raises RemoteError for wrongly packed bytes."""
    upserts, removes = EntrySet.unpack(message.upserts), unpack_keys(message.removes)
    return estimate.entries.patched(upserts, removes), np.union1d(upserts.hashes, removes)
