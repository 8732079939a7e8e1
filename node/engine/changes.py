"""Merges changes of a prefix cache while nobody reads them.

The reader applies a change as "first evict, then store", so a merged change must hold, for every id, whether the
reader's old leaf of that id goes and which tokens the new one has. The number of ids bounds it: sequences, and edges of
the second tier.
"""

from collections.abc import Sequence

from mycelia.node.engine.engine import CacheChange


class ChangeLog:
    """The net change since the last ``take``."""

    def __init__(self) -> None:
        self._evicted: dict[int, None] = {}
        self._stored: dict[int, Sequence[int]] = {}
        self._reset = False

    def __bool__(self) -> bool:
        return bool(self._evicted or self._stored or self._reset)

    def store(self, seq_id: int, tokens: Sequence[int]) -> None:
        """A leaf came; its id is new, or was evicted before."""
        self._stored[seq_id] = tokens

    def evict(self, seq_id: int) -> None:
        """A leaf went."""
        if self._stored.pop(seq_id, None) is None:
            self._evicted[seq_id] = None

    def reset(self) -> None:
        """Every leaf is gone."""
        self._evicted.clear()
        self._stored.clear()
        self._reset = True

    def add(self, change: CacheChange) -> None:
        """Append another change."""
        if change.reset:
            self.reset()
        for seq_id in change.evicted:
            self.evict(seq_id)
        for seq_id, tokens in change.stored:
            self.store(seq_id, tokens)

    def take(self) -> CacheChange:
        """The net change; the log is empty afterwards."""
        change = CacheChange(stored=list(self._stored.items()), evicted=list(self._evicted), reset=self._reset)
        self._evicted, self._stored, self._reset = {}, {}, False
        return change
