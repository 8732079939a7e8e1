"""A set of entries behaves like the dictionary that it stands for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.proto.digests.entry_set import EntrySet, keys_of, pack_keys, unpack_keys, without
from mycelia.proto.wire.errors import RemoteError
from tests.profiles import examples

_blocks = st.sampled_from([0, 1, 2, 3, 5, 8, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1])
_entries = st.dictionaries(_blocks, st.integers(0, 255))
_keys = st.sets(_blocks)


@pytest.mark.properties
@given(_entries, _entries, _keys)
@settings(max_examples=examples(100), deadline=None)
def test_it_changes_as_a_dictionary_does(held: dict[int, int], upserts: dict[int, int], removes: set[int]) -> None:
    entries, other = EntrySet.of(held), EntrySet.of(upserts)
    changed = held | upserts
    for key in removes:
        changed.pop(key, None)
    assert entries == held and EntrySet.of(entries) is entries
    patched = entries.patched(other, keys_of(removes))
    assert patched == changed == dict(patched.items())
    assert patched == EntrySet.of(changed) and patched.root() == EntrySet.of(changed).root()
    assert EntrySet.unpack(patched.pack()) == changed
    assert entries.only(keys_of(removes)) == {key: kind for key, kind in held.items() if key in removes}
    assert without(entries.hashes, other.hashes).tolist() == sorted(held.keys() - upserts.keys())
    differing = {key for key in held.keys() | upserts.keys() if held.get(key) != upserts.get(key)}
    assert entries.changed(other).tolist() == sorted(differing)
    assert all((key in entries) == (key in held) and entries.get(key) == held.get(key) for key in removes)


@pytest.mark.properties
@given(_keys)
@settings(max_examples=examples(50), deadline=None)
def test_packed_keys_come_back(keys: set[int]) -> None:
    assert unpack_keys(pack_keys(keys_of(keys))).tolist() == sorted(keys)


@pytest.mark.properties
@given(st.binary(max_size=40))
@settings(max_examples=examples(100), deadline=None)
def test_any_bytes_are_a_set_or_refused(data: bytes) -> None:
    try:
        entries = EntrySet.unpack(data)
    except RemoteError:
        return
    assert entries.pack() == data


def test_what_is_out_of_order_or_torn_is_refused() -> None:
    data = EntrySet.of({5: 0, 9: 1}).pack()
    for bad in (data[:-1], data[9:] + data[:9], data[:9] * 2):
        with pytest.raises(RemoteError):
            EntrySet.unpack(bad)
