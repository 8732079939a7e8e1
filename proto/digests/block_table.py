"""Block hash -> small number, for millions of blocks: a hash table whose operations take many keys at once.

A prompt looks up a hundred blocks and a digest brings thousands. Their cost is scattered memory. So a look-up here
touches one cache line and the processor fetches all lines at the same time; a dictionary touches four, one after
another.

Layout: buckets of ``_WIDTH`` keys beside their values. A key's bucket is its highest bits: block hashes are already as
good as random, and a sorted digest then runs through the memory from one end to the other. A key whose bucket is full
goes to an ordinary dictionary. These are one in 1,000 at the load at which the table grows, and all keys that an
attacker made for one bucket, so that no choice of keys makes this slower than a dictionary.

Invariants: 0 marks a free place among the keys (so key 0 is in the dictionary), a place is free if and only if its
value is 0, and no key is stored twice.
"""

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Values = npt.NDArray[np.uint32]
_Places = npt.NDArray[np.intp]

_WIDTH = 8
"""64 bytes of keys: a cache line."""
_LEAST_BUCKETS = 16
_MOST_LOAD, _LEAST_LOAD = 0.4, 0.08
"""Shares of all places: the table doubles above the first and halves below the second."""


class BlockTable:
    """A map from 64-bit keys to numbers from 1 to 2**32 - 1; 0 means that a key is missing."""

    def __init__(self) -> None:
        self._overflow: dict[int, int] = {}
        self.num_resizes = 0
        """How often all keys were placed anew, which takes time proportional to their number."""
        self._clear(_LEAST_BUCKETS)

    def __len__(self) -> int:
        return self._num_placed + len(self._overflow)

    @property
    def num_bytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    def get(self, keys: Keys) -> Values:
        """The value of each key. Does not mutate."""
        found, values_found = self._look_up(keys)
        values = np.zeros(len(keys), np.uint32)
        values[found] = values_found
        if self._overflow:
            (missing,) = (values == 0).nonzero()
            values[missing] = [self._overflow.get(key, 0) for key in keys[missing].tolist()]
        return values

    def get_leading(self, keys: Keys) -> Values:
        """The values of ``keys`` up to the first missing one. Does not mutate."""
        if not len(keys) or not self._has(int(keys[0])):  # (most prompts are in no other cache)
            return np.zeros(0, np.uint32)
        found, values = self._look_up(keys)
        is_gapless = len(found) > 0 and int(found[-1]) == len(found) - 1
        if is_gapless and (len(found) == len(keys) or int(keys[len(found)]) not in self._overflow) and values.all():
            return values
        values = self.get(keys)
        (gaps,) = (values == 0).nonzero()
        return values[: gaps[0]] if len(gaps) else values

    def put(self, keys: Keys, values: Values) -> None:
        """Set the values, none of them 0, of distinct ``keys``, ascending. Mutates."""
        is_new, places = self._find_stored(keys)
        self._values.put(places, values[~is_new])
        for row in np.flatnonzero(is_new).tolist() if self._overflow else ():
            key = int(keys[row])
            if key in self._overflow:
                self._overflow[key] = int(values[row])
                is_new[row] = False
        if is_new.any():
            self._insert(keys[is_new], values[is_new])

    def remove(self, keys: Keys) -> None:
        """Remove distinct ``keys``, ascending; missing ones are ignored. Mutates."""
        is_missing, places = self._find_stored(keys)
        self._keys.put(places, 0)
        self._values.put(places, 0)
        self._num_placed -= len(places)
        if self._overflow:
            for key in keys[is_missing].tolist():
                self._overflow.pop(key, None)
        if len(self) < _LEAST_LOAD * self._keys.size and len(self._keys) > _LEAST_BUCKETS:
            self._resize(len(self))

    def items(self) -> tuple[Keys, Values]:
        """All keys, in no order, and their values."""
        places = np.flatnonzero(self._keys)
        num_extra = len(self._overflow)
        keys = np.fromiter(self._overflow.keys(), np.uint64, num_extra)
        values = np.fromiter(self._overflow.values(), np.uint32, num_extra)
        return (
            np.concatenate((self._keys.take(places), keys)),
            np.concatenate((self._values.take(places), values)),
        )

    def check_invariants(self) -> None:
        keys, values = self.items()
        assert len(np.unique(keys)) == len(keys) == len(self)
        assert np.array_equal(self.get(keys), values)
        assert values.all() and np.array_equal(self._keys == 0, self._values == 0)
        assert self._num_placed <= _MOST_LOAD * self._keys.size

    def _clear(self, num_buckets: int) -> None:
        self._keys = np.zeros((num_buckets, _WIDTH), np.uint64)
        self._values = np.zeros((num_buckets, _WIDTH), np.uint32)
        self._shift = np.uint64(65 - num_buckets.bit_length())
        self._num_placed = 0
        self._overflow.clear()

    def _buckets(self, keys: Keys) -> _Places:
        return (keys >> self._shift).astype(np.intp)

    def _has(self, key: int) -> bool:
        """Whether one key is present: a fifth of the time that arrays take."""
        return key in self._overflow or (key != 0 and key in self._keys[key >> int(self._shift)].tolist())

    def _look_up(self, keys: Keys) -> tuple[_Places, Values]:
        """Rows of ``keys`` that are in a bucket, and their values. Key 0 is found in each free place, with value 0."""
        buckets = self._buckets(keys)
        (found,) = (self._keys.take(buckets, axis=0).ravel() == keys.repeat(_WIDTH)).nonzero()
        return found // _WIDTH, self._values.take(buckets, axis=0).take(found)

    def _find_stored(self, keys: Keys) -> tuple["npt.NDArray[np.bool_]", _Places]:
        """Which of ``keys`` are in no bucket, and the places of the others."""
        buckets = self._buckets(keys)
        is_found = self._keys.take(buckets, axis=0) == keys[:, np.newaxis]
        if len(keys) and keys[0] == 0:
            is_found[0] = False
        rows, columns = is_found.nonzero()
        is_missing = np.ones(len(keys), np.bool_)
        is_missing[rows] = False
        return is_missing, buckets[rows] * _WIDTH + columns

    def _insert(self, keys: Keys, values: Values) -> None:
        """Add missing keys, ascending."""
        if self._num_placed + len(keys) > _MOST_LOAD * self._keys.size:
            self._grow(len(self) + len(keys))
        for _ in range(_WIDTH):
            if not len(keys):
                return
            buckets = self._buckets(keys)
            is_first = np.diff(buckets, prepend=-1) > 0  # (one per bucket at a time)
            first_keys, first_values, first_buckets = keys[is_first], values[is_first], buckets[is_first]
            free = self._keys.take(first_buckets, axis=0) == 0
            places = first_buckets * _WIDTH + free.argmax(axis=1)
            fits = free.any(axis=1) & (first_keys != 0)
            self._keys.put(places[fits], first_keys[fits])
            self._values.put(places[fits], first_values[fits])
            self._num_placed += int(fits.sum())
            self._spill(first_keys[~fits], first_values[~fits])
            keys, values = keys[~is_first], values[~is_first]
        self._spill(keys, values)  # (all places of their buckets were tried)

    def _spill(self, keys: Keys, values: Values) -> None:
        self._overflow.update(zip(keys.tolist(), values.tolist(), strict=True))

    def _grow(self, num_keys: int) -> None:
        """Make room for ``num_keys`` by splitting every bucket in two, in which each key keeps its place. Takes half
        the time of inserting all keys anew: 80 ms for a million."""
        while num_keys > _MOST_LOAD * self._keys.size:
            rows, columns = self._keys.nonzero()
            keys, values = self._keys[rows, columns], self._values[rows, columns]
            num_buckets = 2 * len(self._keys)
            self._keys = np.zeros((num_buckets, _WIDTH), np.uint64)
            self._values = np.zeros((num_buckets, _WIDTH), np.uint32)
            self._shift -= np.uint64(1)
            places = self._buckets(keys) * _WIDTH + columns
            self._keys.put(places, keys)
            self._values.put(places, values)
        crowded = sorted(self._overflow.items())
        self._overflow.clear()
        self._insert(np.array([key for key, _ in crowded], np.uint64), np.array([v for _, v in crowded], np.uint32))

    def _resize(self, num_keys: int) -> None:
        """Make room for ``num_keys``, at a load between the two limits."""
        self.num_resizes += 1
        keys, values = self.items()
        num_buckets = _LEAST_BUCKETS
        while num_keys > _MOST_LOAD * num_buckets * _WIDTH:
            num_buckets *= 2
        self._clear(num_buckets)
        order = np.argsort(keys)
        self._insert(keys[order], values[order])
