"""JSON schemas for answers: which of their keywords are enforced, and which schema llguidance gets.

llguidance refuses what it does not enforce, but by its own names and only where it looks. So every schema is read here
first: by the gateway, which can say which field of the request is wrong, and by the engine, which also gets schemas of
other nodes. A keyword that constrains a value and is not enforced is refused by name, never dropped.
"""

import json
from typing import Any

Schema = dict[str, Any] | bool

MAX_DEPTH = 60
"""Of schemas in each other. Each takes two levels of the 127 that llguidance reads."""

ONE = frozenset({"additionalItems", "additionalProperties", "items"})
"""Keywords with a schema."""
LIST = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
"""Keywords with a list of schemas."""
MAP = frozenset({"$defs", "definitions", "patternProperties", "properties"})
"""Keywords with an object of schemas."""
PLAIN = frozenset(
    {
        *("$anchor", "$id", "$ref", "$schema", "const", "enum", "format", "pattern", "required", "type"),
        *("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"),
        *("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"),
    }
)
"""Other keywords that llguidance enforces, or refuses where it cannot."""
COUNTS = frozenset({"maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"})
NOTES = frozenset(
    {
        *("$comment", "$vocabulary", "contentEncoding", "contentMediaType", "contentSchema", "default", "deprecated"),
        *(
            "description",
            "discriminator",
            "example",
            "examples",
            "externalDocs",
            "readOnly",
            "title",
            "writeOnly",
            "xml",
        ),
    }
)
"""Keywords that constrain nothing."""


COMBINING = frozenset(
    {
        *("$dynamicRef", "allOf", "dependentSchemas", "else", "if", "not", "then"),
        *("unevaluatedItems", "unevaluatedProperties"),
    }
)
"""Keywords with which an object's properties need not all stand in one schema."""


class SchemaError(ValueError):
    """The schema is invalid, or has a keyword that is not enforced. One line."""


def enforceable(text: str) -> Schema:
    """The schema that llguidance gets for the schema ``text``. Raises SchemaError."""
    try:
        schema = json.loads(text)
    except ValueError as exc:
        raise SchemaError(f"the JSON schema is no JSON: {exc}") from exc
    except RecursionError as exc:
        raise SchemaError("the JSON schema is nested too deep") from exc
    return _enforceable(schema, 0)


def _enforceable(schema: object, depth: int) -> Schema:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise SchemaError("a JSON schema is an object, true or false")
    if depth > MAX_DEPTH:
        raise SchemaError("the JSON schema is nested too deep")
    kept: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in ONE:
            kept[keyword] = _enforceable(value, depth + 1)
        elif keyword in LIST:
            kept[keyword] = [_enforceable(one, depth + 1) for one in _of_kind(keyword, value, list)]
        elif keyword in MAP:
            schemas = _of_kind(keyword, value, dict)
            kept[keyword] = {name: _enforceable(one, depth + 1) for name, one in schemas.items()}
        elif keyword in COUNTS and isinstance(value, float) and value.is_integer():
            kept[keyword] = int(value)
        elif keyword in PLAIN:
            kept[keyword] = value
        elif not (keyword in NOTES or keyword.startswith("x-")):
            raise SchemaError(f"the keyword {keyword[:64]!r} of the JSON schema is not enforced here")
    return kept


def _of_kind(keyword: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise SchemaError(f"{keyword!r} of the JSON schema has no {kind.__name__}")
    return value


def closed(schema: Schema) -> Schema:
    """``schema`` with no further properties in objects that name some and say nothing of others. Their values fit the
    schema, and a model does not invent properties. A schema that puts objects together from several schemas stays as
    it is. Raises RecursionError."""
    return schema if _combines(schema) else _closed(schema)


def _combines(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_combines, value))
    if not isinstance(value, dict):
        return False
    if not COMBINING.isdisjoint(value) or ("$ref" in value and not {*value}.isdisjoint(_STRUCTURE)):
        return True
    return any(map(_combines, value.values()))


_STRUCTURE = frozenset({"anyOf", "oneOf", "properties", "required"})


def _closed(value: Any) -> Any:
    if isinstance(value, list):
        return [_closed(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {name: one if name in _DATA else _closed(one) for name, one in value.items()}
    properties, required = value.get("properties"), value.get("required", [])
    if (
        isinstance(properties, dict)
        and _is_object(value.get("type"))
        and isinstance(required, list)
        and all(isinstance(name, str) and name in properties for name in required)
        and {*value}.isdisjoint(_OPEN)
    ):
        kept["additionalProperties"] = False
    return kept


_OPEN = frozenset({"additionalProperties", "anyOf", "minProperties", "oneOf", "patternProperties", "propertyNames"})
_DATA = frozenset({"const", "default", "enum", "example", "examples"})
"""Keywords with values, not schemas."""


def _is_object(kind: Any) -> bool:
    return kind is None or kind == "object" or (isinstance(kind, list) and "object" in kind)


def moved(schema: Schema, pointer: str) -> Schema:
    """``schema`` for a place in another one: its references to itself begin with ``pointer``. Raises RecursionError."""
    return _moved(schema, pointer)  # type: ignore[no-any-return]


def _moved(value: Any, pointer: str) -> Any:
    if isinstance(value, list):
        return [_moved(one, pointer) for one in value]
    if not isinstance(value, dict) or isinstance(value.get("$id"), str):
        return value
    kept = {name: one if name in _DATA else _moved(one, pointer) for name, one in value.items()}
    reference = value.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        kept["$ref"] = pointer + reference[1:]
    return kept
