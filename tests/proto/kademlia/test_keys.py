"""Keys of the Kademlia table."""

import hashlib

import pytest

from mycelia.proto.kademlia.keys import is_model_key, is_prefix_key, model_key, prefix_key

NAMESPACE = bytes(range(16))


def test_the_key_of_a_model_is_a_multihash_of_its_name() -> None:
    name = b"/mycelia/model/000102030405060708090a0b0c0d0e0f"
    assert model_key(NAMESPACE) == bytes.fromhex("1220") + hashlib.sha256(name).digest()
    in_cell = hashlib.sha256(name + b"/0101").digest()
    assert model_key(NAMESPACE, "/0101") == bytes.fromhex("1220") + in_cell


def test_the_kinds_of_keys_are_told_apart() -> None:
    model, prefix = model_key(NAMESPACE), prefix_key(NAMESPACE)
    assert is_model_key(model) and not is_prefix_key(model)
    assert is_prefix_key(prefix) and not is_model_key(prefix)


@pytest.mark.parametrize(
    "key", [b"", b"\x12", bytes.fromhex("1220"), bytes.fromhex("1220") + bytes(33), b"\x1e\x10" + bytes(15), bytes(34)]
)
def test_other_bytes_are_no_keys(key: bytes) -> None:
    assert not is_model_key(key) and not is_prefix_key(key)
