"""A digest's entries in their wire form: sorted by hash, 9 bytes each.

A node keeps a million of them. In a dictionary each would take 100 bytes, and packing, merging and hashing would take a
Python step per entry; here each operation takes a few copies.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import ENTRY_BYTES

Keys = npt.NDArray[np.uint64]
"""Block hashes, ascending, each once."""

_PACKED = np.dtype([("hash", ">u8"), ("kind", "u1")])
_PACKED_HASH = np.dtype(">u8")


def keys_of(hashes: Iterable[int]) -> Keys:
    """``hashes`` sorted, each once."""
    return np.unique(np.fromiter(hashes, np.uint64))


def pack_keys(keys: Keys) -> bytes:
    return keys.astype(_PACKED_HASH).tobytes()


def unpack_keys(data: bytes) -> Keys:
    """Inverse of ``pack_keys``. Raises RemoteError unless sorted, distinct and whole."""
    if len(data) % _PACKED_HASH.itemsize:
        raise RemoteError("packed hashes are not a multiple of 8 bytes")
    return _ascending(np.frombuffer(data, _PACKED_HASH).astype(np.uint64))


def without(keys: Keys, others: Keys) -> Keys:
    return keys[~_are_in(keys, others)]


class EntrySet(Mapping[int, int]):
    """Block hash -> class. Immutable."""

    __slots__ = ("hashes", "kinds")

    def __init__(self, hashes: Keys, kinds: "npt.NDArray[np.uint8]") -> None:
        self.hashes = hashes
        self.kinds = kinds

    @classmethod
    def of(cls, entries: Mapping[int, int]) -> "EntrySet":
        if isinstance(entries, EntrySet):
            return entries
        hashes = np.fromiter(entries, np.uint64, len(entries))
        order = hashes.argsort()
        return cls(hashes[order], np.fromiter(entries.values(), np.uint8, len(entries))[order])

    @classmethod
    def unpack(cls, data: bytes) -> "EntrySet":
        """Inverse of ``pack``. Raises RemoteError unless sorted, distinct and whole."""
        if len(data) % ENTRY_BYTES:
            raise RemoteError("packed entries are not a multiple of 9 bytes")
        packed = np.frombuffer(data, _PACKED)
        return cls(_ascending(packed["hash"].astype(np.uint64)), packed["kind"].copy())

    def pack(self) -> bytes:
        """The entries sorted by hash, 9 bytes each: hash big-endian, class."""
        packed = np.empty(len(self.hashes), _PACKED)
        packed["hash"], packed["kind"] = self.hashes, self.kinds
        return packed.tobytes()

    def root(self) -> bytes:
        """The 16 bytes that commit to these entries."""
        return blake3(self.pack(), derive_key_context="mycelia 2026 digest root v1").digest(length=16)

    def only(self, keys: Keys) -> "EntrySet":
        is_in = _are_in(self.hashes, keys)
        return EntrySet(self.hashes[is_in], self.kinds[is_in])

    def patched(self, upserts: "EntrySet", removes: Keys) -> "EntrySet":
        """These entries with ``upserts``, and then without ``removes``."""
        kept = ~_are_in(self.hashes, upserts.hashes)
        hashes = np.concatenate((self.hashes[kept], upserts.hashes))
        kinds = np.concatenate((self.kinds[kept], upserts.kinds))
        order = hashes.argsort(kind="stable")
        order = order[~_are_in(hashes[order], removes)]
        return EntrySet(hashes[order], kinds[order])

    def changed(self, other: "EntrySet") -> Keys:
        """The hashes that are in only one of both, or in both with different classes."""
        gone, new = without(self.hashes, other.hashes), without(other.hashes, self.hashes)
        ours, theirs = self.only(other.hashes), other.only(self.hashes)
        differing = ours.hashes[ours.kinds != theirs.kinds]
        return np.sort(np.concatenate((gone, new, differing)))

    def __getitem__(self, block: int) -> int:
        place = int(np.searchsorted(self.hashes, np.uint64(block)))
        if place == len(self.hashes) or int(self.hashes[place]) != block:
            raise KeyError(block)
        return int(self.kinds[place])

    def __iter__(self) -> Iterator[int]:
        return iter(self.hashes.tolist())

    def __len__(self) -> int:
        return len(self.hashes)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, EntrySet):
            return np.array_equal(self.hashes, other.hashes) and np.array_equal(self.kinds, other.kinds)
        return super().__eq__(other)


NOTHING = EntrySet(np.zeros(0, np.uint64), np.zeros(0, np.uint8))


def _are_in(keys: Keys, others: Keys) -> "npt.NDArray[np.bool_]":
    if not len(others):
        return np.zeros(len(keys), np.bool_)
    places = np.searchsorted(others, keys)
    places[places == len(others)] = 0
    found: npt.NDArray[np.bool_] = others[places] == keys
    return found


def _ascending(hashes: Keys) -> Keys:
    if not (hashes[1:] > hashes[:-1]).all():
        raise RemoteError("packed hashes are not sorted")
    return hashes
