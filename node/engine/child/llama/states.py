"""Contexts of recurrent and hybrid models, which keep one state per sequence besides or instead of cells.

llama.cpp's rules for states, from its sources and tests on tiny models:

- A copy of a sequence shares the *whole* state of the source, however few positions are copied. It takes no time: the
  state itself is copied when one of the two sequences goes on. So a copy of no positions shares only the state.
- A state cannot be rolled back. To remove positions from the end fails, or is wrong, while the state is after them.
- ``llama_state_seq_*_ext`` with ``PARTIAL_ONLY`` saves and restores only the state of a sequence, whose cells stay. The
  size is constant. On one core 1.7 MB take 0.07 ms to save and as long to restore, and 0.3 ms to hash. Saved states are
  halved, see ``halved_states.py``.
- The last position of a sequence is the smaller one of its cells' and its state's, and of the first one the larger. So
  the first position says nothing unless the state is removed.
- An aborted decode leaves states that are new in some layers and old in others. So here nothing is aborted: steps are
  short instead, as on a GPU.
- A context has memory for the states of all its sequences from the start.

- Without cells it computes the rows of several sequences together only if their ids follow each other. There the ids of
  sequences with a state are mapped to the lowest ones.

So ``copy_prefix`` copies the cells only, and ``restore_state`` must follow. Until then the sequence has no state, and
``end`` is 0.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mycelia.node.engine.child.llama.batch import BatchRow
from mycelia.node.engine.child.llama.bindings import L, address_of
from mycelia.node.engine.child.llama.halved_states import HalvedForm, form_of
from mycelia.node.engine.child.llama.llama import BROKEN, OK, REFUSED, RESTORED, Llama
from mycelia.node.engine.sizing import CellBudget, CellChoice, Offload, choose_sequences, state_cells
from mycelia.proto.wire.errors import LocalError

_STATE_ONLY = L.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
_PROBED = 8
"""Number of tokens of the tests at the start."""


class StateLlama(Llama):
    """A ``Llama`` whose model keeps states."""

    keeps_states = True
    halves_states = True
    """Saved states are halved if the model goes on from them as well."""

    _form: HalvedForm | None = None
    """How states are halved; None: they are saved as they are."""
    _places: dict[int, int] | None = None
    """Sequence -> llama.cpp's id, of sequences with a state; None in a model with cells, where both are the same."""

    def _plan_sequences(self, wanted: int, memory: CellBudget | None) -> int:
        self.has_cells = bool(L.llama_model_is_hybrid(self.model))
        self._places = None if self.has_cells else {}
        self.state_bytes = self.saved_state_bytes = self._measure_state()
        self._num_sequences = wanted
        if memory is None:
            return wanted
        free = self._free_on_gpus() if self.placement.gpus else None
        self._num_sequences = choose_sequences(wanted, self.state_bytes, memory, free)
        return self._num_sequences

    def _measure_state(self) -> int:
        """The size of a saved state, from a context of one sequence."""
        context = self.open_side_context(
            n_ctx=64, n_batch=_PROBED, n_ubatch=_PROBED, n_seq_max=1, n_threads=1, n_threads_batch=1, no_perf=True
        )
        try:
            tokens = (L.llama_token * 1)(min(1, self.num_vocab - 1))
            if L.llama_decode(context, L.llama_batch_get_one(tokens, 1)):
                raise LocalError(f"the model does not decode: {self._log.reason('llama_decode failed')}")
            return int(L.llama_state_seq_get_size_ext(context, 0, _STATE_ONLY))
        finally:
            L.llama_free(context)

    def _choose_cells(self, budget: CellBudget, offload: Offload) -> CellChoice:
        if self.has_cells:
            taken = self._num_sequences * self.state_bytes
            host_bytes = None if budget.host_bytes is None else budget.host_bytes - taken
            return super()._choose_cells(replace(budget, host_bytes=host_bytes), offload)
        return CellChoice(state_cells(budget.slots, int(L.llama_model_n_ctx_train(self.model))))

    def decode(self, rows: Sequence[BatchRow]) -> tuple[int, list[int]]:
        if self._places is None:
            return super().decode(rows)
        placed = [replace(row, seq_id=self._place(row.seq_id)) for row in rows]
        order = sorted(range(len(rows)), key=lambda index: placed[index].seq_id)
        result, sorted_outputs = super().decode([placed[index] for index in order])
        outputs = dict(zip(order, sorted_outputs, strict=True))
        return result, [outputs[index] for index in range(len(rows))]

    def _place(self, seq_id: int) -> int:
        """llama.cpp's id of a sequence that has a state or gets one. May mutate the map."""
        places = self._places
        if places is None:
            return seq_id
        if seq_id not in places:
            taken = set(places.values())
            places[seq_id] = next(place for place in range(len(taken) + 1) if place not in taken)
        return places[seq_id]

    # --- positions ------------------------------------------------------------------------------------------------

    def end(self, seq_id: int) -> int:
        if self._places is not None and seq_id not in self._places:
            return 0
        return int(L.llama_memory_seq_pos_max(self._memory, self._place(seq_id))) + 1

    def clear(self, seq_id: int) -> None:
        if self._places is None:
            super().clear(seq_id)
        elif seq_id in self._places:
            super().clear(self._places.pop(seq_id))

    def clear_all(self) -> None:
        super().clear_all()
        if self._places:
            self._places.clear()

    def _is_empty(self, seq_id: int) -> bool:
        if self._places is not None:
            return seq_id not in self._places
        return bool(L.llama_memory_seq_pos_min(self._memory, seq_id) < 0)

    def truncate(self, seq_id: int, length: int) -> bool:
        """Drop the state and all cells from ``length`` on."""
        if self._places is not None:
            self.clear(seq_id)
            return True
        return self._drop_state(seq_id) and self._remove(seq_id, length, -1)

    def copy_prefix(self, source: int, target: int, length: int) -> bool:
        """Clear ``target``, then let it share the first ``length`` cells of ``source``, but no state. Both may be the
        same sequence."""
        if self._places is not None:
            self.clear(target)
            return True
        if source == target:
            self._copy(source, self.spare, 0, length)
            source = self.spare
        self.clear(target)
        self._copy(source, target, 0, length)
        self.clear(self.spare)
        return self._drop_state(target)

    def replace_prefix(self, source: int, target: int, length: int) -> bool:
        end = self.end(target)
        if not self.has_cells:
            return True
        self._copy(target, self.spare, 0, 0)  # The state waits there.
        self._remove(target, 0, length)
        self._copy(source, target, 0, length)
        self._copy(self.spare, target, 0, 0)
        self.clear(self.spare)
        return self.end(target) == end

    # --- states -----------------------------------------------------------------------------------------------------

    def save_state(self, seq_id: int) -> memoryview | None:
        if self._is_empty(seq_id):
            return None
        place = self._place(seq_id)
        size = int(L.llama_state_seq_get_size_ext(self.context, place, _STATE_ONLY))
        data = np.empty(size, np.uint8)
        saved = L.llama_state_seq_get_data_ext(self.context, address_of(data), size, place, _STATE_ONLY)
        if not saved == size == self.state_bytes:
            return None
        return data.data if self._form is None else self._form.halved(data.data)

    def restore_state(self, blob: memoryview, seq_id: int, length: int) -> bool:
        whole = blob if self._form is None else self._form.whole(blob)
        return self._set_state(self._place(seq_id), whole) and self.end(seq_id) == length

    def _set_state(self, seq_id: int, blob: memoryview) -> bool:
        data = np.frombuffer(blob, np.uint8)
        read = L.llama_state_seq_set_data_ext(self.context, address_of(data), len(data), seq_id, _STATE_ONLY)
        return bool(read == len(data))

    def _drop_state(self, seq_id: int) -> bool:
        """Leave the sequence its cells only."""
        return self._set_state(seq_id, self._no_state)

    # --- cells ------------------------------------------------------------------------------------------------------

    def save_range(self, seq_id: int, start: int, end: int) -> memoryview | None:
        if not self.has_cells:
            return None
        self.clear(self.spare)
        self._copy(seq_id, self.spare, start, end)
        blob = self._save_cells() if self._drop_state(self.spare) else None
        first = L.llama_memory_seq_pos_min(self._memory, self.spare)
        self.clear(self.spare)
        return blob if blob is not None and first == start and _num_cells(blob) == end - start else None

    def _save_cells(self) -> memoryview | None:
        size = int(L.llama_state_seq_get_size(self.context, self.spare))
        data = np.empty(size, np.uint8)
        saved = L.llama_state_seq_get_data(self.context, address_of(data), size, self.spare)
        return data.data if saved == size else None

    def restore_range(self, blob: memoryview, held: tuple[int, int], target: int, start: int, end: int) -> int:
        """As in ``Llama``, for a sequence that has no state yet."""
        if not held[0] <= start < end <= held[1]:
            return REFUSED
        data = np.frombuffer(blob, np.uint8)
        self.clear(self.spare)
        read = L.llama_state_seq_set_data(self.context, address_of(data), len(data), self.spare)
        first = L.llama_memory_seq_pos_min(self._memory, self.spare)
        is_whole = read == len(data) and first == held[0] and _num_cells(blob) == held[1] - held[0]
        if is_whole:
            self._copy(self.spare, target, start, end)
        self.clear(self.spare)
        if not is_whole:
            return REFUSED
        return RESTORED if L.llama_memory_seq_pos_min(self._memory, target) == 0 else BROKEN

    # --- tests at the start -------------------------------------------------------------------------------------------

    def _probe_reuse(self) -> bool:
        """Whether a restored state continues as the original does, tested on a few tokens. Chooses ``_form``."""
        if self._twins:
            return False  # (windowed attention beside states: never seen)
        self.can_abort = False
        self._no_state = self._saved_nothing()
        if not self.halves_states:
            return self._continues(None)
        return self._continues(self._form_of_states()) or (self._form is not None and self._continues(None))

    def _form_of_states(self) -> HalvedForm | None:
        tokens = [(7 * i + 3) % self.num_vocab for i in range(_PROBED)]
        is_saved = self.decode([BatchRow(0, 0, tokens, False)])[0] == OK
        state = self.save_state(0) if is_saved else None
        self.clear_all()
        return form_of(state) if state is not None else None

    def _continues(self, form: HalvedForm | None) -> bool:
        """Whether this is so with saved states in this form. Sets it."""
        self._form = form
        self.saved_state_bytes = self.state_bytes if form is None else form.halved_bytes
        tokens = [(7 * i + 3) % self.num_vocab for i in range(2 * _PROBED)]
        rest = [BatchRow(0, _PROBED, tokens[_PROBED:], True)]
        works = self.decode([BatchRow(0, 0, tokens[:_PROBED], False)])[0] == OK
        blob = self.save_state(0)
        logits = self._logits_of(rest)
        works = works and blob is not None and logits is not None and self.copy_prefix(0, 1, _PROBED)
        if works and blob is not None and logits is not None:
            works = self.restore_state(blob, 1, _PROBED)
            again = self._logits_of([BatchRow(1, row.start, row.tokens, True) for row in rest])
            scale = float(np.abs(logits).max())
            works = works and again is not None and bool(np.allclose(logits, again, rtol=0.0, atol=0.02 * scale))
            works = works and self.replace_prefix(0, 1, _PROBED) and self.end(1) == len(tokens)
        self.clear_all()
        return works

    def _logits_of(self, rows: Sequence[BatchRow]) -> "np.ndarray[Any, np.dtype[np.float32]] | None":
        result, outputs = self.decode(rows)
        return self.logits(outputs[-1]).copy() if result == OK else None

    def _saved_nothing(self) -> memoryview:
        """What llama.cpp saves of a sequence without a state."""
        self.clear(self.spare)
        size = int(L.llama_state_seq_get_size_ext(self.context, self.spare, _STATE_ONLY))
        data = np.empty(size, np.uint8)
        L.llama_state_seq_get_data_ext(self.context, address_of(data), size, self.spare, _STATE_ONLY)
        return data.data

    def _probe_tier(self) -> bool:
        """Whether cells can be saved and restored without states, and then the state."""
        if not self.has_cells:
            return True
        tokens = [(7 * i + 3) % self.num_vocab for i in range(_PROBED)]
        works = self.decode([BatchRow(0, 0, tokens, True)])[0] == OK
        cells, state = self.save_range(0, 0, _PROBED), self.save_state(0)
        self.cell_bytes = len(cells) // _PROBED if cells is not None else 0
        works = works and cells is not None and state is not None
        if works and cells is not None and state is not None:
            works = self.restore_range(cells, (0, _PROBED), 1, 0, _PROBED) == RESTORED
            works = works and self.restore_state(state, 1, _PROBED) and self.save_range(1, 0, _PROBED) == cells
        self.clear_all()
        return works


def _num_cells(blob: memoryview) -> int:
    """The number of cells in llama.cpp's blob of a sequence; before it are a mark, an id and the number of streams."""
    return int(np.frombuffer(blob, np.int32, 4)[3])
