"""Merges the changes of a prefix cache until they are read.

The reader applies a change as "first evict, then store". So a merged change holds for every id whether the reader's old
leaf with that id is evicted, and which tokens the new leaf has. Its size is bounded by the number of ids: sequences,
and edges of the second tier.
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
        """Note a new leaf. Its id is new, or was evicted before."""
        self._stored[seq_id] = tokens

    def evict(self, seq_id: int) -> None:
        if self._stored.pop(seq_id, None) is None:
            self._evicted[seq_id] = None

    def reset(self) -> None:
        self._evicted.clear()
        self._stored.clear()
        self._reset = True

    def add(self, change: CacheChange) -> None:
        """Append a change that was merged elsewhere."""
        if change.reset:
            self.reset()
        for seq_id in change.evicted:
            self.evict(seq_id)
        for seq_id, tokens in change.stored:
            self.store(seq_id, tokens)

    def take(self) -> CacheChange:
        """The net change. Empties the log."""
        change = CacheChange(stored=list(self._stored.items()), evicted=list(self._evicted), reset=self._reset)
        self._evicted, self._stored, self._reset = {}, {}, False
        return change
