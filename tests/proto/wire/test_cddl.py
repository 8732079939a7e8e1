"""``wire.cddl`` and ``messages.py`` agree: every example validates, and no schema accepts another kind's message."""

import re
from pathlib import Path

import cbor2
import msgspec
import pycddl
import pytest
from msgspec import inspect

from mycelia.proto import wire
from mycelia.proto.wire.codec import encode
from mycelia.proto.wire.messages import Kind, Message, Record
from mycelia.proto.wire.versions import LEFT_OUT
from tests.proto.documents import rule_name
from tests.proto.examples import EXAMPLES

SOURCE = (Path(wire.__file__).parent / "wire.cddl").read_text("utf-8")


def rule_of(message: Message) -> str:
    return rule_name(type(message))


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
        if type(other) is not type(message):
            with pytest.raises(pycddl.ValidationError):
                schema.validate_cbor(encode(other))


@pytest.mark.parametrize("message", EXAMPLES, ids=ids)
def test_a_missing_field_is_refused(message: Message) -> None:
    schema = schema_of(message)
    value = cbor2.loads(encode(message))
    for key in value.keys() - {int(name) for name in LEFT_OUT.get(type(message), {})}:
        with pytest.raises(pycddl.ValidationError):
            schema.validate_cbor(cbor2.dumps({k: v for k, v in value.items() if k != key}))


def test_every_kind_has_a_rule_with_its_number() -> None:
    for message in EXAMPLES:
        kind = cbor2.loads(encode(message))[0]
        assert re.search(rf"^{rule_of(message)} = {{[^}}]*?\b0: {kind},", SOURCE, re.MULTILINE)


# --- bound by bound ------------------------------------------------------------------------------------------------

ALIASES = dict(re.findall(r"^([a-z0-9-]+) = ([^{;\n]+?) *(?:;.*)?$", SOURCE, re.MULTILINE))
RULES = {
    name: {int(key): (text.strip().rstrip(","), comment) for key, text, comment in fields}
    for name, body in re.findall(r"^([a-z0-9-]+) = \{(.*?)^\}", SOURCE, re.MULTILINE | re.DOTALL)
    for fields in [re.findall(r"^  (?:\? )?(\d+): ([^;\n]*)(.*)$", body, re.MULTILINE)]
}


def schema_text(info: inspect.Type) -> str:
    """The text in ``wire.cddl``, aliases written out, for a field with these bounds in ``messages.py``."""
    match info:
        case inspect.IntType():
            return f"{info.ge}..{info.le}"
        case inspect.BytesType():
            low, high = info.min_length or 0, info.max_length
            return f"bstr .size {low}" if low == high else f"bstr .size ({low}..{high})"
        case inspect.StrType() if info.pattern:
            return f'tstr .regexp "{info.pattern.removeprefix("^(").removesuffix(")$")}"'
        case inspect.StrType():  # (characters there, bytes here)
            return f"tstr .size ({info.min_length or 0}..{4 * (info.max_length or 0)})"
        case inspect.VarTupleType():
            return f"[{info.min_length or 0}*{info.max_length} {schema_text(info.item_type)}]"
        case inspect.StructType():
            return rule_name(info.cls)
        case inspect.FloatType():
            return "float"
        case inspect.BoolType():
            return "bool"
    raise AssertionError(info)


def written_out(text: str) -> str:
    return re.sub(r"[a-z][a-z0-9-]*", lambda found: ALIASES.get(found[0], found[0]), text)


@pytest.mark.parametrize("kind", [*Kind.__subclasses__(), *Record.__subclasses__()], ids=lambda kind: kind.__name__)
def test_fields_and_bounds_are_those_of_the_code(kind: type[msgspec.Struct]) -> None:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    rule = dict(RULES[rule_name(kind)])
    if info.tag is not None:
        assert rule.pop(0)[0] == str(info.tag)
    assert list(rule) == [int(field.encode_name) for field in info.fields]
    for field in info.fields:
        text, comment = rule[int(field.encode_name)]
        assert written_out(text) == schema_text(field.type), field.name
        if isinstance(field.type, inspect.FloatType):
            low, high = re.findall(r"(-?[0-9.e]+) to (-?[0-9.e]+)", comment)[0]
            assert (float(low), float(high)) == (field.type.ge, field.type.le)
        elif isinstance(field.type, inspect.StrType) and not field.type.pattern and "tstr" in text:
            assert f"at most {field.type.max_length:,} characters" in comment
