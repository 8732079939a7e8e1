"""A digest: the set of block hashes that one node announces in one namespace. Here: byte forms and the owner's side.

Theory. Each set has one writer, its owner, so conflicts need no resolution, only order: versions (epoch, seq), compared
as pairs. The owner signs a *head* - (owner, namespace, epoch, seq, count, root, issued_at, cell_bits) - where root is
BLAKE3-128 over the sorted entries. With a head, any bytes from any relay can be checked: they are right if and only if
they hash to the root. So heads are signed and repair bytes are not.

A delta carries the *final* state of every key touched in (from_seq, seq], never a list in which an add and a later
remove cancelled out: a reader inside the range would keep what was removed.

The epoch grows with every start of the owner, so that versions never repeat even if the owner's memory was lost.

A model that keeps states (``cache/checkpoints.py``) restores certain lengths only. Its digest lists the last block of
each: a block in it means that all tokens up to there can be restored, and says nothing of the blocks before it.

Invariants of ``OwnDigest``: the announced set is within the budget and prefix-closed (not with states); the log's
ranges are adjacent and end at the current seq; ``seq`` grows with every published head, heartbeats included.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

import msgspec
import numpy as np

from mycelia.proto.cache.sharing import PUBLIC
from mycelia.proto.config import DigestConfig
from mycelia.proto.digests.entry_set import NOTHING, EntrySet, Keys, keys_of, pack_keys, unpack_keys, without
from mycelia.proto.wire.messages import Announce, Delta, Head, Repair, RepairRequest

Sign = Callable[[bytes], bytes]
"""Payload -> 64-byte Ed25519 signature of this node."""
Verify = Callable[[bytes, bytes, bytes], bool]
"""(owner's peer id, payload, signature) -> whether the owner signed the payload."""

SAME, LOG, SNAPSHOT = range(3)
"""``Repair.mode``."""

NO_ROOT = bytes(16)

_SIGNING_CONTEXT = b"mycelia head v1\x00"


def pack_entries(entries: Mapping[int, int]) -> bytes:
    """Entries sorted by hash, 9 bytes each: hash big-endian, class."""
    return EntrySet.of(entries).pack()


def unpack_entries(data: bytes) -> EntrySet:
    """Inverse of ``pack_entries``. Raises RemoteError unless sorted, distinct and whole."""
    return EntrySet.unpack(data)


def pack_hashes(keys: Iterable[int]) -> bytes:
    """Hashes sorted, 8 bytes each, big-endian."""
    return pack_keys(keys_of(keys))


def unpack_hashes(data: bytes) -> list[int]:
    """Inverse of ``pack_hashes``. Raises RemoteError unless sorted, distinct and whole."""
    hashes: list[int] = unpack_keys(data).tolist()
    return hashes


def root_of(entries: Mapping[int, int]) -> bytes:
    """The 16-byte root that commits to ``entries``."""
    return EntrySet.of(entries).root()


def epoch_after(last: int, now: float) -> int:
    """The version epoch of a node that starts at ``now`` (Unix seconds) and last used ``last`` (0: none known). Larger
    than every epoch before, normally the Unix time in ms."""
    now_ms = int(now * 1000)
    # A last epoch far in the future comes from a clock that was wrong then. If the node continued from it, its digests
    # would be refused everywhere until that time comes.
    return max(now_ms, last + 1) if last < now_ms + 3_600_000 else now_ms


def signed_payload(head: Head) -> bytes:
    """The bytes that the owner signs: every field of the head except the signature, at fixed places."""
    return b"".join(
        (
            _SIGNING_CONTEXT,
            bytes((len(head.owner),)),
            head.owner,
            head.namespace,
            head.epoch.to_bytes(8, "big"),
            head.seq.to_bytes(8, "big"),
            head.count.to_bytes(4, "big"),
            head.issued_at.to_bytes(8, "big"),
            head.root,
            bytes((head.cell_bits,)),
        )
    )


@dataclass(frozen=True, slots=True)
class _LogEntry:
    """Keys touched in (from_seq, seq]."""

    from_seq: int
    seq: int
    touched: Keys


class ChangeLog:
    """The keys that changed lately, within one epoch. Owners and readers keep it and serve each other from it.

    Invariant: the entries' ranges are adjacent.
    """

    __slots__ = ("_entries", "last_repair")

    def __init__(self) -> None:
        self._entries: list[_LogEntry] = []
        self.last_repair: Repair | None = None
        """The last repair made from this log as it is now: several neighbours ask for the same."""

    def add(self, from_seq: int, seq: int, touched: Keys, num_keys: int) -> None:
        """(from_seq, seq] touched these keys. A range that does not continue the log begins a new one. The log is kept
        while it is smaller than a snapshot of ``num_keys``: a reader that it no longer covers then pays no more."""
        self.last_repair = None
        entries = self._entries
        last = entries[-1] if entries else None
        if last is not None and last.seq != from_seq:
            entries.clear()
        elif last is not None and not len(touched):
            entries[-1] = _LogEntry(last.from_seq, seq, last.touched)
            return
        entries.append(_LogEntry(from_seq, seq, touched))
        size = sum(len(entry.touched) + 1 for entry in entries)
        drop = 0
        while size > max(num_keys, 64) and drop < len(entries) - 1:
            size -= len(entries[drop].touched) + 1
            drop += 1
        del entries[:drop]

    def clear(self) -> None:
        self.last_repair = None
        self._entries.clear()

    def touched_since(self, seq: int) -> Keys | None:
        """The keys touched after ``seq``; None if the log does not reach back that far."""
        if not self._entries or seq < self._entries[0].from_seq:
            return None
        later = [entry.touched for entry in self._entries if entry.seq > seq]
        return np.unique(np.concatenate([NOTHING.hashes, *later]))

    def check_invariants(self, seq: int) -> None:
        """Raises AssertionError when the log is broken or does not end at ``seq``."""
        assert not self._entries or self._entries[-1].seq == seq
        for earlier, later in pairwise(self._entries):
            assert earlier.seq == later.from_seq


class _Leaf(NamedTuple):
    chain: Sequence[int]
    """Block hashes of the sequence, from the root."""
    num_open: int
    """Number of leading blocks that any request may reuse."""
    num_told: int
    """Number of leading blocks that peers may know of."""
    tag: bytes | None
    """The owner's tag of the other blocks."""


class OwnDigest:
    """The owner's side for one namespace: what the local prefix cache holds, and the set last announced."""

    def __init__(
        self, owner: bytes, namespace: bytes, epoch: int, sign: Sign, config: DigestConfig, has_states: bool = False
    ) -> None:
        self._owner = owner
        self._has_states = has_states
        self._namespace = namespace
        self._epoch = epoch
        self._sign = sign
        self._config = config
        self._leaves: dict[int, _Leaf] = {}
        """Oldest first."""
        self._entries = NOTHING
        self._log = ChangeLog()
        self._head: Head | None = None

    @property
    def head(self) -> Head | None:
        return self._head

    @property
    def entries(self) -> Mapping[int, int]:
        """The set that the last head commits to."""
        return self._entries

    def reset(self) -> None:
        """The cache was lost. Takes effect with the next ``advance``."""
        self._leaves.clear()

    def store(self, leaf: int, chain: Sequence[int], num_open: int | None = None, tag: bytes | None = None) -> None:
        """The cache holds ``chain`` (block hashes from the root) under id ``leaf``: the first ``num_open`` blocks
        (None: all) for any request, the others for the owner ``tag``, see ``sharing.py``."""
        num_open = len(chain) if num_open is None else num_open
        self._leaves.pop(leaf, None)
        self._leaves[leaf] = _Leaf(chain, num_open, len(chain) if tag == PUBLIC.tag else num_open, tag)

    def evict(self, leaf: int) -> None:
        """The cache dropped ``leaf``. Unknown ids are ignored."""
        self._leaves.pop(leaf, None)

    def chains(self) -> Iterator[Sequence[int]]:
        """The chains of block hashes in the cache that may be announced, the newest first."""
        return (leaf.chain[: leaf.num_told] for leaf in reversed(self._leaves.values()))

    def holds(self, chain: Sequence[int], tag: bytes) -> int:
        """Leading blocks of ``chain`` in the cache now, announced or not, that the owner ``tag`` may reuse."""
        best = 0
        for leaf in self._leaves.values():
            # (a block's hash covers all blocks before it, so equal blocks at ``best`` mean equal prefixes)
            if self._has_states:
                length = len(leaf.chain)
                may_use = leaf.tag == tag or leaf.num_open >= length
                if may_use and best < length <= len(chain) and leaf.chain[-1] == chain[length - 1]:
                    best = length
                continue
            usable = min(len(leaf.chain) if leaf.tag == tag else leaf.num_open, len(leaf.chain), len(chain))
            while best < usable and leaf.chain[best] == chain[best]:
                best += 1
        return best

    def advance(self, now: float, cell_bits: int = 0) -> Delta | Announce:
        """Publish the cache as it is now, as a new version also without changes (a heartbeat). ``cell_bits``: depth of
        this node's cell. Mutates."""
        target = self._advertised()
        touched = self._entries.changed(target)
        previous = self._head.seq if self._head else 0
        self._entries = target
        seq = previous + 1
        self._head = self._signed_head(seq, now, cell_bits)
        self._log.add(previous, seq, touched, len(target))
        upserts = target.only(touched).pack()
        removes = pack_keys(without(touched, target.hashes))
        if len(upserts) + len(removes) > self._config.push_bytes:
            return Announce(head=self._head)
        return Delta(head=self._head, from_seq=previous, upserts=upserts, removes=removes)

    def is_behind(self) -> bool:
        """Whether the cache has changes that the published set lacks."""
        return self._advertised() != self._entries

    def repair(self, request: RepairRequest) -> Repair | None:
        """A repair that brings the asker to the current head; None before the first head or if the asker has it."""
        head = self._head
        if head is None or (request.epoch, request.seq) >= (head.epoch, head.seq):
            return None
        return repair_from(head, self._entries, self._log, request)

    def check_invariants(self) -> None:
        assert len(self._entries) <= self._config.advert_budget
        if self._head is not None:
            assert self._head.root == self._entries.root() and self._head.count == len(self._entries)
            self._log.check_invariants(self._head.seq)

    def _advertised(self) -> EntrySet:
        """The newest leaves first, each from its root, until the budget is spent: always prefix-closed. With states,
        the last blocks only."""
        target: dict[int, int] = {}
        if self._has_states:
            leaves = (leaf for leaf in reversed(self._leaves.values()) if leaf.chain)
            lasts = (leaf.chain[-1] for leaf in leaves if leaf.num_told >= len(leaf.chain))
            return EntrySet.of(dict.fromkeys(islice(dict.fromkeys(lasts), self._config.advert_budget), 0))
        for chain in self.chains():
            for key in chain:
                if len(target) >= self._config.advert_budget and key not in target:
                    break
                target[key] = 0
        return EntrySet.of(target)

    def _signed_head(self, seq: int, now: float, cell_bits: int) -> Head:
        unsigned = Head(
            owner=self._owner,
            namespace=self._namespace,
            epoch=self._epoch,
            seq=seq,
            count=len(self._entries),
            root=self._entries.root(),
            issued_at=int(now * 1000),
            signature=bytes(64),
            cell_bits=cell_bits,
        )
        return msgspec.structs.replace(unsigned, signature=self._sign(signed_payload(unsigned)))


def repair_from(head: Head, entries: EntrySet, log: ChangeLog, request: RepairRequest) -> Repair:
    """A repair that brings the asker to ``head`` with the fewest bytes, for owners and relays."""
    if request.root == head.root and request.count == head.count:
        return Repair(head=head, mode=SAME, from_seq=0, upserts=b"", removes=b"")
    made = log.last_repair
    if made is not None and request.epoch == head.epoch and request.seq == made.from_seq:
        return made
    touched = log.touched_since(request.seq) if request.epoch == head.epoch else None
    if touched is None:
        return snapshot(head, entries)
    upserts = entries.only(touched).pack()
    removes = pack_keys(without(touched, entries.hashes))
    log.last_repair = Repair(head=head, mode=LOG, from_seq=request.seq, upserts=upserts, removes=removes)
    return log.last_repair


def snapshot(head: Head, entries: Mapping[int, int]) -> Repair:
    """The whole set under its head; owners and relays send the same bytes."""
    return Repair(head=head, mode=SNAPSHOT, from_seq=0, upserts=pack_entries(entries), removes=b"")
