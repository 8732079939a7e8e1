"""Which schemas have no value in common: what is proved holds for all values."""

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.node.schemas.disjoint import Disjoint
from mycelia.node.schemas.document import Document, Schema

VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 1.5, "", "a", "bc", [], [1], ["a"], [1, "a"], {}, {"a": 1}, {"a": "a"}, {"b": None}),
    *({"a": 1, "b": 2}, {"a": "a", "b": None}),
]
LEAF: st.SearchStrategy[Schema] = st.sampled_from(
    [
        *(True, {"type": "string"}, {"type": ["integer", "null"]}, {"const": 1}, {"enum": ["a", 1.0, None]}),
        *(
            {"minimum": 1},
            {"exclusiveMaximum": 1, "type": "number"},
            {"maxLength": 1},
            {"minLength": 2, "type": "string"},
        ),
        *({"type": "array", "minItems": 1}, {"maxItems": 0, "type": "array"}, {"$ref": "#/$defs/one"}, {"enum": []}),
    ]
)


def _larger(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    properties = st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    required = st.lists(st.sampled_from("ab"), unique=True)
    objects = st.fixed_dictionaries(
        {"type": st.just("object"), "properties": properties, "required": required},
        optional={"additionalProperties": st.booleans()},
    )
    lists = st.fixed_dictionaries({"items": inner}, optional={"type": st.just("array"), "minItems": st.integers(0, 1)})
    several = st.lists(inner, min_size=1, max_size=2)
    ways = st.fixed_dictionaries({}, optional={"anyOf": several, "allOf": several, "type": st.just("object")})
    return objects | lists | ways


SCHEMAS = st.recursive(LEAF, _larger, max_leaves=6)


def disjoint(one: Schema, other: Schema) -> bool:
    return Disjoint(Document({"$defs": {"one": {"const": "a"}}, "anyOf": [one, other]})).two(one, other)


@settings(max_examples=150)
@given(SCHEMAS, SCHEMAS)
def test_what_is_proved_holds(one: Schema, other: Schema) -> None:
    both = jsonschema_rs.validator_for({"$defs": {"one": {"const": "a"}}, "allOf": [one, other]})
    if disjoint(one, other):
        assert [value for value in VALUES if both.is_valid(value)] == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"type": "string"}, {"type": ["null", "array"]}),
        ({"const": 1}, {"enum": [2, "1"]}),
        ({"$ref": "#/$defs/one"}, {"const": "b"}),
        ({"allOf": [{"type": "number"}, {"maximum": 3}]}, {"type": "integer", "minimum": 4}),
        ({"anyOf": [{"type": "null"}, {"const": 3}]}, {"type": "string"}),
        (
            {"type": "object", "properties": {"a": {"const": 1}}},
            {"type": "object", "properties": {"a": {"const": 2}}, "required": ["a"]},
        ),
        (
            {"type": "object", "additionalProperties": False},
            {"type": "object", "required": ["a"]},
        ),
    ],
)
def test_what_is_apart(one: Schema, other: Schema) -> None:
    assert disjoint(one, other) and disjoint(other, one)


def test_the_work_is_bounded() -> None:
    deep: dict[str, Any] = {"type": "object"}
    for place in range(40):
        deep = {"anyOf": [deep, {"allOf": [deep, {"properties": {"a": {"const": place}}}]}]}
    wide: dict[str, Any] = {"$defs": {"one": {"properties": {f"p{place}": {} for place in range(5_000)}}}}
    alike = [{"type": "object", "allOf": [{"$ref": "#/$defs/one"}] * 10, "required": ["a"]} for _ in range(50)]
    assert not Disjoint(Document(wide)).all(alike)
    loop: dict[str, Any] = {"$defs": {"one": {"$ref": "#/$defs/one"}}}
    assert not Disjoint(Document(loop)).two({"$ref": "#/$defs/one"}, {"$ref": "#/$defs/one"})
    assert not Disjoint(Document(True)).all([deep, deep, {"$ref": "#/nowhere"}])
    words = [chr(0x4E00 + n) for n in range(4_000)]
    kinds = {"$defs": {"a": {"properties": {"k": {"enum": words}, "m": {"type": "string"}}}}}
    many = {"allOf": [{"$ref": "#/$defs/a"}] * 2_000, "required": ["k", "m"]}
    # (each of the first 2,000 was compared with each of the others, or had its values read again: minutes)
    assert not Disjoint(Document(kinds)).two(many | {"type": "object"}, many | {"type": ["object", "null"]})
    assert Disjoint(Document(kinds)).all(
        [
            {"type": "object", "allOf": [{"$ref": "#/$defs/a"}] * 2_000, "required": ["k"]},
            {"type": "object", "properties": {"k": {"const": 1}}, "required": ["k"]},
        ]
    )
