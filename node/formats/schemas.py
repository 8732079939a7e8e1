"""The types that a function's schema allows for its arguments, for formats that write values without their type."""

from collections.abc import Mapping
from typing import Any

from mycelia.node.formats.values import as_json, json_of

_MAX_STEPS = 32
"""Schemas that are read for one argument."""
_ALIASES = {"str": "string", "text": "string", "int": "integer", "float": "number", "bool": "boolean"}
_ALIASES |= {"dict": "object", "list": "array", "tuple": "array"}
_TYPES = {str: "string", dict: "object", list: "array", bool: "boolean", type(None): "null"}
_KINDS = {'"': "string", "{": "object", "[": "array", "t": "boolean", "f": "boolean", "n": "null"}

Types = frozenset[str]
"""JSON schema's names of types; empty: any."""
STRING = frozenset({"string"})
NO_STRING = frozenset({"object", "array", "number", "boolean", "null"})


class Schema:
    """A function's parameters."""

    def __init__(self, root: Any) -> None:
        self._root = root if isinstance(root, dict) else {}
        # (a client may give a list of 100,000 values, and an answer a thousand arguments)
        self._referred: dict[str, Any] = {}
        """What was found by a reference."""
        self._told: dict[int, Types | None] = {}
        """What ``_told_types`` said of a schema, by its identity: the root holds it."""

    def property(self, *path: str) -> Any:
        """The schema of an argument, or of a value within one: ``path`` has the names of fields, "[]" for the items of
        an array. None: nothing is known of it."""
        steps = _Steps()
        schema: Any = self._root
        for name in path:
            schema = self._resolved(schema, steps)
            if not isinstance(schema, dict):
                return None
            if name == "[]":
                schema = schema.get("items")
                continue
            known = schema.get("properties")
            schema = known[name] if isinstance(known, dict) and name in known else schema.get("additionalProperties")
        return schema

    def types(self, schema: Any) -> Types:
        return self._types(schema, _Steps()) or frozenset()

    def only_argument(self) -> str | None:
        """The name of the argument, if there is just one."""
        known = self._root.get("properties")
        return next(iter(known)) if isinstance(known, dict) and len(known) == 1 else None

    def _resolved(self, schema: Any, steps: "_Steps") -> Any:
        while isinstance(schema, dict) and isinstance(ref := schema.get("$ref"), str) and steps.take():
            if ref not in self._referred:
                self._referred[ref] = self._find(ref)
            schema = self._referred[ref]
        return schema

    def _find(self, ref: str) -> Any:
        schema: Any = self._root
        for name in ref.removeprefix("#").strip("/").split("/") if ref.strip("#/") else ():
            name = name.replace("~1", "/").replace("~0", "~")
            schema = schema.get(name) if isinstance(schema, dict) else None
        return schema

    def _types(self, schema: Any, steps: "_Steps") -> Types | None:
        """None: any type."""
        schema = self._resolved(schema, steps)
        if not isinstance(schema, dict) or not steps.take():
            return None
        if id(schema) not in self._told:
            self._told[id(schema)] = _told_types(schema)
        if (told := self._told[id(schema)]) is not None:
            return told
        for name in ("anyOf", "oneOf", "allOf"):
            if isinstance(choices := schema.get(name), list) and choices:
                found = [self._types(choice, steps) for choice in choices[:_MAX_STEPS]]
                known = [types for types in found if types is not None]
                if name != "allOf" and len(known) < len(found):
                    return None
                return frozenset[str]().union(*known) or None
        return frozenset({"object"}) if "properties" in schema else frozenset({"array"}) if "items" in schema else None


def _told_types(schema: dict[str, Any]) -> Types | None:
    """What the schema itself says, without the schemas in it."""
    given = schema.get("type")
    if isinstance(given, str):
        return frozenset({_ALIASES.get(given.lower(), given.lower())})
    if isinstance(given, list):
        return frozenset(_ALIASES.get(one, one) for one in given if isinstance(one, str))
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else ()
    return frozenset(_TYPES.get(type(value), "number") for value in values) or None


class _Steps:
    def __init__(self) -> None:
        self._left = _MAX_STEPS

    def take(self) -> bool:
        self._left -= 1
        return self._left >= 0


def typed(text: str, types: Types) -> str:
    """A value written without its type, as JSON. A text that is none of ``types`` is a string: nothing is lost."""
    if types == STRING:
        return as_json(text)
    value = json_of(text.strip())
    if value is None or not types:
        return as_json(text) if value is None or value[0] == '"' else value
    kind = _kind(value)
    if kind in types or (kind == "number" and "integer" in types):
        return value
    return as_json(text) if "string" in types or kind == "string" else value


def _kind(value: str) -> str:
    return _KINDS.get(value[0], "number")


def schemas_of(tools: Mapping[str, Any]) -> dict[str, Schema]:
    """tools: the parameters of each function, by its name."""
    return {name: Schema(parameters) for name, parameters in tools.items()}
