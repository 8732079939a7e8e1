"""The index of the second tier: edges of the prefix cache that left the KV cache, in host memory and on disk.

Theory. When the scheduler evicts a leaf, the cells that only this leaf held are serialised, one blob for a run of at
most ``RUN_TOKENS``: this is an *edge*. Its key is the *whole* token sequence from the root: the cells of a token depend
on every token before it, so the key of the cells ``start..end`` is ``tokens[:end]``, compared token for token. A prompt
is restored by a chain of pieces. Each piece begins at the end of the cells so far or before it, and reaches further:

    prompt     |---------------------------------------------------->
    KV cache   |=========|                               covered
    edge 1          start|===============|end
    edge 2                       start|======================|end
    pieces               |------1------|------- 2 -----------|

A hash of ``tokens[:start]`` only finds candidates; it never decides. An edge whose prefix is lost is kept, because the
prefix may be computed again, but it is not used any more, so it is evicted first.

An edge has an owner or is open (``proto.sharing``). An owner's edge restores prompts of the same owner; an open edge
restores the open part of any prompt of its swarm. The open part of a sequence is saved as open edges, the rest as edges
of its owner.

A recurrent or hybrid model also keeps *states*, see ``checkpoints.py``: an edge with ``start == end`` holds no cells
but the state after its key's tokens. A state is used whole or not at all.

Each edge is in memory (``blob``), on disk (``on_disk``), or both; ``writing`` while a writer copies it to disk. Budgets
count blobs and keys. The edge of least value is evicted first: the tokens it saves per byte, times the chance of reuse
(``proto.value``, as for the leaves of the KV cache). A restore counts as a use. A use of its sequence in the KV cache
only makes the edge recent.

Invariants (``check_invariants``):
  - an edge has 0 <= start <= end, its key holds ``end`` > 0 tokens, and it is in memory or on disk;
  - every edge is found under its start and the hash of its key's first ``start`` tokens, among the states or the
    others, and ids are unique;
  - memory holds at most its budget, without the edges that are being written, which the writer's queue bounds;
  - files, including those to be written, hold at most the disk's budget.

No clock, no IO, no thread; ``now`` is the caller's, in seconds.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from mycelia.proto.cache.checkpoints import HELD_S, ReuseCounts
from mycelia.proto.cache.edges import (
    DIGEST_BYTES,
    OPEN,
    TOKEN_BYTES,
    ByPrefix,
    Edge,
    Whose,
    common_tokens,
    key_of,
    link,
    may_share,
    may_use,
)
from mycelia.proto.cache.value import Reuse

MIB, GIB = 2**20, 2**30

MAX_EDGES = 8_192
"""Two million tokens in full runs. Bounds the time of a lookup (3 ms) and of the choice of an edge to evict (6 ms)."""


@dataclass(frozen=True)
class Piece:
    """Cells ``start..end`` to restore from ``edge``, which may hold more cells on both sides."""

    edge: Edge
    start: int
    end: int


@dataclass(frozen=True)
class Trimmed:
    """Work for the caller: forget ``gone`` edges, remove the files of ``unlink`` edges. An edge may be in both."""

    gone: list[Edge] = field(default_factory=list)
    unlink: list[Edge] = field(default_factory=list)


class Tier:
    """The edges and the choice of those to evict. Budgets in bytes; 0 turns that tier off."""

    def __init__(
        self,
        ram_bytes: int,
        disk_bytes: int,
        keeps_states: bool = False,
        value: Callable[[Edge, float], float] | None = None,
    ) -> None:
        """keeps_states: the tier is of a model that keeps states. value: (edge, now) -> number; the edge of the
        smallest is evicted first. None: by the rules of the model's kind."""
        self.keeps_states = keeps_states
        self._value = value or (self._value_with_states if keeps_states else Edge.value)
        self.reuse_counts = ReuseCounts()
        self.kept: Edge | None = None
        """A state that is about to be restored, and is not evicted."""
        self.ram_bytes, self.disk_bytes = ram_bytes, disk_bytes
        self.ram_used = self.writing_used = self.disk_used = 0
        """Bytes of the edges in memory, of those being written, and of files, including those to be written."""
        self._edges: dict[int, Edge] = {}
        self._cells, self._states = ByPrefix(), ByPrefix()
        self._free_ids: list[int] = []

    def __len__(self) -> int:
        return len(self._edges)

    def __iter__(self) -> Iterator[Edge]:
        """All edges, the oldest first."""
        return iter(self._edges.values())

    # --- lookup: changes nothing ----------------------------------------------------------------------------------

    def plan(self, packed: bytes, covered: int, whose: Whose = OPEN) -> list[Piece]:
        """The pieces that extend cells ``0..covered`` of the prompt ``packed`` as far as possible, as few as possible.
        They follow each other from ``covered`` on without gaps. Empty when no edge reaches further."""
        pieces: list[Piece] = []
        reached, hashed, hasher = covered, 0, blake3()
        best: Edge | None = None
        best_end = covered
        for start in self._cells.starts:
            if start > reached and best is not None and best_end > reached:
                pieces.append(Piece(best, reached, best_end))
                reached = best_end
            if start > reached or start * TOKEN_BYTES >= len(packed):
                break
            hasher.update(packed[hashed * TOKEN_BYTES : start * TOKEN_BYTES])
            hashed = start
            for edge in self._cells.found[start].get(hasher.digest(length=DIGEST_BYTES), ()):
                if not may_share(edge, whose):
                    continue
                end = common_tokens(edge.packed, packed)
                if edge.whose.tag is None:
                    end = min(end, whose.num_open)
                if end > best_end:  # (best_end is at least ``start``, so the whole key up to there is equal)
                    best, best_end = edge, end
        if best is not None and best_end > reached:
            pieces.append(Piece(best, reached, best_end))
        return pieces

    def state(self, packed: bytes, whose: Whose = OPEN) -> Edge | None:
        """The longest state that ``whose`` may use and whose tokens begin the prompt ``packed``."""
        best, hashed, hasher = None, 0, blake3()
        for length in self._states.starts:
            if length * TOKEN_BYTES > len(packed):
                break
            hasher.update(packed[hashed * TOKEN_BYTES : length * TOKEN_BYTES])
            hashed = length
            for edge in self._states.found[length].get(hasher.digest(length=DIGEST_BYTES), ()):
                if may_use(edge, whose) and packed.startswith(edge.packed):
                    best = edge
        return best

    def reach(self, packed: bytes, covered: int, whose: Whose = OPEN) -> int:
        """Number of leading tokens of ``packed`` that the KV cache and the tiers hold together for ``whose``."""
        pieces = self.plan(packed, covered, whose)
        return pieces[-1].end if pieces else covered

    # --- changes --------------------------------------------------------------------------------------------------

    def add(
        self,
        packed: bytes,
        start: int,
        blob: memoryview,
        content_hash: bytes,
        reuse: Reuse,
        whose: Whose = OPEN,
    ) -> Edge:
        """Add a blob in memory. reuse: its uses so far; copied. Raises ValueError for no tokens. Call ``trim``
        afterwards, which may evict it."""
        if start * TOKEN_BYTES >= len(packed):
            raise ValueError("an edge needs at least one token")
        edge = self._insert(packed, start, len(blob), content_hash, reuse.copy(), whose)
        edge.blob = blob
        self.ram_used += edge.num_bytes
        return edge

    def add_state(
        self,
        packed: bytes,
        blob: memoryview,
        content_hash: bytes,
        now: float,
        place: int,
        whose: Whose = OPEN,
        turns: int = 0,
    ) -> Edge:
        """Add the state after ``packed``, in memory. turns: see ``checkpoints.turns_of``. Call ``trim`` afterwards."""
        edge = self._insert(packed, len(packed) // TOKEN_BYTES, len(blob), content_hash, Reuse(now), whose)
        edge.blob, edge.place, edge.turns = blob, place, turns
        self.reuse_counts.saved(place, turns)
        self.ram_used += edge.num_bytes
        return edge

    def add_file(
        self,
        packed: bytes,
        start: int,
        blob_bytes: int,
        content_hash: bytes,
        now: float,
        whose: Whose = OPEN,
    ) -> Edge:
        """Add an edge that is already on disk, with ``start`` at its end a state. Call ``trim`` afterwards. Raises
        ValueError for no tokens."""
        edge = self._insert(packed, start, blob_bytes, content_hash, Reuse(now), whose)
        edge.on_disk = True
        self.disk_used += edge.num_bytes
        return edge

    def touch(self, edges: Iterable[Edge], now: float) -> None:
        """Note that the sequences of ``edges`` are in use."""
        for edge in edges:
            edge.reuse.touch(now)

    def count(self, edge: Edge, now: float) -> None:
        """A prompt begins with the edge's cells, or at the state."""
        edge.reuse.count(now)
        if edge.is_state:
            self.reuse_counts.used(edge.place, edge.uses, edge.turns)
            edge.uses += 1

    def promote(self, edge: Edge, blob: memoryview) -> None:
        """Keep a blob that was read from disk also in memory, if it fits there. Call ``trim`` afterwards."""
        if edge.blob is None and not edge.gone and edge.num_bytes <= self.ram_bytes:
            edge.blob = blob
            self.ram_used += edge.num_bytes

    def begin_write(self, edge: Edge) -> bool:
        """Reserve disk for an edge in memory. False when it is already there, being written, or too large for the
        budget now. If True, call ``trim`` afterwards, and ``end_write`` after the write, successful or not."""
        if edge.blob is None or edge.on_disk or edge.writing:
            return False
        if self.writing_used + edge.num_bytes > self.disk_bytes:
            return False
        edge.writing = True
        self.writing_used += edge.num_bytes
        self.disk_used += edge.num_bytes
        return True

    def end_write(self, edge: Edge, written: bool) -> None:
        """Note the end of a write. Call ``trim`` afterwards. The caller removes the file of a ``gone`` edge."""
        if edge.gone:
            return
        assert edge.writing
        edge.writing = False
        self.writing_used -= edge.num_bytes
        edge.on_disk = written
        if not written:
            self.disk_used -= edge.num_bytes

    def remove(self, edge: Edge) -> Trimmed:
        if edge.gone:
            return Trimmed()
        unlink = [edge] if edge.on_disk else []
        if edge.on_disk or edge.writing:
            self.disk_used -= edge.num_bytes
        edge.on_disk = False
        self._drop_blob(edge)
        self._forget(edge)
        return Trimmed([edge], unlink)

    def trim(self, now: float) -> Trimmed:
        """Evict the least valuable edges until all bounds hold."""
        gone: list[Edge] = []
        unlink: list[Edge] = []
        while len(self._edges) > MAX_EDGES:
            edge = self._least(now, lambda edge: not edge.writing)
            if edge is None:
                break
            removed = self.remove(edge)
            gone += removed.gone
            unlink += removed.unlink
        while self.disk_used > self.disk_bytes:
            edge = self._least(now, lambda edge: edge.on_disk)
            assert edge is not None, "the disk is used by nobody"
            edge.on_disk = False
            self.disk_used -= edge.num_bytes
            unlink.append(edge)
            if edge.blob is None:
                self._forget(edge)
                gone.append(edge)
        while self.ram_used - self.writing_used > self.ram_bytes:
            edge = self._least(now, lambda edge: edge.blob is not None and not edge.writing)
            assert edge is not None, "memory is used by nobody"
            self._drop_blob(edge)
            if not edge.on_disk:
                self._forget(edge)
                gone.append(edge)
        return Trimmed(gone, unlink)

    # --- internals ------------------------------------------------------------------------------------------------

    def _least(self, now: float, may_go: Callable[[Edge], bool]) -> Edge | None:
        edges = (edge for edge in self._edges.values() if edge is not self.kept and may_go(edge))
        return min(edges, key=lambda edge: self._value(edge, now), default=None)

    def _insert(
        self,
        packed: bytes,
        start: int,
        blob_bytes: int,
        content_hash: bytes,
        reuse: Reuse,
        whose: Whose,
    ) -> Edge:
        if not 0 <= start * TOKEN_BYTES <= len(packed) or not packed:
            raise ValueError("an edge needs at least one token")
        edge_id = self._free_ids.pop() if self._free_ids else len(self._edges)
        edge = Edge(edge_id, packed, start, blob_bytes, content_hash, reuse, whose)
        if edge.is_state:
            below = self.state(packed[:-TOKEN_BYTES], whose)
            edge.saves = edge.end - (below.end if below is not None else 0)
            for piece in self.plan(packed, 0, whose):
                link(edge, piece.edge)
        else:
            beginning = packed[: (start + 1) * TOKEN_BYTES]
            for state in self._states.edges():
                if state.packed.startswith(beginning) and may_share(edge, state.whose):
                    link(state, edge)
        self._edges[edge_id] = edge
        self._index(edge).add(edge)
        return edge

    def _value_with_states(self, edge: Edge, now: float) -> float:
        age_s = max(0.0, now - edge.reuse.last_used_s)
        if not edge.is_state:
            return math.inf if edge.needed else -age_s
        chance = self.reuse_counts.chance(edge.place, edge.uses, edge.turns)
        return chance / (HELD_S[edge.place] + age_s) * math.sqrt(edge.saves) / edge.num_bytes

    def _forget(self, edge: Edge) -> None:
        edge.gone = True
        for cells in edge.needs:
            cells.needed -= 1
        edge.needs.clear()
        del self._edges[edge.edge_id]
        self._free_ids.append(edge.edge_id)
        self._index(edge).remove(edge)

    def _index(self, edge: Edge) -> "ByPrefix":
        return self._states if edge.is_state else self._cells

    def _drop_blob(self, edge: Edge) -> None:
        if edge.blob is not None:
            edge.blob = None
            self.ram_used -= edge.num_bytes
            if edge.writing:
                edge.writing = False
                self.writing_used -= edge.num_bytes

    def check_invariants(self) -> None:
        """Raise AssertionError when the module's invariants do not hold."""
        found = [*self._cells.edges(), *self._states.edges()]
        assert len(found) == len(self._edges), "an edge is lost or found twice"
        for index in (self._cells, self._states):
            assert index.starts == sorted(index.found), "starts differ from the index"
        for edge_id, edge in self._edges.items():
            assert edge.edge_id == edge_id and not edge.gone, "a wrong id"
            assert edge.whose.tag is None or edge.whose.num_open <= edge.start, "an owner's edge is open in part"
            assert 0 <= edge.start <= edge.end > 0 and len(edge.packed) % TOKEN_BYTES == 0, "an edge without tokens"
            assert edge in self._index(edge).found[edge.start][key_of(edge)], "an edge cannot be found"
            assert edge.blob is not None or edge.on_disk, "an edge is nowhere"
            assert edge.needed == sum(edge in state.needs for state in self._states.edges()), "needed by others"
            assert not edge.writing or (edge.blob is not None and not edge.on_disk), "a write of nothing"
        held = [edge for edge in self._edges.values() if edge.blob is not None]
        assert self.ram_used == sum(edge.num_bytes for edge in held), "memory is miscounted"
        assert self.writing_used == sum(edge.num_bytes for edge in held if edge.writing), "writes are miscounted"
        disk = sum(edge.num_bytes for edge in self._edges.values() if edge.on_disk or edge.writing)
        assert self.disk_used == disk, "the disk is miscounted"
        assert self.ram_used - self.writing_used <= self.ram_bytes, "memory over its budget"
        assert self.disk_used <= self.disk_bytes, "the disk over its budget"
        assert len(self._edges) + len(self._free_ids) == len({*self._edges, *self._free_ids}), "an id is used twice"
