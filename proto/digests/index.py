"""Block hash -> which peers hold it, and the longest match of every peer at once.

Theory: a peer's announced set is prefix-closed. So along a prompt's block hashes the set of peers that hold block i
only shrinks with i, and a peer that holds the last block before a change, and not the one after, matches up to there.
Equal sets share one number: a walk reads the numbers of all blocks at once and then looks only where they change.

The sets of a model that keeps states have gaps (``digest.py``): there a peer matches up to the last block that it
holds, whatever it holds before.

A peer whose set is not prefix-closed (it lies, or its digest was cut to a budget) gets a match between the true one and
its deepest block. Routing hints may be wrong; answers are not, because the engine compares tokens.

Invariants: a block is kept if and only if at least one peer holds it, a set if and only if it is that of a block; every
bit of every set belongs to a current peer.
"""

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from mycelia.proto.digests.block_table import BlockTable, Keys

Hashes = Collection[int] | Keys
_FEW = 16
"""Up to this many ones of a mask are found faster one by one."""


class Index:
    """Which peers hold which blocks in one namespace."""

    def __init__(self, has_gaps: bool = False) -> None:
        self._has_gaps = has_gaps
        self._table = BlockTable()
        """Block -> number of the set of its holders."""
        self._sets: list[int] = [0]
        """Number -> the set, one bit per peer. Number 0 is the empty set; free numbers have -1."""
        self._sizes: list[int] = [0]
        """Number -> blocks with that set."""
        self._number_of: dict[int, int] = {0: 0}
        self._free_numbers: list[int] = []
        self._bit_of: dict[bytes, int] = {}
        self._peer_at: list[bytes] = []
        """Empty at free bits."""
        self._free_bits: list[int] = []

    def __len__(self) -> int:
        """Number of distinct blocks held by any peer."""
        return len(self._table)

    def add(self, peer: bytes, hashes: Hashes) -> None:
        """``peer`` also holds ``hashes``. Adding twice changes nothing."""
        bit = self._bit_of.get(peer)
        if bit is None:
            bit = self._free_bits.pop() if self._free_bits else len(self._peer_at)
            if bit == len(self._peer_at):
                self._peer_at.append(peer)
            self._peer_at[bit] = peer
            self._bit_of[peer] = bit
        self._change(_distinct(hashes), 1 << bit, 0)

    def discard(self, peer: bytes, hashes: Hashes) -> None:
        """``peer`` no longer holds ``hashes``."""
        bit = self._bit_of.get(peer)
        if bit is not None:
            self._change(_distinct(hashes), 0, 1 << bit)

    def forget(self, peer: bytes, hashes: Hashes) -> None:
        """Remove ``peer``; ``hashes`` must be everything it holds."""
        self.discard(peer, hashes)
        bit = self._bit_of.pop(peer, None)
        if bit is not None:
            self._peer_at[bit] = b""
            self._free_bits.append(bit)

    def matches(self, chain: Collection[int]) -> "Matches":
        """Peer -> how much of the beginning of ``chain`` it holds. Fastest for the ``array("Q")`` that ``block_hashes``
        returns. Use the result before the next change of this index."""
        numbers = self._table.get(_keys(chain)) if self._has_gaps else self._table.get_leading(_keys(chain))
        if not len(numbers):
            return Matches((), self._bit_of, self._peer_at)
        if self._has_gaps:
            return self._matches_with_gaps(numbers.tolist())
        (changes,) = (numbers[1:] != numbers[:-1]).nonzero()
        lasts = [*changes.tolist(), len(numbers) - 1]
        sets = self._sets
        levels = [(last + 1, sets[number]) for last, number in zip(lasts, numbers[lasts].tolist(), strict=True)]
        return Matches(levels, self._bit_of, self._peer_at)

    def _matches_with_gaps(self, numbers: Sequence[int]) -> "Matches":
        """Matches whose levels are as without gaps: each peer is in all levels up to its last block."""
        levels, holders = list[tuple[int, int]](), 0
        for place in range(len(numbers) - 1, -1, -1):
            more = holders | self._sets[numbers[place]]
            if more != holders:
                levels.append((place + 1, more))
                holders = more
        return Matches(levels[::-1], self._bit_of, self._peer_at)

    def _change(self, keys: Keys, added: int, removed: int) -> None:
        """Add the bits ``added`` to the sets of ``keys`` and remove the bits ``removed``."""
        before = self._table.get(keys)
        numbers, counts = np.unique(before, return_counts=True)
        moves = list(zip(numbers.tolist(), counts.tolist(), strict=True))
        targets = []
        for number, count in moves:
            target = self._number((self._sets[number] | added) & ~removed)
            self._sizes[target] += count
            targets.append(target)
        for number, count in moves:
            self._sizes[number] -= count
            if number and not self._sizes[number]:
                del self._number_of[self._sets[number]]
                self._sets[number] = -1
                self._free_numbers.append(number)
        after = np.array(targets, np.uint32)[np.searchsorted(numbers, before)]
        is_gone = after == 0
        if is_gone.any():
            self._table.remove(keys[is_gone])
        is_changed = (after != before) & ~is_gone
        self._table.put(keys[is_changed], after[is_changed])

    def _number(self, holders: int) -> int:
        number = self._number_of.get(holders)
        if number is None:
            if self._free_numbers:
                number = self._free_numbers.pop()
                self._sets[number] = holders
            else:
                number = len(self._sets)
                self._sets.append(holders)
                self._sizes.append(0)
            self._number_of[holders] = number
        return number

    def holders(self) -> dict[int, set[bytes]]:
        """Block -> every peer that holds it. Slow: for checks."""
        blocks, numbers = (part.tolist() for part in self._table.items())
        peers = [{peer for peer, bit in self._bit_of.items() if holders >> bit & 1} for holders in self._sets]
        return {block: peers[number] for block, number in zip(blocks, numbers, strict=True)}

    def check_invariants(self) -> None:
        self._table.check_invariants()
        current = sum(1 << bit for bit in self._bit_of.values())
        sizes = [0] * len(self._sets)
        for number in self._table.items()[1].tolist():
            sizes[number] += 1
        assert sizes[1:] == self._sizes[1:]
        for number, holders in enumerate(self._sets):
            if number and holders >= 0:
                assert sizes[number] and self._number_of[holders] == number
                assert holders & ~current == 0, "a block is held by a forgotten peer"
        assert len(self._number_of) + len(self._free_numbers) == len(self._sets)
        assert len(self._bit_of) + len(self._free_bits) == len(self._peer_at)


class Matches(Mapping[bytes, int]):
    """Peer -> number of leading blocks that it holds, for every peer that holds any: the result of ``Index.matches``.

    All peers may hold a popular prompt while a router looks at few, so peers are listed only on demand.
    """

    def __init__(
        self, levels: Sequence[tuple[int, int]], bit_of: Mapping[bytes, int], peer_at: Sequence[bytes]
    ) -> None:
        """levels: (number of blocks, peers that hold this many), ascending. Each level's peers are among those of the
        one before, except peers whose sets are not prefix-closed."""
        self._levels = levels
        self._bit_of = bit_of
        self._peer_at = peer_at

    def __getitem__(self, peer: bytes) -> int:
        bit = self._bit_of[peer]
        place = bisect_left(self._levels, 1, key=lambda level: ~(level[1] >> bit) & 1)
        if not place:
            raise KeyError(peer)
        return self._levels[place - 1][0]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return self._levels[0][1].bit_count() if self._levels else 0

    def to_dict(self) -> dict[bytes, int]:
        result: dict[bytes, int] = {}
        peer_at, seen = self._peer_at, 0
        for num_blocks, holders in reversed(self._levels):
            fresh = holders & ~seen
            seen |= fresh
            if fresh.bit_count() > _FEW:
                result |= dict.fromkeys([peer_at[bit] for bit in _bits(fresh)], num_blocks)
                continue
            while fresh:
                bit = fresh.bit_length() - 1
                fresh ^= 1 << bit
                result[peer_at[bit]] = num_blocks
        return result


def _bits(mask: int) -> list[int]:
    """The places of the ones in ``mask``."""
    data = np.frombuffer(mask.to_bytes(mask.bit_length() // 8 + 1, "little"), np.uint8)
    ones: list[int] = np.unpackbits(data, bitorder="little").nonzero()[0].tolist()
    return ones


def _keys(hashes: Hashes) -> Keys:
    if isinstance(hashes, np.ndarray):
        return hashes
    if isinstance(hashes, array) and hashes.typecode == "Q":
        return np.frombuffer(hashes, np.uint64)
    return np.fromiter(hashes, np.uint64, len(hashes))


def _distinct(hashes: Hashes) -> Keys:
    """The distinct keys, ascending, as they come from the wire."""
    keys = _keys(hashes)
    return keys if (keys[1:] > keys[:-1]).all() else np.unique(keys)
