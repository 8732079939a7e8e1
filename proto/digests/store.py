"""The store of every peer's digests: estimates, the index over them, version floors, and the room they share.

The rules for changes are in ``estimates.py``, with the theory and the invariants.
"""

from collections import Counter
from collections.abc import Callable, ItemsView, Mapping, Sequence

from mycelia.proto.cells.cells import Owner
from mycelia.proto.config import DigestConfig
from mycelia.proto.digests.digest import repair_from
from mycelia.proto.digests.entry_set import NOTHING
from mycelia.proto.digests.estimate import Estimate, Key, Source, State, commits, same_set, version_of
from mycelia.proto.digests.floors import Floor, Floors
from mycelia.proto.digests.index import Index
from mycelia.proto.digests.room import Room
from mycelia.proto.wire.messages import Head, Repair, RepairRequest, Version
from mycelia.proto.wire.refusals import Refusal


class EstimateStore:
    """The digests of all peers in the namespaces that this node follows."""

    def __init__(
        self, config: DigestConfig, refusals: Counter[Refusal] | None, source_of: Callable[[bytes], Source]
    ) -> None:
        """refusals: counts what is not used and costs no peer. source_of: how a peer that brings digests is counted."""
        self._refusals: Counter[Refusal] = Counter() if refusals is None else refusals
        self._config = config
        self._source_of = source_of
        self._estimates: dict[Key, Estimate] = {}
        self._connected: set[bytes] = set()
        """Owners whose nodes are connected."""
        self._room = Room(config, self._estimates, self._connected)
        self._floors = Floors(config.max_floors, config.floor_keep_s)
        self._indexes: dict[bytes, Index] = {}
        self._covers: dict[bytes, Callable[[bytes], bool]] = {}

    # --- reading ---------------------------------------------------------------------------------------------------

    def follow(
        self, namespace: bytes, covers: Callable[[bytes], bool] = lambda owner: True, has_states: bool = False
    ) -> None:
        """Accept digests of ``namespace`` from now on: of connected owners, and of those that ``covers`` accepts.
        has_states: see ``ModelServed``."""
        self._indexes.setdefault(namespace, Index(has_gaps=has_states))
        self._covers[namespace] = covers

    def follows(self, namespace: bytes) -> bool:
        return namespace in self._indexes

    def matches(self, namespace: bytes, chain: Sequence[int]) -> Mapping[bytes, int]:
        """Owner -> leading blocks of ``chain`` it is estimated to hold; empty in a namespace that is not followed."""
        index = self._indexes.get(namespace)
        return index.matches(chain) if index else {}

    def items(self) -> ItemsView[Key, Estimate]:
        """Every estimate. Read-only."""
        return self._estimates.items()

    def state(self, owner: bytes, namespace: bytes) -> State | None:
        """The state of an owner's estimate; None for an unknown owner."""
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
        """Entries kept of all owners together."""
        return self._room.num_entries

    def needs_repair(self, owner: bytes, namespace: bytes) -> bool:
        """Whether a newer head than the set held is known, and there is room for its set."""
        estimate = self._estimates.get((owner, namespace))
        return estimate is not None and estimate.wanted is not None and self._fits(estimate, estimate.wanted)

    def tellers(self, owner: bytes, namespace: bytes) -> tuple[bytes, ...]:
        """Peers that brought heads of ``owner``, the latest first: they can be asked for its bytes."""
        estimate = self._estimates.get((owner, namespace))
        return estimate.tellers if estimate else ()

    def is_known(self, owner: bytes, namespace: bytes) -> bool:
        """Whether a set of ``owner`` is held, or was within the last day."""
        key = (owner, namespace)
        estimate = self._estimates.get(key)
        return (estimate is not None and estimate.head is not None) or key in self._floors

    def account(self, owner: bytes, namespace: bytes) -> Source | None:
        """The peer for which the owner's digest counts as kept; None for an unknown owner."""
        estimate = self._estimates.get((owner, namespace))
        return estimate.account if estimate else None

    def versions(self) -> list[Version]:
        """The version of every set held and not suspect, sorted: the vector for a reconciliation."""
        held = [
            (key, estimate.head)
            for key, estimate in self._estimates.items()
            if estimate.head is not None and not estimate.suspect
        ]
        return [Version(owner=k[0], namespace=k[1], epoch=h.epoch, seq=h.seq) for k, h in sorted(held, key=_by_key)]

    def live(self, namespace: bytes, most_told: int = 2**31) -> list[Owner]:
        """Owners that are not suspect, with the depths in their newest heads: all connected ones, and at most
        ``most_told`` others per subnet that announced them, none if it sent no hello."""
        num_told: Counter[str] = Counter()
        live = []
        for (owner, space), estimate in self._estimates.items():
            newest, account = estimate.newest, estimate.account
            if space != namespace or estimate.suspect or newest is None:
                continue
            is_connected = owner in self._connected
            num_told[account.subnet] += not is_connected
            if is_connected or (account.is_node and num_told[account.subnet] <= most_told):
                live.append(Owner(owner, newest.cell_bits, is_connected))
        return live

    def depth(self, owner: bytes, namespace: bytes) -> int | None:
        """The depth of an owner's cell, by its newest head; None for an unknown owner."""
        estimate = self._estimates.get((owner, namespace))
        newest = estimate.newest if estimate else None
        return newest.cell_bits if newest else None

    def wants(self, owner: bytes, namespace: bytes) -> bool:
        """Whether ``owner``'s digest is kept here if there is room."""
        covers = self._covers.get(namespace)
        return covers is not None and (owner in self._connected or covers(owner))

    def relay(self, request: RepairRequest) -> Repair | None:
        """A repair of another owner's digest from the set held, if that is newer than the asker's."""
        estimate = self._estimates.get((request.owner, request.namespace))
        head = estimate.head if estimate and not estimate.suspect else None
        if estimate is None or head is None or (request.epoch, request.seq) >= version_of(head):
            return None
        return repair_from(head, estimate.entries, estimate.log, request)

    def floors(self) -> list[Floor]:
        """The argument of ``restore`` after a restart. The newest version of an owner that is held stays acceptable:
        the owner may publish none for a while."""
        held = [(key, estimate.newest, estimate.heard_at) for key, estimate in self._estimates.items()]
        return [*self._floors, *(Floor(*key, head.epoch, head.seq - 1, at) for key, head, at in held if head)]

    def restore(self, floors: Sequence[Floor]) -> None:
        """Refuse what was refused before a restart. Mutates."""
        for floor in floors:
            self._floors.set(floor)

    # --- what time and the network do ------------------------------------------------------------------------------

    def suspect(self, peer: bytes) -> None:
        """The connection with ``peer`` is gone: its digests do not count until it sends something again. If it sent no
        hello, what it announced of others is dropped. Mutates."""
        self._connected.discard(peer)
        for key, estimate in self._of(peer):
            self._doubt(key, estimate)
        told = [key for key, one in self._estimates.items() if one.account.peer == peer and not one.account.is_node]
        for key in told:
            self._drop(key)

    def reinstate(self, owner: bytes, now: float) -> None:
        """``owner`` is connected and sent a hello: what is held of it counts, until ``suspect``, and what it announced
        of others before no longer counts as a stranger's. Mutates."""
        self._connected.add(owner)
        account = self._source_of(owner)
        for key, estimate in self._of(owner):
            self._heard(key, estimate, now)
        for key, estimate in self._estimates.items():
            if key[0] == owner or estimate.account.peer == owner:
                self._room.add(key[0], estimate.account, -1, -len(estimate.entries))
                estimate.account = account
                self._room.add(key[0], account, 1, len(estimate.entries))
        for surplus in self._room.surplus(account):
            self._evict(surplus, now)

    def forget(self, owner: bytes, now: float) -> None:
        """Drop everything held of ``owner``; its version floors stay."""
        for key in [key for key in self._estimates if key[0] == owner]:
            self._evict(key, now)

    def forget_unwanted(self, namespace: bytes, now: float) -> None:
        """Drop the digests that ``wants`` no longer accepts: call when the cells changed."""
        for key in [key for key in self._estimates if key[1] == namespace and not self.wants(*key)]:
            self._evict(key, now)

    def sweep(self, now: float) -> list[Key]:
        """Suspect quiet owners and forget lost ones; returns the forgotten. Call every few seconds."""
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
            assert index.holders() == by_namespace[namespace]

    # --- inside ----------------------------------------------------------------------------------------------------

    def _keep(self, estimate: Estimate, head: Head, num_entries: int, now: float) -> bool:
        """Keep ``estimate``, which is about to grow by ``num_entries``. False if there is no room for that."""
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
        """Drop the estimate and leave a floor."""
        head = self._drop(key).head
        if head is not None:
            self._floors.set(Floor(*key, *version_of(head), now))

    def _drop(self, key: Key) -> Estimate:
        estimate = self._estimates.pop(key)
        self._room.note_suspect(key, False)
        self._indexes[key[1]].forget(key[0], estimate.entries.hashes)
        self._room.add(key[0], estimate.account, -1, -len(estimate.entries))
        return estimate

    def _fits(self, estimate: Estimate, head: Head) -> bool:
        """Whether the account of ``estimate`` has room for the set of ``head``."""
        num_more = head.count - len(estimate.entries)
        return num_more <= 0 or self._room.fits(head.owner, estimate.account, num_more)


def _by_key(item: tuple[Key, Head]) -> Key:
    return item[0]
