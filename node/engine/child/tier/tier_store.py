"""The second tier of the prefix cache: moves cells from llama.cpp to memory and files, and back.

``Tier`` has the index, ``EdgeFiles`` the files, ``Llama`` the cells; this file moves blobs between them and trusts no
blob. A blob goes back into the KV cache only if its key equals the prompt token for token and its content matches its
BLAKE3 hash, and only if the sequence then has exactly the positions 0..k-1. Everything else is a miss.

Every edge is written to disk as soon as it leaves the KV cache, so that a crash loses little; ``close`` writes the
rest. States are large, and most are never used, so a state is written when a prompt begins there, or by ``close``.

All methods are for the thread that owns the llama.cpp context. On one core, 1,000 tokens of a 135M model take 11 ms to
save and 8 ms to restore from memory, 5 ms of it for the hash; their prefill takes 7 s.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from blake3 import blake3

from mycelia.node.engine.changes import ChangeLog
from mycelia.node.engine.child.cells import Evicted
from mycelia.node.engine.child.llama.llama import BROKEN, RESTORED, Llama
from mycelia.node.engine.child.tier.reported import Reported
from mycelia.node.engine.child.tier.restore_rates import RestoreRates
from mycelia.node.engine.child.tier.tier_files import EdgeFiles
from mycelia.proto.cache.checkpoints import LEAST_TOKENS
from mycelia.proto.cache.edges import OPEN, TOKEN_BYTES, Edge, Whose, open_in, runs
from mycelia.proto.cache.sharing import unpaint
from mycelia.proto.cache.tier import Tier, Trimmed
from mycelia.proto.cache.value import Reuse
from mycelia.proto.wire.blocks import pack_tokens, unpack_tokens


class TierStore:
    def __init__(
        self,
        tier: Tier,
        files: EdgeFiles | None = None,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], object] = lambda line: sys.stderr.write(line + "\n"),
    ) -> None:
        """files: None for no disk tier. say: logs one line. Call ``load`` and ``follow`` before use."""
        self.tier = tier
        self._files = files
        self._clock = clock
        self._say = say
        self.reported = Reported(tier)
        self._unwritten: dict[Edge, None] = {}
        """Edges in memory that the writer had no room for."""
        self.rates = RestoreRates()
        self._closes_at_s: float | None = None

    @property
    def has_disk(self) -> bool:
        return self._files is not None

    def follow(self, changes: ChangeLog, wake: Callable[[], None]) -> None:
        """Report changes of the tiers' contents to ``changes`` from now on. Moves between memory and disk do not count.
        wake: called by another thread when it is time for ``poll``."""
        self.reported.changes = changes
        if self._files is not None:
            self._files.on_ended = wake

    def load(self, wall_s: float) -> None:
        """Add the edges that an earlier run left on disk. wall_s: the present time in seconds since 1970."""
        if self._files is None:
            return
        now = self._clock()
        found, bad = self._files.scan()
        for file in found:
            used_s = now - max(0.0, wall_s - file.modified_s)
            self.tier.add_file(file.packed, file.start, file.blob_bytes, file.content_hash, used_s, file.whose)
        if bad:
            self._say(f"cache: {len(bad)} files were torn or of another version and are deleted, {bad[0]} first")
        self._settle(self.tier.trim(now))
        inner: set[Edge] = set()
        for edge in sorted(self.tier, key=lambda edge: -edge.end):
            if edge not in inner:
                self.reported.add(edge)
            if not self.tier.keeps_states:
                inner.update(
                    piece.edge for piece in self.tier.plan(edge.packed, 0, edge.whose) if piece.end == piece.edge.end
                )

    def open_prefixes(self) -> Iterator[tuple[Sequence[int], bytes]]:
        """The tokens and the swarm of each open edge."""
        return ((unpack_tokens(edge.packed), edge.whose.swarm) for edge in self.tier if edge.whose.tag is None)

    # --- from the KV cache ----------------------------------------------------------------------------------------

    def keep(self, llama: Llama, leaf: Evicted) -> None:
        """Save the cells of an evicted leaf that no tier has yet. Call before they are cleared."""
        self._save(llama, leaf.seq_id, leaf.path, leaf.start, leaf.reuse)

    def keep_state(
        self, llama: Llama, seq_id: int, tokens: Sequence[int], place: int, whose: Whose, turns: int = 0
    ) -> None:
        """Save the state of a sequence after all of its ``tokens``, unless ``whose`` has it, or one shortly before, or
        there is no room. turns: see ``checkpoints.turns_of``."""
        packed, now = pack_tokens(tokens), self._clock()
        held = self.tier.state(packed, whose)
        if held is not None and len(tokens) - held.end < LEAST_TOKENS:
            self.tier.touch([held], now)
            if held not in self.reported:
                self.reported.add(held)
            return
        fits = llama.saved_state_bytes + len(packed) <= max(self.tier.ram_bytes, self.tier.disk_bytes)
        if len(tokens) < LEAST_TOKENS or not fits:
            return
        blob = llama.save_state(seq_id)
        if blob is None:
            return
        edge = self.tier.add_state(packed, blob, blake3(blob).digest(), now, place, whose, turns)
        if edge.num_bytes > self.tier.ram_bytes:  # (otherwise it would be gone at once)
            self._write(edge)
        self._settle(self.tier.trim(now))
        if not edge.gone:
            self.reported.add(edge)

    def _save(self, llama: Llama, seq_id: int, path: Sequence[int], start: int, reuse: Reuse) -> None:
        """Save the cells from ``start`` on that no tier has yet."""
        if not llama.has_cells:
            return
        tokens, num_open, tag, swarm = unpaint(path)
        packed, now, whose = pack_tokens(tokens), self._clock(), Whose(tag, num_open, swarm)
        self._touch(packed, whose, now)
        if start < num_open:
            self._save_part(llama, seq_id, packed[: num_open * TOKEN_BYTES], start, now, reuse, open_in(swarm))
        if num_open < len(tokens):
            self._save_part(llama, seq_id, packed, max(start, num_open), now, reuse, whose)

    def _save_part(
        self, llama: Llama, seq_id: int, packed: bytes, start: int, now: float, reuse: Reuse, whose: Whose
    ) -> None:
        """Save cells that are all open, or all the owner's."""
        last: Edge | None = None
        pieces = self.tier.plan(packed, start, whose)
        start = pieces[-1].end if pieces else start
        before = pieces or (self.tier.plan(packed[: start * TOKEN_BYTES], 0, whose) if start else [])
        for run_start, run_end in runs(start, len(packed) // TOKEN_BYTES):
            if self._closes_at_s is not None and not self._wait_for_writer(self._closes_at_s):
                break
            blob = llama.save_range(seq_id, run_start, run_end)
            if blob is None:
                self.reported.lost_cells()
                break
            key = packed[: run_end * TOKEN_BYTES]
            last = self.tier.add(key, run_start, blob, blake3(blob).digest(), reuse, whose)
            self._write(last)
            self._settle(self.tier.trim(now))
        if last is None:
            return
        if last.gone:
            self.reported.add_rest(last)
            return
        self.reported.add(last)
        if before and before[-1].edge.end == start:  # The new edges continue it, so it is not a leaf any more.
            self.reported.discard(before[-1].edge)

    def _touch(self, packed: bytes, whose: Whose, now: float) -> None:
        """Make the edges of a used sequence recent: they must not be evicted before the edges that continue them."""
        self.tier.touch((piece.edge for piece in self.tier.plan(packed, 0, whose)), now)
        state = self.tier.state(packed, whose)
        if state is not None:
            self.tier.touch([state], now)

    # --- to the KV cache -------------------------------------------------------------------------------------------

    def restore_with_state(self, llama: Llama, seq_id: int, tokens: Sequence[int], covered: int, whose: Whose) -> bool:
        """Extend ``seq_id``, which has the cells of the first ``covered`` tokens and no state, to all ``tokens`` and
        the state after them. False: the sequence is broken; clear it."""
        packed = pack_tokens(tokens)
        edge = self.tier.state(packed, whose)
        if edge is None or edge.end != len(tokens):
            return False
        if llama.has_cells and covered < len(tokens):
            covered = self.restore(llama, seq_id, tokens, covered, 0.0, whose) or 0
            if covered < len(tokens):
                return False
        blob = self._verified(edge)
        if blob is None or not llama.restore_state(blob, seq_id, len(tokens)):
            return False
        now = self._clock()
        self.tier.count(edge, now)
        self.tier.promote(edge, blob)
        self._write(edge)
        self._settle(self.tier.trim(now))
        return True

    def reach(self, tokens: Sequence[int], covered: int, whose: Whose) -> int:
        """See ``Tier.reach``."""
        return self.tier.reach(pack_tokens(tokens), covered, whose) if len(self.tier) else covered

    def protect(self, tokens: Sequence[int], whose: Whose) -> None:
        """Protect the edges of ``tokens``, which will be restored next, from eviction by edges saved before that."""
        if len(self.tier):
            self._touch(pack_tokens(tokens), whose, self._clock())

    def restore(
        self,
        llama: Llama,
        seq_id: int,
        tokens: Sequence[int],
        covered: int,
        prefill_rate: float,
        whose: Whose = OPEN,
    ) -> int | None:
        """Extend ``seq_id``, which has the first ``covered`` of ``tokens``, as far as the tiers reach for ``whose``.
        Returns the new number of tokens; None when the sequence is broken: clear it. Restores nothing if a prefill of
        the rest at ``prefill_rate`` tokens/s (0: unknown) is expected to be faster."""
        if not len(self.tier):
            return covered
        pieces = self.tier.plan(pack_tokens(tokens), covered, whose)
        if not pieces or not self.rates.pays(pieces, prefill_rate):
            return covered
        for piece in pieces:
            began = self._clock()
            from_disk = piece.edge.blob is None
            blob = self._verified(piece.edge)
            if blob is None:
                break
            held = (piece.edge.start, piece.edge.end)
            result = llama.restore_range(blob, held, seq_id, piece.start, piece.end)
            if result == BROKEN:
                return None
            if result != RESTORED:
                break  # The blob is valid, so the cache lacks room for all of it.
            covered = piece.end
            now = self._clock()
            self.rates.add(piece.end - piece.start, now - began, from_disk=from_disk)
            self.tier.count(piece.edge, now)
            self.tier.promote(piece.edge, blob)
        self._settle(self.tier.trim(self._clock()))
        return covered

    def _verified(self, edge: Edge) -> memoryview | None:
        """The edge's blob if it matches its hash; else None, and the edge is dropped."""
        blob = edge.blob
        if blob is None and self._files is not None:
            blob = self._files.read(edge)
        if blob is not None and blake3(blob).digest() == edge.content_hash:
            return blob
        self.discard(edge)
        return None

    def discard(self, edge: Edge) -> None:
        self._say(f"cache: a saved prefix of {edge.end} tokens could not be restored and is dropped")
        self._settle(self.tier.remove(edge))

    def resize(self, disk_bytes: int) -> None:
        """The files may take this much from now on."""
        self.tier.disk_bytes = disk_bytes
        self._settle(self.tier.trim(self._clock()))

    # --- disk and index -------------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Process finished writes and start the next. Call between steps and after ``wake``; never waits."""
        if self._files is not None and self._files.is_writing:
            self.note_written(0.0)
        self.reported.check_doubtful()

    def close(self, llama: Llama, leaves: Iterable[tuple[int, Sequence[int]]], deadline_s: float) -> None:
        """Write everything that is only in the KV cache or in memory. leaves: (id, path), the most valuable first; they
        are written first. Stops at ``deadline_s`` by the clock; each file is complete or absent. The last call."""
        if self._files is None:
            return
        self._closes_at_s = deadline_s
        for seq_id, path in leaves:
            self._save(llama, seq_id, path, 0, Reuse(self._clock()))
        states = (edge for edge in self.tier if edge.is_state and edge.blob is not None)
        for edge in sorted({*self._unwritten, *states}, key=lambda edge: -edge.reuse.last_used_s):
            if not self._wait_for_writer(deadline_s):
                return
            self._write(edge)
        while self._files.is_writing and self._clock() < deadline_s:
            self.note_written(deadline_s - self._clock())
        if not self._files.is_writing:
            self._files.close()

    def _wait_for_writer(self, deadline_s: float) -> bool:
        """Wait until the writer's queue has room. False at the deadline, or when writes fail."""
        assert self._files is not None
        while self._files.is_busy and self._clock() < deadline_s:
            self.note_written(deadline_s - self._clock())
        return self._clock() < deadline_s and not self._files.failure

    def note_written(self, timeout_s: float) -> None:
        assert self._files is not None
        failed_before = self._files.failure
        for edge, written in self._files.finished(max(0.0, timeout_s)):
            if edge.gone and written:
                self._files.remove(edge)
            self.tier.end_write(edge, written)
        if self._files.failure and not failed_before:
            self._say(f"cache: nothing is written to disk any more: {self._files.failure}")
        while self._unwritten and not self._files.is_busy and not self._files.failure:
            edge = next(iter(self._unwritten))
            del self._unwritten[edge]
            self._write(edge)
        self._settle(self.tier.trim(self._clock()))

    def _write(self, edge: Edge) -> None:
        if self._files is None or self._files.failure or edge.gone:
            return
        if self._files.is_busy:
            self._unwritten[edge] = None
        elif self.tier.begin_write(edge):
            self._unwritten.pop(edge, None)
            self._files.write(edge)

    def _settle(self, trimmed: Trimmed) -> None:
        for edge in trimmed.unlink:
            assert self._files is not None
            self._files.remove(edge)
        if any(not edge.is_state for edge in trimmed.gone):
            self.reported.lost_cells()
        for edge in trimmed.gone:
            self._unwritten.pop(edge, None)
            was_told = edge in self.reported
            self.reported.discard(edge)
            if was_told:
                self.reported.add_rest(edge)

    def check_invariants(self) -> None:
        """Raise AssertionError when the index or the reported leaves are inconsistent."""
        self.tier.check_invariants()
        for edge in self._unwritten:
            assert not edge.gone and edge.blob is not None and not edge.writing, "an edge waits for the writer in vain"
        assert not any(edge.gone for edge in self.reported), "an edge that is gone is reported"
