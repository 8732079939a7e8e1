"""The accounts of the KV cells and sequence ids: promised, held and free ones, and the evictions that free more.

The theory and both invariants are in ``scheduler.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mycelia.node.engine.changes import ChangeLog
from mycelia.node.engine.child.job import Job, Limits
from mycelia.proto.cache.radix import RadixTree
from mycelia.proto.cache.value import Reuse


@dataclass(frozen=True)
class Evicted:
    """A leaf that left the tree. Its sequence keeps its cells until the worker clears it."""

    seq_id: int
    path: Sequence[int]
    """The leaf's tokens from the root, see ``proto.sharing.unpaint``."""
    start: int
    """Index of the first cell that only this leaf had; the tree keeps the cells before it."""
    reuse: Reuse
    """The uses of the leaf's own cells; see ``proto.value``."""


class Cells:
    """The accounts of one pool. ``tree`` and ``running`` belong to the scheduler, which changes them."""

    def __init__(self, limits: Limits, tree: RadixTree, changes: ChangeLog, running: list[Job]) -> None:
        self._limits = limits
        self._tree = tree
        self._changes = changes
        self._running = running
        self.free_ids = list(range(limits.num_sequences - 1, -1, -1))

    def reset(self) -> None:
        """Free all ids. The caller empties the tree and the list of running jobs."""
        self.free_ids = list(range(self._limits.num_sequences - 1, -1, -1))

    def num_unpromised(self) -> int:
        """Number of cells that may still be promised."""
        reserved = sum(job.own_cells for job in self._running)
        return self._limits.num_cells - reserved - self._tree.pinned_tokens()

    def freed_by(self, job: Job, others: Sequence[Job]) -> int:
        """Number of cells that may be promised again when a running job stops and ``others`` go on."""
        is_last = job.pinned is not None and all(other.pinned != job.pinned for other in others)
        return job.own_cells + (len(self._tree.tokens_of(job.pinned)) if is_last and job.pinned is not None else 0)

    def can_free(self, num_cells: int) -> bool:
        """Whether evicting every unpinned leaf leaves ``num_cells`` cells and a sequence id."""
        has_id = bool(self.free_ids) or self._tree.least_valuable() is not None
        return has_id and self.num_unpromised() >= num_cells

    def num_free(self) -> int:
        return self._limits.num_cells - self._tree.num_tokens - sum(job.held_cells for job in self._running)

    def make_room(self, num_cells: int) -> list[Evicted]:
        """Evict until ``num_cells`` cells and an id are free, if ``can_free`` says so; returns the leaves to clear."""
        evicted: list[Evicted] = []
        while not self.free_ids or self.num_free() < num_cells:
            leaf = self.evict_one()
            assert leaf is not None, "promised"
            evicted.append(leaf)
        return evicted

    def evict_all(self) -> list[Evicted]:
        """Evict every unpinned leaf; returns the leaves to clear."""
        evicted: list[Evicted] = []
        while (leaf := self.evict_one()) is not None:
            evicted.append(leaf)
        return evicted

    def evict_one(self) -> Evicted | None:
        """Evict the least valuable unpinned leaf; returns the leaf to clear, or None when there is none."""
        seq_id = self._tree.least_valuable()
        if seq_id is None:
            return None
        path, reuse = self._tree.tokens_of(seq_id), self._tree.reuse(seq_id)
        num_own = self._tree.remove(seq_id)
        self._changes.evict(seq_id)
        self.free_ids.append(seq_id)
        return Evicted(seq_id, path, len(path) - num_own, reuse)

    def check_invariants(self) -> None:
        """Raise AssertionError when the accounting of cells, ids or pins is wrong."""
        limits, tree, running = self._limits, self._tree, self._running
        assert self.num_unpromised() >= 0, "more cells promised than there are"
        assert self.num_free() >= 0, "more cells held than there are"
        active = [job.seq_id for job in running]
        held = set(active) | set(tree.seq_ids())
        assert None not in held and len(set(active)) == len(active), "running jobs share an id"
        assert len(set(self.free_ids)) == len(self.free_ids) and not held & set(self.free_ids), "a free id is in use"
        assert len(held) + len(self.free_ids) == limits.num_sequences, "an id was lost"
        pins: dict[int, int] = {}
        for job in running:
            assert 0 <= job.num_computed <= len(job.tokens) <= job.limit_tokens, "a job outgrew its limit"
            assert job.num_computed <= job.promised <= job.limit_tokens, "a job outgrew what it was promised"
            if job.pinned is not None:
                pins[job.pinned] = pins.get(job.pinned, 0) + 1
                covered = tree.match(job.path(len(job.tokens)))[0]
                assert job.shared_tokens <= covered, "a job shares what the tree does not hold"
        for seq_id in tree.seq_ids():
            assert tree.pins(seq_id) == pins.get(seq_id, 0), f"pins of leaf {seq_id}"
            assert seq_id not in active or tree.pins(seq_id), "a running job's leaf is not pinned"
