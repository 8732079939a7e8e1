"""The only file that imports llama.cpp's low-level API. It turns every known misuse into an error, or rules it out.
(``grammar_worker.py``, a process without a context, takes the few calls it needs from here.)

Why so careful: llama.cpp abort()s on some mistakes (a batch longer than n_batch, an id of 256 or more, a partial copy
in a cache that is not unified) and silently computes nonsense on others (a copy onto a sequence that is not empty,
repeated positions, a partial copy in a windowed cache). So after every copy or removal the positions are read back.

Threads: one thread makes every call that takes the context. The vocabulary is immutable: ``tokenize``, ``piece`` and
the template may be used from any thread at any time. ctypes releases the GIL during calls.
"""

import ctypes
import os
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp.llama_cpp as _bindings
import numpy as np
from blake3 import blake3
from llama_cpp.llama_grammar import SchemaConverter as SchemaConverter
from numpy.typing import NDArray

from mycelia.node.engine.child.llama.devices import Ggml, read_shape
from mycelia.node.engine.sizing import (
    MICRO_BATCH_TOKENS,
    MIN_CELLS,
    CellBudget,
    CellChoice,
    Device,
    Offload,
    choose_cells,
    place_layers,
    usable_gpus,
)
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import MAX_TEXT_BYTES_PER_TOKEN, MIN_LOGPROB, Logprob, Sampling, TokenLogprobs

# The bindings are declared by decorators that type checkers cannot see through.
L: Any = _bindings

_LOG_LEVEL_ERROR = 4

MIN_TEMPERATURE = 0.001
"""Below it sampling is greedy: dividing by less overflows to NaN."""

MAX_SEED = 2**32 - 2
"""One more asks llama.cpp for a random seed: the answer could be neither repeated nor resumed."""

RESTORED, REFUSED, BROKEN = range(3)
"""What ``restore_range`` returns."""

MAX_SEQUENCES = 256
"""llama.cpp gives no context for more."""

FEW_CANDIDATES = 256
"""Tokens that a grammar is asked about first. Chosen so that the usual top-k of 40 is nearly always among them."""

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

Choosing = Generator[NDArray[np.int64], NDArray[np.bool_], int | None]
"""Gives tokens, wants to be sent which of them may come next, and returns the one that does."""

OK, NO_ROOM, ABORTED = 0, 1, 2
"""What ``decode`` returns; anything else means that the batch or the context is broken."""


@dataclass(frozen=True)
class BatchRow:
    """A run of tokens of one sequence, from position ``start`` on; ``wants_token``: logits of the last."""

    seq_id: int
    start: int
    tokens: Sequence[int]
    wants_token: bool


class Log:
    """Keeps llama.cpp's last error lines and prints nothing."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=4)
        self._callback = L.llama_log_callback(self._write)  # Kept: llama.cpp holds a bare pointer.
        L.llama_log_set(self._callback, None)

    def _write(self, level: int, text: bytes, _data: object) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == _LOG_LEVEL_ERROR and line:
            self.errors.append(line)

    def reason(self, fallback: str) -> str:
        """The first error since the last call, which names the cause; later ones only repeat that loading failed."""
        line = self.errors[0] if self.errors else fallback
        self.errors.clear()
        for prefix in (
            "gguf_init_from_reader: ",
            "gguf_init_from_file: ",
            "llama_model_load: ",
            "error loading model: ",
        ):
            line = line.removeprefix(prefix)
        return line


class AbortFlag:
    """Stops a running decode from another thread.

    llama.cpp calls back before every graph node. A Python callback would need the GIL there, thousands of times a step,
    and a busy thread would then stall the computation. libc's ``strlen`` has the right shape: called with the flag's
    address it returns 0 for an empty string (go on) and 1 for "\\1" (abort).
    """

    def __init__(self) -> None:
        self._flag = ctypes.create_string_buffer(2)
        self.callback = ctypes.cast(ctypes.CDLL(None).strlen, L.ggml_abort_callback)
        self.address = ctypes.cast(self._flag, ctypes.c_void_p)

    def raise_it(self) -> None:
        self._flag[0] = b"\x01"

    def clear(self) -> None:
        self._flag[0] = b"\x00"


class Llama:
    """One loaded model and one context with a unified KV cache of ``num_cells`` cells."""

    micro_batch_tokens = MICRO_BATCH_TOKENS
    flash_attention: Sequence[int] = (1, 0)
    """To try in this order: some models have no flash attention kernel."""
    can_abort = True
    """Whether ``abort`` ends a decode in milliseconds. llama.cpp asks for it between the steps of a processor; what a
    GPU was given runs to its end, so there a decode must be short."""

    def __init__(
        self,
        path: Path,
        *,
        num_cells: int | CellBudget,
        num_sequences: int,
        num_threads: int,
        batch_tokens: int,
        offload: Offload | None = None,
    ) -> None:
        """Load. Raises LocalError, in one line, when the file, the sizes or the wanted GPUs are unusable.

        num_cells: exactly as many; or as many as are usual and fit. offload: None leaves the choice of GPUs open.
        """
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")
        if not 1 <= num_sequences <= MAX_SEQUENCES:
            raise LocalError(f"llama.cpp holds 1 to {MAX_SEQUENCES} sequences, not {num_sequences}")
        self._log = Log()
        L.llama_backend_init()
        offload = offload or Offload()
        gpus = find_gpus(offload)
        self._model_params = model_params(offload, gpus)  # Kept: the model goes on pointing at the split.
        self.model = load_model(path, self._model_params, self._log)
        """llama.cpp's handle."""
        self._vocab = L.llama_model_get_vocab(self.model)
        self._check_kind(path)
        # In a model with windowed attention llama.cpp puts new cells over those that fell out of their sequence's
        # window, as long as only one sequence has them, and drops all before them. So each sequence gets a twin there,
        # which has the same cells.
        self._twins = num_sequences if L.llama_model_n_swa(self.model) > 0 else 0
        """What to add to a sequence's id for its twin's; 0: there are none."""
        if num_sequences + self._twins > MAX_SEQUENCES:
            raise LocalError(f"at most {MAX_SEQUENCES // 2 - 1} sequences fit with {path}: its attention is windowed")
        self.placement = place_layers(int(L.llama_model_n_layer(self.model)), offload, gpus)
        self.offloaded = self.placement.offloaded > 0
        self.can_abort = not self.offloaded
        self.abort = AbortFlag()
        choice = CellChoice(num_cells) if isinstance(num_cells, int) else self._choose_cells(num_cells, offload)
        self._context = None
        while not self._context:
            try:
                self._context = self._open_context(path, choice.cells, num_sequences, num_threads, batch_tokens)
            except LocalError:
                if isinstance(num_cells, int) or choice.cells // 2 < MIN_CELLS:
                    raise
                choice = CellChoice(choice.cells // 2, f"{choice.cells} KV cells did not fit, {choice.cells // 2} do")
        self.cells_note = choice.note
        """Why there are fewer cells than usual; empty when there are not."""
        self._memory = L.llama_get_memory(self._context)
        self.num_cells = int(L.llama_n_ctx(self._context))
        self.batch_tokens = batch_tokens
        self.num_vocab = int(L.llama_vocab_n_tokens(self._vocab))
        # Positions beyond the trained context are accepted silently and give wrong output.
        trained = int(L.llama_model_n_ctx_train(self.model))
        self.context_tokens = min(self.num_cells, trained) if trained > 0 else self.num_cells
        self._bind_batch(batch_tokens)
        self.spare = num_sequences - 1
        """The sequence that cells pass through on their way to and from the second tier; empty between calls."""
        self.reuse = self._probe_reuse()
        self.cell_bytes = 0
        """Size of a cell when it is serialised; 0 before one was."""
        self.can_save = self.reuse and num_sequences > 2 and self._probe_tier()

    def _check_kind(self, path: Path) -> None:
        """Raise LocalError for a model that this class cannot serve, though llama.cpp could."""

    def _choose_cells(self, budget: CellBudget, offload: Offload) -> CellChoice:
        free = [gpu.free_bytes for gpu in find_gpus(offload)]  # (less than before: the weights are loaded)
        return choose_cells(read_shape(L, self.model), self.placement, free if self.placement.gpus else [], budget)

    def _open_context(self, path: Path, num_cells: int, num_sequences: int, num_threads: int, batch_tokens: int) -> Any:
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
        return context

    def open_side_context(self, **params: Any) -> Any:
        """Another context on the same model, by llama.cpp's own names of its parameters; free it with ``llama_free``.
        Raises LocalError."""
        wanted = L.llama_context_default_params()
        for name, value in params.items():
            setattr(wanted, name, value)
        context = L.llama_init_from_model(self.model, wanted)
        if not context:
            raise LocalError(f"cannot open another context: {self._log.reason('no memory for it?')}")
        return context

    def _bind_batch(self, size: int) -> None:
        """One batch for the engine's life: llama.cpp reads these arrays, filled anew before each decode."""
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._sequences = np.zeros((size, 2), np.int32)
        self._outputs = np.zeros(size, np.int8)
        self._counts = np.full(size, 2 if self._twins else 1, np.int32)
        # Entry i points at the ids of row i: a sequence and maybe its twin.
        self._pointers = self._sequences.ctypes.data + 8 * np.arange(size, dtype=np.uint64)
        batch = L.llama_batch()
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._pointers),
            ("logits", self._outputs),
        ):
            kind = dict(L.llama_batch._fields_)[name]
            setattr(batch, name, ctypes.cast(array.ctypes.data, kind))
        self._batch = batch

    # --- decoding: the owner thread only --------------------------------------------------------------------------

    def decode(self, rows: Sequence[BatchRow]) -> tuple[int, list[int]]:
        """Compute ``rows`` in one call. Returns (OK, NO_ROOM, ABORTED or an error) and, for each row, its output index.

        NO_ROOM leaves the cache unchanged. After ABORTED some rows have cells: ask ``end``. The index is what
        ``Sampler.sample`` takes, -1 for rows that want no token. Raises ValueError for more rows than the batch holds.
        """
        length, outputs = 0, []
        if sum(len(row.tokens) for row in rows) > self.batch_tokens:
            raise ValueError("more tokens than the batch holds")
        for row in rows:
            end = length + len(row.tokens)
            self._tokens[length:end] = row.tokens
            self._positions[length:end] = np.arange(row.start, row.start + len(row.tokens))
            self._sequences[length:end] = row.seq_id, row.seq_id + self._twins
            self._outputs[length:end] = 0
            if row.wants_token:
                self._outputs[end - 1] = 1
            outputs.append(end - 1 if row.wants_token else -1)
            length = end
        return self._decode(length), outputs

    def _decode(self, length: int) -> int:
        """Compute the first ``length`` rows of the batch's arrays."""
        self._batch.n_tokens = length
        result = int(L.llama_decode(self._context, self._batch))
        if not self.can_abort:
            L.llama_synchronize(self._context)  # A GPU may still be at it, and whoever takes the time must know.
        return result

    def end(self, seq_id: int) -> int:
        """Number of positions that ``seq_id`` has cells for; 0 for an empty sequence. Raises LocalError for a hole."""
        last = int(L.llama_memory_seq_pos_max(self._memory, seq_id))
        first = int(L.llama_memory_seq_pos_min(self._memory, seq_id))
        if last >= 0 and first != 0:
            raise LocalError(f"sequence {seq_id} begins at position {first}")
        return last + 1

    def clear(self, seq_id: int) -> None:
        """Free the cells that only ``seq_id`` uses."""
        self._remove(seq_id, -1, -1)

    def clear_all(self) -> None:
        L.llama_memory_clear(self._memory, True)

    def truncate(self, seq_id: int, length: int) -> bool:
        """Drop positions from ``length`` on. False when the model cannot; clear the sequence then."""
        return self._remove(seq_id, length, -1) and self._covers(seq_id, length)

    def copy_prefix(self, source: int, target: int, length: int) -> bool:
        """Let ``target``, whatever it held, share the first ``length`` cells of ``source``: no cell is used.

        False, with ``target`` empty, when the positions are not exactly 0..length-1 afterwards.
        """
        self.clear(target)
        self._copy(source, target, 0, length)
        if self._covers(target, length):
            return True
        self.clear(target)
        return False

    def replace_prefix(self, source: int, target: int, length: int) -> bool:
        """Give up ``target``'s own cells 0..length-1 for the equal ones of ``source``. False: ``target`` is broken."""
        end = int(L.llama_memory_seq_pos_max(self._memory, target)) + 1
        if not self._remove(target, 0, length):
            return False
        self._copy(source, target, 0, length)
        return self._covers(target, end)

    def save_range(self, seq_id: int, start: int, end: int) -> memoryview | None:
        """The cells of positions ``start..end-1``, serialised; None when they are not all there. Changes nothing.

        llama.cpp serialises whole sequences, so the spare one first shares just these cells: no cell is used, and
        1,000 tokens of a 135M model (23 MB) take 6 ms.
        """
        spare = self.spare
        self.clear(spare)
        self._copy(seq_id, spare, start, end)
        blob = None
        if self._spans(spare, start, end):
            size = int(L.llama_state_seq_get_size(self._context, spare))
            data = np.empty(size, np.uint8)  # Not a ctypes buffer: those are filled with zeros first.
            if L.llama_state_seq_get_data(self._context, _address(data), size, spare) == size:
                blob = data.data
        self.clear(spare)
        return blob

    def restore_range(self, blob: memoryview, held: tuple[int, int], target: int, start: int, end: int) -> int:
        """Extend ``target``, which must end at ``start``, to ``end`` by cells of ``blob``, which holds ``held``.

        RESTORED; REFUSED, with ``target`` as it was, when llama.cpp refuses the blob or has no cells for all of it, for
        it reads whole blobs; BROKEN when ``target`` is not what it must be: clear it. The blob's content must have been
        verified before: llama.cpp looks only at its shape.
        """
        spare, data = self.spare, np.frombuffer(blob, np.uint8)
        self.clear(spare)
        # It replaces its whole destination, so it cannot go to the target directly.
        read = L.llama_state_seq_set_data(self._context, _address(data), len(data), spare)
        if read != len(data) or not self._spans(spare, *held) or not held[0] <= start < end <= held[1]:
            self.clear(spare)
            return REFUSED
        intact = self._covers(target, start)
        if intact:
            self._copy(spare, target, start, end)
            intact = self._covers(target, end)
        self.clear(spare)
        return RESTORED if intact else BROKEN

    def compact(self) -> bool:
        """Move all cells to the beginning of the cache, in the order in which they lie; by way of a copy of them.

        False, with the cache empty, when llama.cpp refuses.
        """
        size = int(L.llama_state_get_size(self._context))
        data = np.empty(size, np.uint8)
        saved = L.llama_state_get_data(self._context, _address(data), size)
        return bool(saved == size == L.llama_state_set_data(self._context, _address(data), size))

    def _remove(self, seq_id: int, start: int, end: int) -> bool:
        """llama.cpp's own removal, of the twin too: -1 stands for the first and the last position."""
        twin_too = not self._twins or L.llama_memory_seq_rm(self._memory, seq_id + self._twins, start, end)
        return bool(L.llama_memory_seq_rm(self._memory, seq_id, start, end) and twin_too)

    def _copy(self, source: int, target: int, start: int, end: int) -> None:
        """Share cells with ``target`` and its twin, which must not have any at these positions."""
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
        """Whether prefixes can be shared: by what the model says of itself, then by trying it on eight tokens."""
        if keeps_states(self.model):
            return False
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
        """Whether cells survive being serialised, tried on eight tokens. Needs a spare sequence and ``reuse``."""
        tokens = [min(i + 1, self.num_vocab - 1) for i in range(8)]
        works = self.decode([BatchRow(0, 0, tokens, True)])[0] == OK and self.copy_prefix(0, 1, 3)
        blob = self.save_range(0, 2, 8)
        self.cell_bytes = len(blob) // 6 if blob is not None else 0
        works = works and blob is not None and self.restore_range(blob, (2, 8), 1, 3, 6) == RESTORED
        works = works and self.decode([BatchRow(1, 6, tokens[6:], True)])[0] == OK and self._covers(0, 8)
        self.clear_all()
        return works

    # --- vocabulary: any thread -----------------------------------------------------------------------------------

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Tokens of ``text`` without any added ones. ``special``: spelled-out control tokens become control tokens."""
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * size)()
            count = int(L.llama_tokenize(self._vocab, data, len(data), buffer, size, False, special))
            if count >= 0:
                return buffer[:count]
            if count == -(2**31):
                raise LocalError("the text is too long to tokenize")
            size = -count

    def piece(self, token: int) -> bytes:
        """The bytes of a token, empty for control tokens. Raises ValueError for a bad id, which would abort()."""
        if not 0 <= token < self.num_vocab:
            raise ValueError(f"token {token} is not in the vocabulary")
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = int(L.llama_token_to_piece(self._vocab, token, buffer, size, 0, False))
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def longest_piece(self) -> int:
        """Bytes of the longest token, control tokens as they are spelled."""
        vocab, piece = self._vocab, L.llama_token_to_piece
        return max(1, *(-int(piece(vocab, token, None, 0, 0, True)) for token in range(self.num_vocab)))

    def ends_generation(self, token: int) -> bool:
        return bool(L.llama_vocab_is_eog(self._vocab, token))

    @property
    def chat_template(self) -> str | None:
        """Text of the model's own Jinja template."""
        text = L.llama_model_chat_template(self.model, None)
        return text.decode("utf-8", "replace") if text else None

    @property
    def bos_token(self) -> int | None:
        """The token that every prompt of this model begins with, if it has one."""
        return int(L.llama_vocab_bos(self._vocab)) if L.llama_vocab_get_add_bos(self._vocab) else None

    def special_texts(self) -> tuple[str, str]:
        """Spelling of the begin and end tokens, which templates may ask for."""
        begin, end = L.llama_vocab_bos(self._vocab), L.llama_vocab_eos(self._vocab)
        texts = [L.llama_vocab_get_text(self._vocab, token) if token >= 0 else b"" for token in (begin, end)]
        return texts[0].decode("utf-8", "replace"), texts[1].decode("utf-8", "replace")

    # --- choosing tokens: the owner thread only -------------------------------------------------------------------

    def sampler(self, sampling: Sampling, prompt: Sequence[int], resumed: int = 0) -> "Sampler":
        """A chooser of tokens for an answer to ``prompt``, whose last ``resumed`` tokens were drawn elsewhere."""
        return Sampler(self, sampling, prompt, resumed)

    def logits(self, output: int) -> NDArray[np.float32]:
        """A view of one output's logits, until the next decode. Raises ValueError for no output."""
        if output < 0:
            raise ValueError("that row has no logits")
        return np.ctypeslib.as_array(L.llama_get_logits_ith(self._context, output), (self.num_vocab,))

    def logprobs(self, row: NDArray[np.float32], token: int, count: int) -> TokenLogprobs:
        """How probable ``token`` was by a row of ``logits``, and the ``count`` likeliest tokens."""
        logits = row.astype(np.float64)
        logits -= logits.max()
        logits -= np.log(np.exp(logits).sum())
        likeliest = np.argpartition(logits, -count)[-count:]
        # Equal ones by id, so that the order does not depend on the partition.
        likeliest = likeliest[np.lexsort((likeliest, -logits[likeliest]))]
        top = tuple(self._logprob(int(other), logits) for other in likeliest)
        return TokenLogprobs(chosen=self._logprob(token, logits), top=top)

    def _logprob(self, token: int, logprobs: NDArray[np.float64]) -> Logprob:
        # Rounded to 32 bits, which the wire then needs; NaN, which a broken model may give, becomes the bound.
        value = float(np.float32(logprobs[token]))
        value = min(value, 0.0) if value >= MIN_LOGPROB else MIN_LOGPROB
        return Logprob(token=token, text=self.piece(token)[:MAX_TEXT_BYTES_PER_TOKEN], logprob=value)

    def sample(self, chain: Any, output: int) -> int:
        """Let a chain choose and accept a token. Raises ValueError for no output, on which llama.cpp abort()s."""
        if output < 0:
            raise ValueError("that row has no logits")
        return int(L.llama_sampler_sample(chain, self._context, output))


class Sampler:
    """llama.cpp's own chain for one answer: penalties, then greedy at temperature 0, else top-k, top-p, min-p,
    temperature and a seeded draw.

    Each choice takes one random number, whatever was chosen. So an answer that is resumed elsewhere goes on in the
    same stream of them.
    """

    def __init__(self, llama: Llama, sampling: Sampling, prompt: Sequence[int], resumed: int) -> None:
        self._llama = llama
        self._chain = L.llama_sampler_chain_init(L.llama_sampler_chain_default_params())
        penalties = sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
        self._penalizes = penalties != (1.0, 0.0, 0.0) and sampling.repeat_last_n > 0
        if self._penalizes:
            self._add(L.llama_sampler_init_penalties(llama.num_vocab, sampling.repeat_last_n, *penalties))
        self._candidates_needed = 1
        """How many allowed tokens, from the likeliest on, the chain looks at; 0: at all of them."""
        if not sampling.temperature >= MIN_TEMPERATURE:  # Also for NaN.
            self._add(L.llama_sampler_init_greedy())
        else:
            self._candidates_needed = sampling.top_k
            # Cutting to few candidates first also makes a draw several times cheaper.
            self._add(L.llama_sampler_init_top_k(sampling.top_k))
            self._add(L.llama_sampler_init_top_p(sampling.top_p, 1))
            self._add(L.llama_sampler_init_min_p(sampling.min_p, 1))
            self._add(L.llama_sampler_init_temp(sampling.temperature))
            dist, coin = L.llama_sampler_init_dist(min(sampling.seed, MAX_SEED)), Candidates(np.arange(2), np.zeros(2))
            for _ in range(resumed):
                L.llama_sampler_apply(dist, ctypes.byref(coin.array))
            self._add(dist)
        if self._penalizes:
            for token in prompt[-sampling.repeat_last_n :]:
                L.llama_sampler_accept(self._chain, token)

    def _add(self, sampler: Any) -> None:
        L.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, output: int) -> int:
        """Choose the token after the row whose output index ``decode`` gave. Raises ValueError for no output."""
        return self._llama.sample(self._chain, output)

    def choosing(self, output: int) -> Choosing:
        """The same among the tokens that a grammar lets pass, step by step; None when it lets none.

        Asking for few tokens is much cheaper than for the vocabulary, and as good where enough of the likeliest pass:
        the chain looks no further. Penalties change which are the likeliest, so with them all are asked for.
        """
        logits = self._llama.logits(output).copy()  # (there may be other decode calls before the grammar answers)
        if not self._penalizes and 0 < self._candidates_needed <= FEW_CANDIDATES // 4 < len(logits) // 4:
            few = np.sort(np.argpartition(logits, -FEW_CANDIDATES)[-FEW_CANDIDATES:])
            few = few[(yield few)]
            if len(few) >= self._candidates_needed:
                return self._choose_and_accept(few, logits)
        every = np.arange(len(logits))
        passed = every[(yield every)]
        return self._choose_and_accept(passed, logits) if len(passed) else None

    def _choose_and_accept(self, tokens: NDArray[np.int64], logits: NDArray[np.float32]) -> int:
        token = self._choose(tokens, logits[tokens])
        L.llama_sampler_accept(self._chain, token)
        return token

    def _choose(self, tokens: NDArray[np.int64], logits: NDArray[np.float32]) -> int:
        candidates = Candidates(tokens, logits)
        L.llama_sampler_apply(self._chain, ctypes.byref(candidates.array))
        return int(candidates.data["id"][candidates.array.selected])

    def close(self) -> None:
        """Free it. It must not be used afterwards."""
        if self._chain:
            L.llama_sampler_free(self._chain)
            self._chain = None


def _address(data: "np.ndarray[Any, np.dtype[np.uint8]]") -> Any:
    return ctypes.cast(data.ctypes.data, ctypes.POINTER(ctypes.c_uint8))


def bindings_version() -> str:
    """Version of llama.cpp's bindings: another one may serialise cells differently."""
    return str(llama_cpp.__version__)


class Candidates:
    """Tokens with their logits, as llama.cpp's samplers take them."""

    def __init__(self, tokens: NDArray[np.integer[Any]], logits: NDArray[np.floating[Any]]) -> None:
        self.data = np.zeros(len(tokens), _CANDIDATE)
        self.data["id"], self.data["logit"] = tokens, logits
        pointer = ctypes.cast(self.data.ctypes.data, ctypes.POINTER(L.llama_token_data))
        self.array = L.llama_token_data_array(pointer, len(tokens), -1, False)


def file_digest(path: Path) -> bytes:
    """BLAKE3 of a file: 0.14 s of CPU for 98 MB."""
    hasher = blake3()
    hasher.update_mmap(path)
    return hasher.digest()


# --- models and devices, before and beside a context -----------------------------------------------------------------


def list_devices() -> list[Device]:
    """Everything that llama.cpp could compute on here."""
    return Ggml(L._lib).devices()


def list_backends() -> list[str]:
    """What llama.cpp was built for, such as CUDA and CPU."""
    return Ggml(L._lib).backends()


def find_gpus(offload: Offload) -> tuple[Device, ...]:
    """Those that a model would be spread over, with their memory free now. Raises LocalError; see ``usable_gpus``."""
    return usable_gpus(list_devices(), offload, list_backends())


def model_params(offload: Offload, gpus: Sequence[Device]) -> Any:
    """llama.cpp's parameters for loading onto ``gpus``, as ``find_gpus`` gave them."""
    params = L.llama_model_default_params()
    params.n_gpu_layers = -1 if offload.layers is None else offload.layers
    if not gpus:
        # With no layers on a GPU llama.cpp would still send large batches there; without a GPU it cannot.
        params.n_gpu_layers, params.split_mode, params.main_gpu = 0, L.LLAMA_SPLIT_MODE_NONE, -1
    elif offload.main_gpu is not None:
        params.split_mode, params.main_gpu = L.LLAMA_SPLIT_MODE_NONE, offload.main_gpu
    elif offload.split:
        # llama.cpp reads as many numbers as there are devices. ctypes keeps the array as long as ``params``.
        params.tensor_split = (ctypes.c_float * max(int(L.llama_max_devices()), len(gpus)))(*offload.split)
    return params


def load_model(path: Path, params: Any, log: Log) -> Any:
    """A model of a kind that can be served. Raises LocalError."""
    model = L.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        reason = log.reason("llama.cpp gave no reason")
        hint = "; fewer --gpu-layers take less of it" if params.n_gpu_layers and "out of memory" in reason else ""
        raise LocalError(f"cannot load the model {path}: {reason}{hint}")
    if L.llama_model_has_encoder(model) or not L.llama_model_has_decoder(model):
        raise LocalError(f"cannot serve {path}: it is not a decoder-only text model")
    if L.llama_model_is_diffusion(model):
        raise LocalError(f"cannot serve {path}: diffusion models do not generate token by token")
    return model


def keeps_states(model: Any) -> bool:
    """Whether it keeps one state a sequence besides or instead of cells, so that prefixes cannot be shared."""
    return bool(L.llama_model_is_recurrent(model) or L.llama_model_is_hybrid(model))
