"""Block hash -> which peers hold it, and the longest match of every peer at once.

Theory: a peer's advertised set is prefix-closed, so along a prompt's chain of block hashes the set of peers that hold
block i only shrinks with i. The walk therefore visits only the points where the set changes, and finds each by
galloping and bisection: O(changes x log blocks) dictionary look-ups instead of O(blocks).

A peer whose set is not prefix-closed (it lies, or its digest was cut to a budget) gets some match between the true
one and its deepest block. Routing hints may be wrong; answers are not, the engine compares tokens.

Invariants: a key exists if and only if at least one peer holds it; every bit of every mask belongs to a current peer.
"""

from collections.abc import Iterable, Sequence


class Index:
    """Residencies of one namespace."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._bit_of: dict[bytes, int] = {}
        self._peer_at: list[bytes | None] = []
        self._free_bits: list[int] = []

    def __len__(self) -> int:
        """Number of distinct blocks held by anybody."""
        return len(self._holders)

    def add(self, peer: bytes, hashes: Iterable[int]) -> None:
        """``peer`` holds ``hashes`` too. Adding twice changes nothing."""
        bit = self._bit_of.get(peer)
        if bit is None:
            bit = self._free_bits.pop() if self._free_bits else len(self._peer_at)
            if bit == len(self._peer_at):
                self._peer_at.append(None)
            self._peer_at[bit] = peer
            self._bit_of[peer] = bit
        mask = 1 << bit
        holders = self._holders
        for block in hashes:
            holders[block] = holders.get(block, 0) | mask

    def discard(self, peer: bytes, hashes: Iterable[int]) -> None:
        """``peer`` no longer holds ``hashes``."""
        bit = self._bit_of.get(peer)
        if bit is None:
            return
        keep = ~(1 << bit)
        holders = self._holders
        for block in hashes:
            mask = holders.get(block, 0) & keep
            if mask:
                holders[block] = mask
            else:
                holders.pop(block, None)

    def forget(self, peer: bytes, hashes: Iterable[int]) -> None:
        """Remove ``peer`` for good; ``hashes`` must be everything it holds."""
        self.discard(peer, hashes)
        bit = self._bit_of.pop(peer, None)
        if bit is not None:
            self._peer_at[bit] = None
            self._free_bits.append(bit)

    def matches(self, chain: Sequence[int]) -> dict[bytes, int]:
        """Peer -> number of leading blocks of ``chain`` it holds; peers that hold none are left out."""
        result: dict[bytes, int] = {}
        holders = self._holders
        depth, alive = 0, holders.get(chain[0], 0) if chain else 0
        while alive:
            # Invariant: all of ``alive`` hold block ``depth``. Gallop to the first block that one of them lacks.
            low, step = depth, 1
            high = low + step
            while high < len(chain) and holders.get(chain[high], 0) & alive == alive:
                low, step = high, step * 2
                high = low + step
            high = min(high, len(chain))
            while high - low > 1:
                middle = (low + high) // 2
                if holders.get(chain[middle], 0) & alive == alive:
                    low = middle
                else:
                    high = middle
            remaining = alive & holders.get(chain[high], 0) if high < len(chain) else 0
            for peer in self._peers_of(alive & ~remaining):
                result[peer] = high
            depth, alive = high, remaining
        return result

    def _peers_of(self, mask: int) -> Iterable[bytes]:
        while mask:
            lowest = mask & -mask
            peer = self._peer_at[lowest.bit_length() - 1]
            if peer is not None:
                yield peer
            mask ^= lowest

    def check_invariants(self) -> None:
        """Raises AssertionError when an invariant of the module's docstring is broken."""
        current = sum(1 << bit for bit in self._bit_of.values())
        for block, mask in self._holders.items():
            assert mask, f"block {block:016x} is kept without a holder"
            assert mask & ~current == 0, f"block {block:016x} is held by a forgotten peer"
        assert len(self._bit_of) + len(self._free_bits) == len(self._peer_at)
