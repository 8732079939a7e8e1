"""``wire.cddl`` and ``messages.py`` say the same: every example validates, and no schema accepts another's message."""

import re
from pathlib import Path

import cbor2
import pycddl
import pytest

import proto
from proto.codec import encode
from proto.messages import Message
from tests.proto.examples import EXAMPLES

SOURCE = (Path(proto.__file__).parent / "wire.cddl").read_text("utf-8")


def rule_of(message: Message) -> str:
    """Kind to rule name: RepairRequest is repair-request."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(message).__name__).lower()
    return "text-frame" if name == "text" else name  # (CDDL has a type of that name)


def schema_of(message: Message) -> pycddl.Schema:
    return pycddl.Schema(f"start = {rule_of(message)}\n{SOURCE}")


def ids(message: Message) -> str:
    return type(message).__name__


@pytest.mark.parametrize("message", EXAMPLES, ids=ids)
def test_the_schema_of_its_kind_accepts_a_message(message: Message) -> None:
    schema_of(message).validate_cbor(encode(message))


@pytest.mark.parametrize("message", EXAMPLES, ids=ids)
def test_no_other_schema_does(message: Message) -> None:
    schema = schema_of(message)
    for other in EXAMPLES:
        if other is not message:
            with pytest.raises(pycddl.ValidationError):
                schema.validate_cbor(encode(other))


@pytest.mark.parametrize("message", EXAMPLES, ids=ids)
def test_a_missing_field_is_refused(message: Message) -> None:
    schema = schema_of(message)
    value = cbor2.loads(encode(message))
    for key in value:
        with pytest.raises(pycddl.ValidationError):
            schema.validate_cbor(cbor2.dumps({k: v for k, v in value.items() if k != key}))


def test_every_kind_has_a_rule_with_its_number() -> None:
    for message in EXAMPLES:
        kind = cbor2.loads(encode(message))[0]
        assert re.search(rf"^{rule_of(message)} = {{[^}}]*?\b0: {kind},", SOURCE, re.MULTILINE)
