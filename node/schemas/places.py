"""Changes to a client's schema before it is sent: objects without further properties, and new places."""

from typing import Any

from mycelia.node.schemas.document import Schema

COMBINING = frozenset(
    {
        *("$dynamicRef", "allOf", "dependentSchemas", "else", "if", "not", "then"),
        *("unevaluatedItems", "unevaluatedProperties"),
    }
)
"""Keywords with which an object's properties need not all stand in one schema."""


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
