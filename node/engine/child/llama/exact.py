"""A llama.cpp context whose logits are the same bits, independent of reused prefixes and of other rows in the batch.

Without this, a row's result depends on more than the tokens before it, for two reasons.

*The kernels.* llama.cpp chooses kernels, which add numbers in different orders, by the number of rows: attention in
tiles for 64 rows or more, split over threads for exactly one; weights of some formats differently below 8 rows, or for
one. So every micro-batch here has 8, 16, 24 or 32 rows, padded with rows of the spare sequence. The number of outputs
is a multiple of 8, too, because the last layer and the vocabulary are computed for outputs only. Within these bounds
every kernel computes each row as if it were alone.

*The order of the cells.* Attention adds over the cells in their order in the cache and skips the cells that the row
does not attend to. So gaps do not matter, but the order does, and llama.cpp puts new cells into any hole. The
invariant: **the used cells are the first ones, without a hole, and the cells of each sequence are in the order of their
positions**. New cells then go behind all others, which keeps the invariant. Freed cells may leave a hole, which is
closed before the next cell is placed: saving and restoring the whole cache moves all cells to its beginning in the same
order. This copy of the cache (10 ms for 1,000 tokens of a 135M model) is the price of exactness after an eviction.

So generated tokens are reused like prompts: a decode row is computed by the same kernels as a prefill row.

Refused are models with windowed attention (llama.cpp overwrites cells that left the window), models with experts (an
expert computes as many rows as are routed to it), and models without flash attention, whose sums depend on the gaps.
GPUs are not used: they choose kernels by other rules.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mycelia.node.engine.child.llama.batch import BatchRow
from mycelia.node.engine.child.llama.bindings import L
from mycelia.node.engine.child.llama.devices import read_metadata
from mycelia.node.engine.child.llama.llama import RESTORED, Llama
from mycelia.node.engine.child.llama.models import LoadedModel, keeps_states
from mycelia.node.engine.child.llama.states import StateLlama
from mycelia.node.engine.sizing import CellBudget, Offload
from mycelia.proto.wire.errors import LocalError

ROWS = 8
"""The least common multiple of the needs of llama.cpp's kernels for weights: 2 rows, groups of 4, at least 8."""
MICRO_BATCH_ROWS = 32
"""Fewer than 64, from which attention is computed in tiles whose borders depend on the places of the cells."""


class PackedLlama(Llama):
    """A ``Llama`` that keeps its cells without holes and in the order of their positions, and computes few rows at
    once."""

    micro_batch_tokens = MICRO_BATCH_ROWS
    flash_attention: Sequence[int] = (1,)

    _has_holes = False

    def _check_kind(self, path: Path) -> None:
        kind = read_metadata(L, self.model, "general.architecture")
        for is_refused, why in (
            (L.llama_model_n_swa(self.model) > 0, "its attention is windowed"),
            (keeps_states(self.model) != self.keeps_states, "it is recurrent"),
            (read_metadata(L, self.model, f"{kind}.expert_count") not in ("", "0"), "it has experts"),
        ):
            if is_refused:
                raise LocalError(f"cannot serve {path} in exact mode: {why}")

    def _decode(self, length: int) -> int:
        self._close_holes()
        result = super()._decode(length)
        L.llama_memory_seq_rm(self._memory, self.spare, -1, -1)  # These are the last cells: no hole.
        return result

    def _close_holes(self) -> None:
        if self._has_holes and self.has_cells and not self.compact():
            raise LocalError("llama.cpp cannot move the cells of this model, which exact mode needs")
        self._has_holes = False

    def clear(self, seq_id: int) -> None:
        if not self._is_empty(seq_id):
            self._has_holes = True
            super().clear(seq_id)

    def clear_all(self) -> None:
        super().clear_all()
        self._has_holes = False

    def truncate(self, seq_id: int, length: int) -> bool:
        if self.end(seq_id) > length:
            self._has_holes = True
        return super().truncate(seq_id, length)

    def save_range(self, seq_id: int, start: int, end: int) -> memoryview | None:
        had_holes = self._has_holes
        blob = super().save_range(seq_id, start, end)
        self._has_holes = had_holes  # The spare sequence only shared cells.
        return blob

    def restore_range(self, blob: memoryview, held: tuple[int, int], target: int, start: int, end: int) -> int:
        self._close_holes()
        result = super().restore_range(blob, held, target, start, end)
        if result == RESTORED and held == (start, end):
            self._has_holes = False  # The target now has all cells of the spare sequence.
        return result


class ExactLlama(PackedLlama):
    """A ``Llama`` whose logits are the same bits with and without reuse, alone or beside other rows."""

    def __init__(
        self,
        path: Path,
        *,
        num_cells: int | CellBudget,
        num_sequences: int,
        num_threads: int,
        batch_tokens: int,
        loaded: LoadedModel | None = None,
    ) -> None:
        """See ``Llama``. The rows of padding reduce ``num_cells``. Raises LocalError for refused models, ValueError
        when ``batch_tokens`` is not a multiple of ``ROWS``."""
        if batch_tokens % ROWS:
            raise ValueError(f"a padded batch has a multiple of {ROWS} rows")
        super().__init__(
            path,
            num_cells=num_cells,
            num_sequences=num_sequences,
            num_threads=num_threads,
            batch_tokens=batch_tokens,
            offload=Offload(layers=0),
            loaded=loaded,
        )
        self.num_cells -= ROWS - 1
        self.context_tokens = min(self.context_tokens, self.num_cells)

    def _decode(self, length: int) -> int:
        padded = length + -length % ROWS
        self._batch.tokens[length:padded] = 0
        self._batch.positions[length:padded] = np.arange(padded - length)
        self._batch.sequences[length:padded] = self.spare
        self._batch.outputs[length:padded] = 0
        for start in range(0, padded, MICRO_BATCH_ROWS):
            outputs = self._batch.outputs[start : min(start + MICRO_BATCH_ROWS, padded)]
            outputs[np.flatnonzero(outputs == 0)[: -int(outputs.sum()) % ROWS]] = 1
        return super()._decode(padded)

    def replace_prefix(self, source: int, target: int, length: int) -> bool:
        # The source's cells may be behind the cells that ``target`` keeps: so these are moved behind all others.
        end, tail = int(L.llama_memory_seq_pos_max(self._memory, target)) + 1, None
        if length < end:
            tail = self.save_range(target, length, end)
            if tail is None:
                return False
        if not self.copy_prefix(source, target, length):
            return False
        return tail is None or self.restore_range(tail, (length, end), target, length, end) == RESTORED


class ExactStateLlama(PackedLlama, StateLlama):
    """The same for a model that keeps states, whose kernels also depend on the tokens of a sequence in a micro-batch.

    So each decode computes one sequence, from a multiple of ``state_grid`` up to the next one or to the end of the
    prompt, and generated tokens one by one, also when they are computed again. States are saved, and cells shared, at
    these multiples in prompts only: then every token of a prompt is computed in the same company, with and without
    reuse. The caller plans such rows, see ``rows.py``. Attention splits a single row over threads, in a way that
    depends on other sequences: beside a single row goes one of the spare sequence.
    """

    state_grid = MICRO_BATCH_ROWS
    halves_states = False

    def decode(self, rows: Sequence[BatchRow]) -> tuple[int, list[int]]:
        if len(rows) > 1:
            raise ValueError("one row at a time")
        padding = [BatchRow(self.spare, 0, [0], False)] if self.has_cells and len(rows[0].tokens) == 1 else []
        result, outputs = super().decode([*rows, *padding])
        return result, outputs[:1]

    def replace_prefix(self, source: int, target: int, length: int) -> bool:
        if not self.has_cells:
            return True
        # As in ``ExactLlama``; the state waits in host memory, as the spare sequence is needed for the tail.
        end, state, tail = self.end(target), self.save_state(target), None
        if length < end:
            tail = self.save_range(target, length, end)
        if state is None or (length < end and tail is None) or not self.copy_prefix(source, target, length):
            return False
        moved = tail is None or self.restore_range(tail, (length, end), target, length, end) == RESTORED
        return moved and self.restore_state(state, target, end)
