"""Changes to a client's schema before it is sent: objects without further properties, and new places."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from mycelia.node.schemas.document import LIST, MAP, ONE, Schema

COMBINING = frozenset(
    {
        *("$dynamicRef", "allOf", "dependentSchemas", "else", "if", "not", "then"),
        *("unevaluatedItems", "unevaluatedProperties"),
    }
)
"""Keywords with which an object's properties need not all stand in one schema."""
_STRUCTURE = frozenset({"anyOf", "oneOf", "properties", "required"})
_OPEN = frozenset({"additionalProperties", "anyOf", "minProperties", "oneOf", "patternProperties", "propertyNames"})


def closed(schema: Schema) -> Schema:
    """``schema`` with no further properties in objects that name some and say nothing of others. Their values fit the
    schema, and a model does not invent properties. A schema that puts objects together from several schemas stays as
    it is. Raises RecursionError."""
    return schema if _combines(schema) else _closed(schema)


def closed_text(text: str) -> str:
    """The same for a schema in JSON; what is none stays for the engine to refuse."""
    try:
        return json.dumps(closed(json.loads(text)), ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def _combines(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    if not COMBINING.isdisjoint(schema) or ("$ref" in schema and not _STRUCTURE.isdisjoint(schema)):
        return True
    return any(map(_combines, _inner(schema)))


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    kept = _changed(schema, _closed)
    properties, required, kind = schema.get("properties"), schema.get("required", []), schema.get("type", "object")
    if (
        isinstance(properties, dict)
        and (kind == "object" or (isinstance(kind, list) and "object" in kind))
        and isinstance(required, list)
        and all(isinstance(name, str) and name in properties for name in required)
        and _OPEN.isdisjoint(schema)
    ):
        kept["additionalProperties"] = False
    return kept


def moved(schema: Schema, pointer: str) -> Schema:
    """``schema`` for a place in another one: its references to itself begin with ``pointer``. Raises RecursionError."""
    if not isinstance(schema, dict) or isinstance(schema.get("$id"), str):
        return schema
    kept = _changed(schema, lambda inner: moved(inner, pointer))
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        kept["$ref"] = pointer + reference[1:]
    return kept


def _changed(schema: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """``schema`` with every schema directly in it changed."""
    kept = {**schema}
    for keyword, value in schema.items():
        if keyword in MAP and isinstance(value, dict):
            kept[keyword] = {name: change(one) for name, one in value.items()}
        elif (keyword in LIST or keyword == "items") and isinstance(value, list):
            kept[keyword] = [change(one) for one in value]
        elif keyword in ONE or keyword == "additionalItems":
            kept[keyword] = change(value)
    return kept


def _inner(schema: dict[str, Any]) -> Iterator[Any]:
    """The schemas directly in ``schema``."""
    for keyword, value in schema.items():
        if keyword in MAP and isinstance(value, dict):
            yield from value.values()
        elif (keyword in LIST or keyword == "items") and isinstance(value, list):
            yield from value
        elif keyword in ONE:
            yield value
