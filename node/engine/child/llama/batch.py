"""The rows of a decode call, as arrays that llama.cpp reads."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mycelia.node.engine.child.llama.bindings import L


@dataclass(frozen=True)
class BatchRow:
    """A run of tokens of one sequence, from position ``start``. ``num_outputs``: tokens at its end that want logits."""

    seq_id: int
    start: int
    tokens: Sequence[int]
    num_outputs: int


class Batch:
    """The arrays that llama.cpp reads, allocated once and filled before each decode."""

    def __init__(self, size: int, twins: int) -> None:
        """twins: the difference between the ids of a sequence and its twin, see ``Llama``; 0: no twins."""
        self._twins = twins
        self.tokens = np.zeros(size, np.int32)
        self.positions = np.zeros(size, np.int32)
        self.sequences = np.zeros((size, 2), np.int32)
        self.outputs = np.zeros(size, np.int8)
        self._counts = np.full(size, 2 if self._twins else 1, np.int32)
        # Entry i points at the ids of row i: a sequence and maybe its twin.
        self._pointers = self.sequences.ctypes.data + 8 * np.arange(size, dtype=np.uint64)
        batch = L.llama_batch()
        for name, array in (
            ("token", self.tokens),
            ("pos", self.positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._pointers),
            ("logits", self.outputs),
        ):
            kind = dict(L.llama_batch._fields_)[name]
            setattr(batch, name, ctypes.cast(array.ctypes.data, kind))
        self.handle = batch

    def fill(self, rows: Sequence[BatchRow]) -> tuple[int, list[int]]:
        """Fill the arrays; returns their number of rows and, for each of ``rows``, the output index of its last token
        (-1: no logits wanted); the tokens before have the indices before. Raises
        ValueError for more rows than the batch holds. Mutates."""
        length, outputs = 0, []
        if sum(len(row.tokens) for row in rows) > len(self.tokens):
            raise ValueError("more tokens than the batch holds")
        for row in rows:
            end = length + len(row.tokens)
            self.tokens[length:end] = row.tokens
            self.positions[length:end] = np.arange(row.start, row.start + len(row.tokens))
            self.sequences[length:end] = row.seq_id, row.seq_id + self._twins
            self.outputs[length:end] = 0
            self.outputs[end - row.num_outputs : end] = 1
            outputs.append(end - 1 if row.num_outputs else -1)
            length = end
        return length, outputs
