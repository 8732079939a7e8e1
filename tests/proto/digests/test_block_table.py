"""The table of block hashes compared with a dictionary."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.proto.digests.block_table import BlockTable, Keys
from tests.profiles import examples

_keys = st.one_of(
    st.integers(0, 40),  # (all in one bucket, and key 0 among them)
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1).map(lambda key: key | (2**64 - 2**44)),  # (in the last buckets)
)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.dictionaries(_keys, st.integers(1, 2**32 - 1), max_size=300)),
        st.tuples(st.just("remove"), st.sets(_keys, max_size=40)),
        st.tuples(st.just("remove half"), st.booleans()),
    ),
    max_size=12,
)


def keys_of(values: list[int]) -> Keys:
    return np.array(sorted(values), np.uint64)


@pytest.mark.properties
@given(_steps, st.lists(_keys, max_size=40))
@settings(max_examples=examples(80), deadline=None)
def test_it_holds_what_a_dictionary_would(steps: list[tuple[str, Any]], probes: list[int]) -> None:
    table, model = BlockTable(), dict[int, int]()
    for action, argument in steps:
        if action == "put":
            chosen = keys_of(list(argument))
            table.put(chosen, np.array([argument[key] for key in chosen.tolist()], np.uint32))
            model |= argument
        else:
            gone = argument if action == "remove" else set(sorted(model)[argument::2])
            table.remove(keys_of(list(gone)))
            model = {key: value for key, value in model.items() if key not in gone}
        table.check_invariants()
        keys, values = table.items()
        assert dict(zip(keys.tolist(), values.tolist(), strict=True)) == model
        assert len(table) == len(model)
        asked = np.array([*probes, *list(model)[:20]], np.uint64)
        expected = [model.get(key, 0) for key in asked.tolist()]
        assert table.get(asked).tolist() == expected
        num_leading = expected.index(0) if 0 in expected else len(expected)
        assert table.get_leading(asked).tolist() == expected[:num_leading]


def test_keys_invented_for_one_bucket_cost_no_more_than_a_dictionary() -> None:
    table = BlockTable()
    for owner in range(4):
        crowd = np.arange(1, 16_385, dtype=np.uint64) + np.uint64(owner * 16_384)
        table.put(crowd, np.ones(len(crowd), np.uint32))
        table.check_invariants()
    num_resizes = table.num_resizes
    for key in range(1, 50):
        table.remove(np.array([key], np.uint64))
    table.check_invariants()
    assert len(table) == 4 * 16_384 - 49
    assert table.num_resizes == num_resizes, "removing one key rebuilt the table"


def test_it_grows_and_gives_the_memory_back() -> None:
    table = BlockTable()
    keys = np.unique(np.random.default_rng(1).integers(0, 2**64, 100_000, np.uint64))
    table.put(keys, np.arange(1, len(keys) + 1, dtype=np.uint32))
    table.check_invariants()
    full = table.num_bytes
    assert np.array_equal(table.get(keys[::-1]), np.arange(len(keys), 0, -1))
    table.remove(keys[10:])
    table.check_invariants()
    assert table.get(keys).tolist()[:12] == [*range(1, 11), 0, 0]
    assert table.num_bytes < full / 100
