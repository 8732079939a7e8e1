"""Saved states in half their size: the numbers stay, and nothing else is taken for one."""

import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numbers

from mycelia.node.engine.child.llama.halved_states import form_of

HEADER = struct.pack("<5I", 0x4D, 0, 1, 17, 0)
FLOATS = numbers.arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**119), 2.0**119, width=32))


def state_of(tensors: Sequence[np.ndarray], kind: int = 0) -> memoryview:
    parts = [struct.pack("<iQ", kind, tensor.nbytes) + tensor.tobytes() for tensor in tensors]
    return np.frombuffer(HEADER + b"".join(parts), np.uint8).data


def tensors_of(state: memoryview) -> list[np.ndarray]:
    form = form_of(state)
    assert form is not None
    return [np.frombuffer(state[start:end], np.float32) for start, end in form.tensors]


@given(st.lists(FLOATS, min_size=1, max_size=4))
def test_numbers_stay_as_exact_as_16_bits_allow(tensors: list[np.ndarray]) -> None:
    state = state_of(tensors)
    form = form_of(state)
    assert form is not None and [len(tensor) for tensor in tensors_of(state)] == [len(tensor) for tensor in tensors]
    halved = form.halved(state)
    assert len(halved) == form.halved_bytes
    whole = form.whole(halved)
    assert bytes(whole[: len(HEADER)]) == HEADER and len(whole) == len(state)
    for tensor, again in zip(tensors, tensors_of(whole), strict=True):
        largest = np.abs(tensor).max()
        assert np.all(np.abs(again - tensor) <= np.abs(tensor) * 2.0**-11 + largest * 2.0**-38 + 2.0**-124)


def test_it_takes_half_the_bytes() -> None:
    state = state_of([np.linspace(-3.0, 7.0, 4096, dtype=np.float32)] * 3)
    form = form_of(state)
    assert form is not None and form.halved_bytes < len(state) * 0.51


def test_empty_tensors_are_passed_over() -> None:
    full = np.ones(8, np.float32)
    state = state_of([full, np.ones(0, np.float32), full, np.ones(0, np.float32)])
    form = form_of(state)
    assert form is not None and len(form.tensors) == 2 and form.whole(form.halved(state)) == state


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 3.4e38])
def test_a_state_with_too_large_a_number_stays_as_it_is(number: float) -> None:
    state = state_of([np.array([1.0, number], np.float32)])
    form = form_of(state)
    assert form is not None and form.halved(state) == state and form.whole(state) == state


@pytest.mark.parametrize(
    "state",
    [
        state_of([np.ones(8, np.float16)], kind=1),
        np.frombuffer(bytes(state_of([np.ones(8, np.float32)])) + b"more", np.uint8).data,
        np.frombuffer(HEADER, np.uint8).data,
        np.zeros(400, np.uint8).data,
    ],
)
def test_another_layout_is_not_halved(state: memoryview) -> None:
    assert form_of(state) is None
