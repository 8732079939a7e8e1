"""The form in which states are saved: their 32-bit floats in 16 bits, as cells have them anyway.

States are what limits a prefix cache of a hybrid model, and llama.cpp saves them as 32-bit floats. Here every tensor of
a saved state is scaled by a power of two, so that its largest number is near the largest 16-bit float, and rounded: the
relative error of a number is at most 2^-11, unless it is smaller than the largest one by a factor of 2^29. This halves
a state. The 16-bit floats of cells have the same error.

llama.cpp's blob is a header and then, for each tensor: its type, its size in bytes, and its numbers. ``form_of`` looks
for such a chain of tensors that ends with the blob; where it finds none, states are saved as they are.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_F32 = 0
"""ggml's number of the type."""
_TENSOR = struct.Struct("<iQ")
_MAX_HEADER_BYTES = 128
_EXPONENT, _MAX_SHIFT, _LARGEST = 15, 126, 2.0**120
"""Scaled numbers are smaller than 2^15. Far larger ones than ``_LARGEST`` would become infinite."""

Bytes = NDArray[np.uint8]
Span = tuple[int, int]


@dataclass(frozen=True)
class HalvedForm:
    """Where a model's saved states have floats. A halved state is everything else, a shift for each tensor, and the
    16-bit floats of all tensors."""

    num_bytes: int
    """The size of a state that is not halved."""
    tensors: Sequence[Span]
    """The bytes of each tensor's floats, in order."""

    @cached_property
    def halved_bytes(self) -> int:
        return len(self.tensors) + sum(end - start for start, end in self._rest) + self._num_floats * 2

    @property
    def _num_floats(self) -> int:
        return sum(end - start for start, end in self.tensors) // 4

    @cached_property
    def _rest(self) -> list[Span]:
        edges = [0, *(edge for span in self.tensors for edge in span), self.num_bytes]
        return [(edges[place], edges[place + 1]) for place in range(0, len(edges), 2)]

    def halved(self, state: memoryview) -> memoryview:
        """The halved form of ``state``; ``state`` itself if it has a number that is too large."""
        raw = np.frombuffer(state, np.uint8)
        halved = np.empty(self.halved_bytes, np.uint8)
        at = 0
        for start, end in self._rest:
            halved[at : at + end - start] = raw[start:end]
            at += end - start
        shifts = halved[at : at + len(self.tensors)].view(np.int8)
        at += len(self.tensors)
        for place, (start, end) in enumerate(self.tensors):
            floats = raw[start:end].view(np.float32)
            largest = max(float(floats.max()), -float(floats.min()))
            if not largest < _LARGEST:
                return state
            shifts[place] = min(_EXPONENT - int(np.frexp(largest)[1]), _MAX_SHIFT)
            size = (end - start) // 2
            halved[at : at + size].view(np.float16)[:] = floats * np.float32(2.0 ** int(shifts[place]))
            at += size
        return halved.data

    def whole(self, halved: memoryview) -> memoryview:
        """The state of a halved form; a blob of another size as it is."""
        if len(halved) != self.halved_bytes:
            return halved
        packed = np.frombuffer(halved, np.uint8)
        raw = np.empty(self.num_bytes, np.uint8)
        at = 0
        for start, end in self._rest:
            raw[start:end] = packed[at : at + end - start]
            at += end - start
        shifts = packed[at : at + len(self.tensors)].view(np.int8)
        at += len(self.tensors)
        for (start, end), shift in zip(self.tensors, shifts, strict=True):
            size = (end - start) // 2
            floats = packed[at : at + size].view(np.float16)
            np.multiply(floats, np.float32(2.0 ** -int(shift)), out=raw[start:end].view(np.float32))
            at += size
        return raw.data


def form_of(state: memoryview) -> HalvedForm | None:
    """The form of a model's states, found in one of them; None: it has another layout."""
    for at in range(0, min(_MAX_HEADER_BYTES, len(state)), 4):
        *tensors, end = _tensors(state, at)
        filled = [(first, last) for first, last in tensors if last > first]
        if filled and end == (len(state),) * 2:
            return HalvedForm(len(state), filled)
    return None


def _tensors(state: memoryview, at: int) -> Iterator[Span]:
    """The floats of a chain of tensors that begins at ``at``, some of which may be empty; then where the chain ends,
    twice."""
    while at + _TENSOR.size <= len(state):
        kind, size = _TENSOR.unpack_from(state, at)
        if kind != _F32 or size > len(state) - at - _TENSOR.size or size % 4:
            break
        at += _TENSOR.size
        yield at, at + size
        at += size
    yield at, at
