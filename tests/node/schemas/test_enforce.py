"""Schemas as people's tools make them: the grammar takes the values that fit, and no others."""

import json
from contextlib import suppress
from typing import Any

import pytest

from mycelia.node.engine.child.grammar.checker import read
from mycelia.node.engine.child.grammar.guidance import GrammarError, matcher
from mycelia.node.schemas.document import Document, Schema, SchemaError
from mycelia.node.schemas.enforce import enforceable
from mycelia.node.schemas.negation import excluding_texts
from mycelia.node.schemas.places import closed, closed_text, moved
from mycelia.proto.wire.messages import MAX_GRAMMAR_CHARS
from tests.node.schemas.suite import accepts

ITEM = {"type": "object", "properties": {"sku": {"type": "string"}}, "required": ["sku"]}
NODE = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}
TREE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["name"],
    "unevaluatedProperties": False,
}
CAT = {
    "properties": {
        "kind": {"const": "cat", "default": "cat", "title": "Kind", "type": "string"},
        "lives": {"type": "integer"},
    },
    "required": ["kind", "lives"],
    "type": "object",
}
DOG = {
    "properties": {"kind": {"enum": ["dog", "wolf"]}},
    "required": ["kind"],
    "type": "object",
    "additionalProperties": False,
}
PET = {
    "discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}, "propertyName": "kind"},
    "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
}
UNION = {"$defs": {"Cat": CAT, "Dog": DOG}, "properties": {"pet": PET}, "required": ["pet"], "type": "object"}
"""As pydantic writes a discriminated union."""
ZOD_EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
KEPT: list[tuple[str, Any, list[Any], list[Any]]] = [
    ("bounds", {"type": "integer", "minimum": 1, "maximum": 5}, [1, 5], [0, 6, 8, 1.5]),
    ("exclusive", {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0.5], [0, 1]),
    ("multiples", {"type": "integer", "multipleOf": 3}, [0, 9], [1, 10]),
    ("enum of kinds", {"type": ["string", "null"], "enum": ["calm", None]}, ["calm", None], ["morning"]),
    ("allOf", {"$defs": {"m": {"enum": ["a", "b"]}}, "allOf": [{"$ref": "#/$defs/m"}]}, ["a"], [{}, "c"]),
    (
        "object or null",
        {"properties": {"x": {}}, "type": ["object", "null"], "required": ["x"]},
        [None],
        [{}, {"a": 1}],
    ),
    ("required alone", {"type": "object", "required": ["x"]}, [{"x": 1}], [{}, {"y": 1}]),
    ("not", {"type": "string", "not": {"enum": ["no", "not"]}}, ["n", "yes", "nots"], ["no", "not"]),
    ("if", {"if": {"properties": {"a": {"const": 1}}}, "then": {"required": ["b"]}}, [{"a": 2}, {"a": 1, "b": 2}], []),
    ("dependent", {"dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 1}], [{"a": 1}]),
    (
        "patterns of names",
        {"patternProperties": {"^n_": {"type": "integer"}}},
        [{"n_a": 1}, {"b": "x"}],
        [{"n_a": "x"}],
    ),
    ("contains", {"type": "array", "contains": {"const": 5}}, [[5], [1, 5, 2]], [[], [1]]),
    ("title alone", {"type": "object", "properties": {"v": {"title": "V"}}}, [{"v": 1}, {"v": [None]}], []),
    ("true", {"type": "object", "properties": {"v": True}}, [{"v": "x"}, {"v": {}}], []),
    ("anything", {}, [1, "x", None, [1], {"a": {}}], []),
    ("recursion", NODE, [{"next": {"next": None}}], [{"next": 1}]),
    ("closed recursion", TREE, [{"name": "a", "children": [{"name": "b"}]}], [{"name": "a", "other": 1}]),
    ("no anchors", {"type": "string", "pattern": "[0-9]{3}"}, ["a123b"], ["12"]),
    ("group", {"type": "string", "pattern": "^(?:a|b)$"}, ["a"], ["ab", "c"]),
    ("classes", {"type": "string", "pattern": r"^\d{2}\w$"}, ["12a"], ["1a", "12-"]),
    ("date", {"type": "string", "format": "date"}, ["2026-11-30"], ["06/19/1963"]),
    ("email", {"type": "string", "format": "email"}, ["a@b.example"], ["nobody"]),
    ("nullable", {"type": "string", "nullable": True}, ["x", None], [1]),
    ("whole counts", {"type": "string", "maxLength": 2.0}, ["ab"], ["abc"]),
    ("names", {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}}, [{"a": 1}], [{"A": 1}]),
    ("two of one", {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}, {"b": 1}], [{"a": 1, "b": 1}]),
    ("older lists", {"items": [{"type": "string"}], "additionalItems": False}, [["a"], []], [[1], ["a", "b"]]),
    ("older bounds", {"type": "integer", "minimum": 1, "exclusiveMinimum": True}, [2], [1]),
    ("union of references", UNION, [{"pet": {"kind": "cat", "lives": 9}}, {"pet": {"kind": "dog"}}], [{"pet": {}}]),
    (
        "union with a default",
        {"oneOf": [{**CAT, "required": ["lives"]}, DOG]},
        [{"lives": 9}, {"kind": "cat", "lives": 9}, {"kind": "dog"}],
        [{"kind": "dog", "lives": 9}, {}],
    ),
    (
        "ranges apart",
        {"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 5}]},
        [1, 7],
        [4, 2.5],
    ),
    (
        "lists apart",
        {"oneOf": [{"type": "array", "items": {"type": kind}, "minItems": 1} for kind in ("string", "integer")]},
        [["a"], [1, 2]],
        [[], ["a", 1]],
    ),
    ("formats of numbers", {"type": "integer", "format": "int32"}, [5, -(2**31)], [2**31]),
    ("large formats", {"type": "integer", "format": "int64"}, [10**17], [10**20]),
    ("formats that say nothing", {"type": "string", "format": "password"}, ["x"], [1]),
    ("kinds of uuid", {"type": "string", "format": "uuid4"}, ["123e4567-e89b-42d3-a456-426614174000"], ["1", "a" * 36]),
    ("e-mail", {"type": "string", "format": "email"}, ["a.b+c@d.example"], ["a@b", "a..b@c.de", f"{'a' * 65}@b.cd"]),
    ("base64", {"type": "string", "format": "byte"}, ["", "aGk=", "aGVq"], ["a", "a!=="]),
    ("days", {"type": "string", "format": "date"}, ["2024-02-29", "2026-12-31"], ["2026-02-29", "2026-04-31"]),
    (
        "instants",
        {"type": "string", "format": "date-time"},
        ["2026-01-01T00:00:00Z", "2026-01-01T10:20:30.5+01:00"],
        ["2026-01-01T24:00:00Z", "2026-01-01T00:00:60Z", "2026-01-01"],
    ),
    ("format and pattern", {"type": "string", "format": "date", "pattern": "^2026"}, ["2026-01-02"], ["2025-01-02"]),
    ("zod's e-mail", {"type": "string", "pattern": ZOD_EMAIL}, ["a.b@c.de"], [".a@c.de", "a..b@c.de", "a@c"]),
    (
        "pydantic's decimal",
        {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d{0,3}\.?\d{0,2}0*$"},
        ["1.50", "-12", "999.99"],
        ["-", ".", "123456", "1.2345"],
    ),
    ("length ahead", {"type": "string", "pattern": "^(?=.{3,4}$)[a-z]+$"}, ["abc"], ["ab", "abcde", "ABC"]),
    ("bounds of floats", {"type": "number", "maximum": 1.7976931348623157e308}, [0.5, -7], []),
    (
        "names of an enum",
        {"$defs": {"k": {"enum": ["a", "b"]}}, "propertyNames": {"$ref": "#/$defs/k"}},
        [{"a": 1}],
        [{"c": 1}],
    ),
    ("names of a union", {"propertyNames": {"anyOf": [{"const": "a"}, {"enum": ["b"]}]}}, [{"b": 1}], [{"c": 1}]),
    (
        "names that are not empty",
        {"type": "object", "patternProperties": {"^[a-z]+$": {"type": "integer"}}, "propertyNames": {"minLength": 1}},
        [{"a": 1}, {"A": "x"}],
        [{"": 1}, {"a": "x"}],
    ),
    ("names but one", {"propertyNames": {"not": {"const": "a"}}}, [{"b": 1}], [{"a": 1}]),
    ("names that are dates", {"propertyNames": {"format": "date"}}, [{"2026-01-02": 1}], [{"a": 1}]),
    (
        "names by a reference",
        {"$defs": {"s": {"type": "string"}}, "propertyNames": {"$ref": "#/$defs/s"}},
        [{"a": 1}],
        [],
    ),
    (
        "a set",
        {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True},
        [[], ["b"], ["a", "b"]],
        [["a", "a"]],
    ),
    ("odd names", {"$defs": {"R[I]": {"type": "integer"}}, "$ref": "#/$defs/R[I]"}, [3], ["x"]),
    (
        "required of draft 3",
        {"type": "object", "properties": {"a": {"type": "string", "required": True}, "b": {"required": False}}},
        [{"a": "x"}],
        [{}, {"b": 1}],
    ),
    ("notes", {"type": "string", "enumDescriptions": ["d"], "xml": {}, "ui:widget": "w", "id": "i"}, ["x"], [1]),
    ("remarks", {"type": "string", "x-order": 1, "description": "d", "example": "e", "deprecated": True}, ["x"], [1]),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), [case[1:] for case in KEPT], ids=[case[0] for case in KEPT])
def test_what_a_schema_says_is_kept(
    byte_tokenizer: object, schema: object, valid: list[Any], invalid: list[Any]
) -> None:
    made = matcher(byte_tokenizer, read(byte_tokenizer, "json_schema", json.dumps(schema)))
    assert [value for value in valid if not accepts(made, value)] == []
    assert [value for value in invalid if accepts(made, value)] == []


REFUSED = [
    ({"type": "string", "minimal": 3}, "'minimal'"),
    ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "'uniqueItems'"),
    ({"not": {"pattern": "a"}}, "'not'"),
    ({"if": {"pattern": "a"}, "then": {"maxLength": 3}}, "'if'"),
    ({"x-guidance": {"lenient": True}, "format": "card"}, "format: card"),
    ({"type": "string", "pattern": "^(?=a)"}, "'pattern' of the JSON schema is not enforced with look-around"),
    ({"type": "string", "pattern": r"(a)\1"}, "'pattern'"),
    ({"type": "integer", "minimum": 10**30}, "'minimum'"),
    ({"type": "string", "minLength": 10**12}, "'minLength'"),
    ({"type": "number", "minimum": float("nan")}, "NaN"),
    ({"type": "array", "items": {"enum": list("abcdef")}, "uniqueItems": True}, "'uniqueItems'"),
    ({"type": "object", "required": [5]}, "'required'"),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "'oneOf'"),
    ({"propertyNames": {"format": "hostname"}}, "'propertyNames'"),
    ({"$ref": "https://example.com/s"}, "example.com"),
    ({"$ref": "#/$defs/none"}, "none"),
    ({"$schema": "https://example.com/meta"}, "unknown kind"),
    ({"oneOf": [{"type": "string", "pattern": "a"}, {"type": "string", "pattern": "b"}]}, "'oneOf'"),
    ({"required": 5, "if": True, "then": {"required": 5}}, ""),
    (5, "an object, true or false"),
]


@pytest.mark.parametrize(("schema", "names"), REFUSED, ids=[names for _, names in REFUSED])
def test_what_cannot_be_kept_is_refused_by_name(byte_tokenizer: object, schema: object, names: str) -> None:
    with pytest.raises(GrammarError) as caught:
        read(byte_tokenizer, "json_schema", json.dumps(schema))
    assert names in str(caught.value) and "\n" not in str(caught.value)


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    schema = {"type": "object", "properties": {"not": {"type": "string"}, "minimal": {"$ref": "#/properties/not"}}}
    assert enforceable(json.dumps(schema)) == schema


def test_depth_and_expansions_are_bounded() -> None:
    deep = '{"items":' * 20_000 + "{}" + "}" * 20_000
    with pytest.raises(SchemaError, match="too deep"):
        enforceable(deep)
    wide = {"not": {"anyOf": [{"allOf": [{"enum": [n]}] * 40} for n in range(100)]}}
    with pytest.raises(SchemaError, match="too large"):
        enforceable(json.dumps(wide))
    long: list[Schema] = [
        {"not": {"const": "x" * 60_000}},
        {"contains": {}, "minContains": 10**40},
        {"contains": {}, "maxContains": 10**9},
        {"allOf": [{"contains": {"const": n}, "minContains": 3, "maxContains": 3} for n in range(1_000)]},
    ]
    for schema in long:
        with suppress(SchemaError):
            assert len(json.dumps(enforceable(json.dumps(schema)))) < 1_000
    names = {"$defs": {"k": {"enum": [f"v{n}" for n in range(4_000)]}}}
    many = names | {"properties": {f"p{n}": {"propertyNames": {"$ref": "#/$defs/k"}} for n in range(10)}}
    with pytest.raises(SchemaError, match="too deep"):
        enforceable(json.dumps(many))
    with pytest.raises(SchemaError, match="propertyNames"):
        enforceable(json.dumps({"propertyNames": {"not": {"enum": ["x" * 1_000]}}}))
    ways = {"unevaluatedProperties": False, "allOf": [{"anyOf": [{"properties": {f"p{n}": {}}}, {}]} for n in range(9)]}
    with pytest.raises(SchemaError, match="too many ways"):
        enforceable(json.dumps(ways))


def test_objects_are_closed_where_that_takes_nothing_away() -> None:
    item: dict[str, Any] = {"type": "object", "properties": {"a": ITEM}, "required": ["a"]}
    shut = closed(item)
    assert isinstance(shut, dict) and shut["additionalProperties"] is False
    assert shut["properties"]["a"]["additionalProperties"] is False
    named = {"type": "object", "properties": {"properties": {"type": "string"}, "not": {}, "if": {}}}
    assert closed(named) == named | {"additionalProperties": False}, "names are not keywords"
    assert json.loads(closed_text(json.dumps(item))) == shut and closed_text("{") == "{"
    left: list[dict[str, Any]] = [
        shut | {"additionalProperties": True},
        {"type": "object", "properties": {"a": {}}, "required": ["b"]},
        {"allOf": [item, {"properties": {"b": {}}}]},
        {"type": "object"},
        {"enum": [{"properties": {}}]},
    ]
    assert [closed(schema) for schema in left] == left


def test_references_follow_a_schema_to_its_new_place() -> None:
    schema = {"$defs": {"x": {"$ref": "#"}}, "properties": {"$ref": {"$ref": "#/$defs/x"}}, "const": {"$ref": "#"}}
    assert moved(schema, "#/a") == {
        "$defs": {"x": {"$ref": "#/a"}},
        "properties": {"$ref": {"$ref": "#/a/$defs/x"}},
        "const": {"$ref": "#"},
    }


def test_the_expression_of_other_texts(byte_tokenizer: object) -> None:
    texts = ["", "a", "abc", "b.", "é"]
    made = matcher(byte_tokenizer, read(byte_tokenizer, "regex", excluding_texts(texts)))
    for text in (*texts, "ab", "abcd", "b", "bx", "b.x", "éé", "c", "\n"):
        copy = made.deep_copy()
        data = list(text.encode())
        assert (copy.try_consume_tokens(data) == len(data) and copy.is_accepting()) == (text not in texts)


def test_the_parts_of_a_schema_that_apply_together_are_not_copied_without_an_end() -> None:
    ways = [{"anyOf": [{"type": "object"}, {"required": ["a"]}]}] * 3
    schema = {"unevaluatedProperties": False, "allOf": [*ways, *[{"type": "object"}] * 3_000]}
    with pytest.raises(SchemaError, match="too many ways"):
        enforceable(json.dumps(schema))


def test_thousands_of_dynamic_references_are_followed_in_linear_time() -> None:
    schema = {"allOf": [{"$dynamicRef": "#x"}] * 3_000, "$defs": {"a": {"$dynamicAnchor": "x", "type": "string"}}}
    made = enforceable(json.dumps(schema))  # (a search for each took 6 s)
    assert isinstance(made, dict) and {"$ref": "#/$defs/a"} in made["allOf"]


WORDS = [chr(0x4E00 + n) for n in range(12_000)]
FANS: dict[str, Schema] = {
    f"level{level}": {"anyOf": [{"$ref": f"#/$defs/level{level + 1}"}] * 800} if level < 3 else {"const": "x"}
    for level in range(4)
}
MULTIPLIED: list[tuple[str, dict[str, Any]]] = [
    # (text that is multiplied by references, in less than 64 KiB: none of these came to an end within seconds)
    ("names of names of names", {"propertyNames": {"$ref": "#/$defs/level0"}, "$defs": FANS}),
    ("values of a set", {"uniqueItems": True, "items": {"$ref": "#/$defs/level0"}, "$defs": FANS}),
    ("excluded again", {"not": {"anyOf": [{"$ref": "#/$defs/a"}] * 1_900}, "$defs": {"a": {"enum": WORDS[:3_000]}}}),
    (
        "required again",
        {"not": {"allOf": [{"$ref": "#/$defs/a"}] * 1_900}, "$defs": {"a": {"required": WORDS[:2_000]}}},
    ),
    ("pairs", {"not": {"oneOf": [{"type": "null"}] * 1_900}}),
    (
        "names of all branches",
        {
            "unevaluatedProperties": False,
            "allOf": [{"$ref": "#/$defs/a"}] * 1_000,
            "$defs": {"a": {"properties": dict.fromkeys(WORDS[:2_000], True)}},
        },
    ),
    ("a long name and a pattern", {"propertyNames": {"pattern": "a*b"}, "properties": {"a" * 60_000: True}}),
]


@pytest.mark.parametrize(("what", "schema"), MULTIPLIED)
def test_what_references_multiply_is_counted(what: str, schema: dict[str, Any]) -> None:
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    assert len(text) <= MAX_GRAMMAR_CHARS
    with pytest.raises(SchemaError, match=r"too deep|too large"):
        enforceable(text)


def test_long_references_and_many_words_are_read_once() -> None:
    document = Document({"$defs": {"A" * 6_000: {"type": "integer"}}})
    reference = "#/$defs/" + "%41" * 6_000
    assert [document.find(reference) for _ in range(20_000)] == [{"type": "integer"}] * 20_000
    excluded = enforceable(json.dumps({"not": {"enum": WORDS}}))
    assert isinstance(excluded, dict) and len(excluded["anyOf"][-1]["pattern"]) > len(WORDS)
