"""Nodes of this wire version and of the one before understand each other."""

import cbor2
import msgspec
import pytest

from mycelia.proto.wire.codec import decode, encode
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import Ask, Generate, Message
from mycelia.proto.wire.versions import ADDED_IN_2, LEFT_OUT, for_version
from tests.proto.examples import EXAMPLES

NEWER = [message for message in EXAMPLES if type(message) in ADDED_IN_2]


@pytest.mark.parametrize("message", NEWER, ids=lambda message: type(message).__name__)
def test_a_node_of_version_1_is_sent_the_fields_it_knows(message: Generate | Ask) -> None:
    older = for_version(message, 1)
    fields = set(cbor2.loads(encode(older)))
    assert fields == {0, *map(int, (info.encode_name for info in msgspec.structs.fields(type(message))))} - {
        int(name) for name in LEFT_OUT[type(message)]
    }
    assert decode(encode(older)) == older and for_version(message, 2) is message


@pytest.mark.parametrize("message", NEWER, ids=lambda message: type(message).__name__)
def test_a_default_has_one_spelling(message: Generate | Ask) -> None:
    plain: Message = for_version(message, 1)
    value = cbor2.loads(encode(plain))
    for name, default in LEFT_OUT[type(message)].items():
        with pytest.raises(RemoteError, match="deterministic"):
            decode(cbor2.dumps(value | {int(name): default}, canonical=False))


def test_what_a_version_added_comes_last() -> None:
    for kind, fields in ADDED_IN_2.items():
        names = [info.name for info in msgspec.structs.fields(kind)]
        assert names[-len(fields) :] == list(fields)
        assert {info.name: info.default for info in msgspec.structs.fields(kind) if info.name in fields} == fields
