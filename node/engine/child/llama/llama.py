"""A context of llama.cpp. Every known misuse raises an error here, or is impossible.

llama.cpp abort()s on some mistakes (a batch longer than n_batch, an id of 256 or more, a partial copy in a cache that
is not unified). On others it silently computes nonsense (a copy onto a sequence that is not empty, repeated positions,
a partial copy in a windowed cache). So the positions are read back after every copy or removal.

Threads: one thread makes every call that takes the context. The vocabulary is immutable: ``tokenize``, ``piece`` and
the template may be used from any thread at any time. ctypes releases the GIL during calls.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mycelia.node.engine.child.llama.batch import Batch, BatchRow
from mycelia.node.engine.child.llama.bindings import AbortFlag, L, address_of
from mycelia.node.engine.child.llama.devices import read_shape
from mycelia.node.engine.child.llama.models import LoadedModel, find_gpus, open_model
from mycelia.node.engine.child.llama.sampler import Sampler
from mycelia.node.engine.child.llama.vocabulary import ModelVocabulary
from mycelia.node.engine.sizing import (
    MICRO_BATCH_TOKENS,
    MIN_CELLS,
    CellBudget,
    CellChoice,
    Offload,
    choose_cells,
    free_within,
    place_layers,
)
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Sampling

RESTORED, REFUSED, BROKEN = range(3)
"""The results of ``restore_range``."""

MAX_SEQUENCES = 256
"""The bound of llama.cpp for a context."""

OK, NO_ROOM, ABORTED = 0, 1, 2
"""The results of ``decode``. Any other result means that the batch or the context is broken."""


class Llama(ModelVocabulary):
    """One loaded model and one context with a unified KV cache of ``num_cells`` cells."""

    micro_batch_tokens = MICRO_BATCH_TOKENS
    flash_attention: Sequence[int] = (1, 0)
    """Values to try in this order: some models have no flash attention kernel."""
    can_abort = True
    """Whether ``abort`` ends a decode in milliseconds. On a processor llama.cpp checks the flag between operations. On
    a GPU a decode cannot be stopped, so it must be short."""
    keeps_states = False
    """Whether sequences have states besides or instead of cells, see ``states.py``."""
    has_cells = True
    state_bytes = saved_state_bytes = 0
    """Size of a sequence's state in the context, and of a saved one."""
    state_grid = 1
    """States are saved and restored at multiples of this length."""

    def __init__(
        self,
        path: Path,
        *,
        num_cells: int | CellBudget,
        num_sequences: int,
        num_threads: int,
        batch_tokens: int,
        offload: Offload | None = None,
        memory: CellBudget | None = None,
        loaded: LoadedModel | None = None,
    ) -> None:
        """Load a model. Raises LocalError, in one line, when the file, the sizes or the wanted GPUs are unusable.
        num_cells: a number is exact; with a budget, the default or as many as fit. offload: None for the default.
        memory: bounds the number of sequences of a model whose sequences take memory of their own. loaded: the model of
        ``path`` with its ``offload``, if the caller loaded it."""
        if not 1 <= num_sequences <= MAX_SEQUENCES:
            raise LocalError(f"llama.cpp holds 1 to {MAX_SEQUENCES} sequences, not {num_sequences}")
        self._loaded = loaded or open_model(path, offload or Offload())  # Kept: llama.cpp has pointers into it.
        self._log, offload, gpus = self._loaded.log, self._loaded.offload, self._loaded.gpus
        super().__init__(self._loaded.handle)
        self._check_kind(path)
        # In a model with windowed attention llama.cpp overwrites cells that left their sequence's window if only one
        # sequence has them, and drops all cells before them. So each sequence gets a twin there with the same cells.
        self._twins = num_sequences if L.llama_model_n_swa(self.model) > 0 else 0
        """The difference between the ids of a sequence and its twin; 0: no twins."""
        if num_sequences + self._twins > MAX_SEQUENCES:
            raise LocalError(f"at most {MAX_SEQUENCES // 2 - 1} sequences fit with {path}: its attention is windowed")
        self.placement = place_layers(int(L.llama_model_n_layer(self.model)), offload, gpus)
        self.offloaded = self.placement.offloaded > 0
        self.can_abort = not self.offloaded
        self.abort = AbortFlag()
        num_sequences = self._plan_sequences(num_sequences, memory)
        choice = CellChoice(num_cells) if isinstance(num_cells, int) else self._choose_cells(num_cells, offload)
        self.context = None
        while not self.context:
            try:
                self.context = self.open_context(path, choice.cells, num_sequences, num_threads, batch_tokens)
            except LocalError:
                if isinstance(num_cells, int) or choice.cells // 2 < MIN_CELLS:
                    raise
                choice = CellChoice(choice.cells // 2, f"{choice.cells} KV cells did not fit, {choice.cells // 2} do")
        self.cells_note = choice.note
        """The reason if there are fewer cells than usual; else empty."""
        self._memory = L.llama_get_memory(self.context)
        self.num_cells = int(L.llama_n_ctx(self.context))
        self.batch_tokens = batch_tokens
        # Positions beyond the trained context are accepted silently and give wrong output.
        trained = int(L.llama_model_n_ctx_train(self.model))
        self.context_tokens = min(self.num_cells, trained) if trained > 0 else self.num_cells
        self._batch = Batch(batch_tokens, self._twins)
        self.spare = num_sequences - 1
        """The sequence used to copy cells to and from the second tier; empty between calls."""
        self.reuse = self._probe_reuse()
        self.cell_bytes = 0
        """Size of a serialised cell; 0: unknown."""
        self.can_save = self.reuse and num_sequences > 2 and self._probe_tier()

    def _check_kind(self, path: Path) -> None:
        """Raise LocalError for a model that llama.cpp can serve but this class cannot."""

    def _plan_sequences(self, wanted: int, memory: CellBudget | None) -> int:
        """The number of sequences of the context: as many as wanted, unless they take memory of their own."""
        return wanted

    def _choose_cells(self, budget: CellBudget, offload: Offload) -> CellChoice:
        free = self._free_on_gpus() if self.placement.gpus else []
        return choose_cells(read_shape(L, self.model, self._loaded.path), self.placement, free, budget)

    def _free_on_gpus(self) -> list[int]:
        """The memory of each GPU that may still be taken: less than before, as the weights are loaded."""
        offload = self._loaded.offload
        return free_within(self._loaded.gpus, find_gpus(offload), offload.memory_bytes)

    def open_context(self, path: Path, num_cells: int, num_sequences: int, num_threads: int, batch_tokens: int) -> Any:
        params = L.llama_context_default_params()
        params.n_ctx = num_cells
        params.n_batch = batch_tokens
        params.n_ubatch = min(self.micro_batch_tokens, batch_tokens)
        params.n_seq_max = num_sequences + self._twins
        params.n_threads = params.n_threads_batch = num_threads
        params.kv_unified = True  # Otherwise a partial copy between sequences abort()s.
        params.swa_full = True  # Otherwise a partial copy in a sliding-window model gives an empty sequence.
        params.no_perf = True
        params.abort_callback = self.abort.callback
        params.abort_callback_data = self.abort.address
        context = None
        for flash_attention in self.flash_attention:
            params.flash_attn_type = flash_attention
            context = context or L.llama_init_from_model(self.model, params)
        if not context:
            reason = self._log.reason(f"no memory for {num_cells} cells?")
            raise LocalError(f"cannot open a context of {num_cells} cells for {path}: {reason}")
        self._loaded.adapt(context)
        return context

    def open_side_context(self, **wanted: Any) -> Any:
        """See ``LoadedModel.open_context``."""
        return self._loaded.open_context(**wanted)

    # --- decoding: the owner thread only --------------------------------------------------------------------------

    def decode(self, rows: Sequence[BatchRow]) -> tuple[int, list[int]]:
        """Compute ``rows`` in one call. Returns (OK, NO_ROOM, ABORTED or an error) and, for each row, its output index.
        NO_ROOM leaves the cache unchanged. After ABORTED some rows have cells: call ``end``. The index is for
        ``Sampler.sample``; it is -1 for rows that want no logits. Raises ValueError for more rows than the batch
        holds."""
        length, outputs = self._batch.fill(rows)
        return self._decode(length), outputs

    def _decode(self, length: int) -> int:
        self._batch.handle.n_tokens = length
        result = int(L.llama_decode(self.context, self._batch.handle))
        if not self.can_abort:
            L.llama_synchronize(self.context)  # (a GPU may still compute, and callers measure the time)
        return result

    def end(self, seq_id: int) -> int:
        """Number of positions of ``seq_id``; 0 for an empty sequence. Raises LocalError if it begins later than 0."""
        last = int(L.llama_memory_seq_pos_max(self._memory, seq_id))
        first = int(L.llama_memory_seq_pos_min(self._memory, seq_id))
        if last >= 0 and first != 0:
            raise LocalError(f"sequence {seq_id} begins at position {first}")
        return last + 1

    def _is_empty(self, seq_id: int) -> bool:
        return bool(L.llama_memory_seq_pos_max(self._memory, seq_id) < 0)

    def clear(self, seq_id: int) -> None:
        """Free the cells that only ``seq_id`` uses."""
        self._remove(seq_id, -1, -1)

    def clear_all(self) -> None:
        L.llama_memory_clear(self._memory, True)

    def truncate(self, seq_id: int, length: int) -> bool:
        """Drop all positions from ``length`` on. False when the model cannot: then clear the sequence."""
        return self._remove(seq_id, length, -1) and self._covers(seq_id, length)

    def copy_prefix(self, source: int, target: int, length: int) -> bool:
        """Clear ``target``, then let it share the first ``length`` cells of ``source``, which uses no cell. False, with
        ``target`` empty, when the positions are not exactly 0..length-1 afterwards."""
        self.clear(target)
        self._copy(source, target, 0, length)
        if self._covers(target, length):
            return True
        self.clear(target)
        return False

    def replace_prefix(self, source: int, target: int, length: int) -> bool:
        """Replace ``target``'s own cells 0..length-1 by the equal cells of ``source``. False: ``target`` is broken."""
        end = int(L.llama_memory_seq_pos_max(self._memory, target)) + 1
        if not self._remove(target, 0, length):
            return False
        self._copy(source, target, 0, length)
        return self._covers(target, end)

    def save_range(self, seq_id: int, start: int, end: int) -> memoryview | None:
        """The cells of positions ``start..end-1``, serialised; None when some are missing. Does not mutate ``seq_id``.
        llama.cpp serialises whole sequences, so the spare sequence first shares these cells, which uses no cell. 1,000
        tokens of a 135M model (23 MB) take 6 ms."""
        spare = self.spare
        self.clear(spare)
        self._copy(seq_id, spare, start, end)
        blob = None
        if self._spans(spare, start, end):
            size = int(L.llama_state_seq_get_size(self.context, spare))
            data = np.empty(size, np.uint8)  # Not a ctypes buffer, which would first be filled with zeros.
            if L.llama_state_seq_get_data(self.context, address_of(data), size, spare) == size:
                blob = data.data
        self.clear(spare)
        return blob

    def restore_range(self, blob: memoryview, held: tuple[int, int], target: int, start: int, end: int) -> int:
        """Extend ``target``, which must end at ``start``, to ``end`` by cells of ``blob``, which holds ``held``.
        Returns RESTORED; REFUSED, with ``target`` unchanged, when llama.cpp refuses the blob or lacks cells for the
        whole blob; BROKEN when ``target`` has wrong positions: clear it. The caller verifies the content of the blob
        before: llama.cpp checks only its shape."""
        spare, data = self.spare, np.frombuffer(blob, np.uint8)
        self.clear(spare)
        # llama.cpp replaces the whole destination, so the blob cannot go to the target directly.
        read = L.llama_state_seq_set_data(self.context, address_of(data), len(data), spare)
        if read != len(data) or not self._spans(spare, *held) or not held[0] <= start < end <= held[1]:
            self.clear(spare)
            return REFUSED
        intact = self._covers(target, start)
        if intact:
            self._copy(spare, target, start, end)
            intact = self._covers(target, end)
        self.clear(spare)
        return RESTORED if intact else BROKEN

    def save_state(self, seq_id: int) -> memoryview | None:
        """The state after the last position of ``seq_id``. Does not mutate. None: there is none."""
        return None

    def restore_state(self, blob: memoryview, seq_id: int, length: int) -> bool:
        """Give ``seq_id``, which has at least ``length`` cells if there are cells, the state after ``length`` tokens.
        The caller verifies the blob. False: the sequence is broken."""
        return False

    def compact(self) -> bool:
        """Move all cells to the beginning of the cache in their present order, by saving and restoring a copy. False,
        with the cache empty, when llama.cpp refuses."""
        size = int(L.llama_state_get_size(self.context))
        data = np.empty(size, np.uint8)
        saved = L.llama_state_get_data(self.context, address_of(data), size)
        return bool(saved == size == L.llama_state_set_data(self.context, address_of(data), size))

    def _remove(self, seq_id: int, start: int, end: int) -> bool:
        """Remove positions of the sequence and its twin; -1 stands for the first or the last position."""
        twin_too = not self._twins or L.llama_memory_seq_rm(self._memory, seq_id + self._twins, start, end)
        return bool(L.llama_memory_seq_rm(self._memory, seq_id, start, end) and twin_too)

    def _copy(self, source: int, target: int, start: int, end: int) -> None:
        """Share cells with ``target`` and its twin, which must have no cells at these positions."""
        L.llama_memory_seq_cp(self._memory, source, target, start, end)
        if self._twins:
            L.llama_memory_seq_cp(self._memory, source, target + self._twins, start, end)

    def _spans(self, seq_id: int, start: int, end: int) -> bool:
        first = L.llama_memory_seq_pos_min(self._memory, seq_id)
        last = L.llama_memory_seq_pos_max(self._memory, seq_id)
        return bool((first, last) == (start, end - 1))

    def _covers(self, seq_id: int, length: int) -> bool:
        last = L.llama_memory_seq_pos_max(self._memory, seq_id)
        first = L.llama_memory_seq_pos_min(self._memory, seq_id)
        return bool(last == length - 1 and (first == 0 or length == 0))

    def _probe_reuse(self) -> bool:
        """Whether prefixes can be shared: by the model's metadata, then by a test on eight tokens."""
        tokens = [min(i + 1, self.num_vocab - 1) for i in range(8)]
        result, _ = self.decode([BatchRow(0, 0, tokens, True)])
        if result != OK:
            raise LocalError(f"the model does not decode: {self._log.reason(f'llama_decode returned {result}')}")
        works = self._covers(0, 8) and self.copy_prefix(0, 1, 5) and self.truncate(1, 3)
        works = works and self.decode([BatchRow(1, 3, tokens[3:5], True)])[0] == OK and self._covers(1, 5)
        works = works and self.replace_prefix(0, 1, 4) and self._covers(0, 8)
        self.clear_all()
        return works

    def _probe_tier(self) -> bool:
        """Whether cells can be saved and restored, tested on eight tokens. Needs a spare sequence and ``reuse``."""
        tokens = [min(i + 1, self.num_vocab - 1) for i in range(8)]
        works = self.decode([BatchRow(0, 0, tokens, True)])[0] == OK and self.copy_prefix(0, 1, 3)
        blob = self.save_range(0, 2, 8)
        self.cell_bytes = len(blob) // 6 if blob is not None else 0
        works = works and blob is not None and self.restore_range(blob, (2, 8), 1, 3, 6) == RESTORED
        works = works and self.decode([BatchRow(1, 6, tokens[6:], True)])[0] == OK and self._covers(0, 8)
        self.clear_all()
        return works

    # --- choosing tokens: the owner thread only -------------------------------------------------------------------

    def sampler(self, sampling: Sampling, prompt: Sequence[int], resumed: int = 0) -> Sampler:
        """The sampler for an answer to ``prompt``, whose last ``resumed`` tokens another node drew."""
        return Sampler(self, sampling, prompt, resumed)

    def logits(self, output: int) -> NDArray[np.float32]:
        """A view of one output's logits, until the next decode. Raises ValueError for no output."""
        if output < 0:
            raise ValueError("that row has no logits")
        return np.ctypeslib.as_array(L.llama_get_logits_ith(self.context, output), (self.num_vocab,))

    def sample(self, chain: Any, output: int) -> int:
        """Let a chain choose and accept a token. Raises ValueError for no output, where llama.cpp would abort()."""
        if output < 0:
            raise ValueError("that row has no logits")
        return int(L.llama_sampler_sample(chain, self.context, output))
