"""The values that a schema excludes, as a schema. What cannot be said with the keywords of llguidance is left out: the
values that fit the result are among those that the schema excludes, but they need not be all of them."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from mycelia.node.schemas.document import Document, Schema, SchemaError, num_members

TYPES = ("null", "boolean", "number", "string", "array", "object")
PLACES = 6
"""Where a list must have a certain item, it is among the first so many."""
MAX_STEPS = 2_000
MAX_SQUARES = 50_000
"""The sum of the squared lengths of texts to exclude: the regular expression of all others has their beginnings."""
_MEMBERS_A_STEP, _PAIRS_A_STEP, _SQUARES_A_STEP = 8, 4, 64
"""Members that are negated, pairs that are made, and squares as above, in the time of a step."""
_LESS = {
    "minItems": ("array", "maxItems"),
    "minLength": ("string", "maxLength"),
    "minProperties": ("object", "maxProperties"),
}
_MORE = {most: (kind, least) for least, (kind, most) in _LESS.items()}
_BOUNDS = {
    "minimum": "exclusiveMaximum",
    "maximum": "exclusiveMinimum",
    "exclusiveMinimum": "maximum",
    "exclusiveMaximum": "minimum",
}
_QUIET = frozenset({"$anchor", "$defs", "$dynamicAnchor", "$id", "definitions", "else", "then"})


def any_of(schemas: Sequence[Schema]) -> Schema:
    left = [schema for schema in schemas if schema is not False]
    if any(schema is True for schema in left):
        return True
    return (left[0] if len(left) == 1 else {"anyOf": left}) if left else False


def all_of(schemas: Sequence[Schema]) -> Schema:
    left = [schema for schema in schemas if schema is not True]
    if any(schema is False for schema in left):
        return False
    return (left[0] if len(left) == 1 else {"allOf": left}) if left else True


def with_item(schema: Schema, first: int = 0) -> Schema:
    """Lists with an item that fits ``schema``, at one of the places from ``first`` on."""
    if schema is False:
        return False
    return any_of([item_at(place, schema) for place in range(first, first + PLACES)])


def item_at(place: int, schema: Schema) -> Schema:
    return {"type": "array", "prefixItems": [True] * place + [schema], "minItems": place + 1}


class Negation:
    """Negates the schemas of one document. The results may refer to it."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._steps = 0
        self.loses_fractions = False
        """Whether numbers with a fraction are left out, of which llguidance has no schema."""

    def of(self, schema: Schema, followed: tuple[str, ...] = ()) -> Schema:
        """followed: references on the way here. Raises SchemaError when it is too much."""
        self._count(1 + num_members(schema) // _MEMBERS_A_STEP)
        if isinstance(schema, bool):
            return not schema
        parts: list[Schema] = []
        for keyword, value in schema.items():
            if keyword not in _QUIET:
                parts += self._of(keyword, value, schema, followed)
        return any_of(parts)

    def _count(self, num_steps: int) -> None:
        """Raises SchemaError."""
        self._steps += num_steps
        if self._steps > MAX_STEPS:
            raise SchemaError("the JSON schema excludes too much: it is too large")

    def _excluding(self, values: Sequence[Any]) -> Schema:
        squares = squares_of(value for value in values if isinstance(value, str))
        self._count(squares // _SQUARES_A_STEP if squares <= MAX_SQUARES else 0)
        return excluding(values)

    def _of(self, keyword: str, value: Any, schema: dict[str, Any], followed: tuple[str, ...]) -> list[Schema]:
        """Schemas of values that this keyword of ``schema`` excludes."""
        match keyword:
            case "$ref" | "$dynamicRef":
                if value in followed:
                    return []
                return [self.of(self._document.find(value), (*followed, value))]
            case "type":
                kinds = value if isinstance(value, list) else [value]
                self.loses_fractions |= "integer" in kinds and "number" not in kinds
                others = [kind for kind in TYPES if kind not in kinds and not (kind == "number" and "integer" in kinds)]
                return [{"type": others}] if others else []
            case "const":
                return [self._excluding([value])]
            case "enum":
                return [self._excluding(value)]
            case "minLength" | "minItems" | "minProperties" if value > 0:
                kind, other = _LESS[keyword]
                return [{"type": kind, other: value - 1}]
            case "maxLength" | "maxItems" | "maxProperties" if keyword != "maxProperties" or value == 0:
                kind, other = _MORE[keyword]
                return [{"type": kind, other: value + 1}]
            case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
                return [{"type": "number", _BOUNDS[keyword]: value}]
            case "required":
                return [{"type": "object", "properties": {name: False}} for name in value]
            case "properties":
                return [
                    {"type": "object", "required": [name], "properties": {name: self.of(one, followed)}}
                    for name, one in value.items()
                    if one is not True
                ]
            case "dependentRequired":
                return [
                    {"type": "object", "required": [name], "properties": {other: False}}
                    for name, others in value.items()
                    for other in others
                ]
            case "dependentSchemas":
                return [
                    all_of([{"type": "object", "required": [name]}, self.of(one, followed)])
                    for name, one in value.items()
                ]
            case "prefixItems":
                return [item_at(place, self.of(one, followed)) for place, one in enumerate(value) if one is not True]
            case "items":
                return [with_item(self.of(value, followed), len(schema.get("prefixItems", [])))]
            case "contains" if "minContains" not in schema and "maxContains" not in schema:
                return [{"type": "array", "items": self.of(value, followed)}]
            case "not":
                return [value]
            case "anyOf":
                return [all_of([self.of(one, followed) for one in value])]
            case "allOf":
                return [self.of(one, followed) for one in value]
            case "oneOf":
                self._count(len(value) ** 2 // 2 // _PAIRS_A_STEP)
                none = all_of([self.of(one, followed) for one in value])
                return [none, *(all_of(pair) for pair in itertools.combinations(value, 2))]
            case "if" if "then" in schema or "else" in schema:
                then = all_of([value, self.of(schema.get("then", True), followed)])
                return [then, all_of([self.of(value, followed), self.of(schema.get("else", True), followed)])]
        return []


def excluding(values: Sequence[Any]) -> Schema:
    """Other values than these; of their kinds, for lists and objects only what differs in length or has other names."""
    kinds = {kind: [value for value in values if kind_of(value) == kind] for kind in TYPES}
    parts: list[Schema] = [{"type": [kind for kind in TYPES if not kinds[kind]]}] if not all(kinds.values()) else []
    if len({*kinds["boolean"]}) == 1:
        parts.append({"const": not kinds["boolean"][0]})
    numbers = sorted(kinds["number"])
    for low, high in zip([None, *numbers], [*numbers, None], strict=True) if numbers else ():
        bounds = {"exclusiveMinimum": low, "exclusiveMaximum": high}
        if low is None or low != high:
            parts.append({"type": "number"} | {name: bound for name, bound in bounds.items() if bound is not None})
    if kinds["string"] and squares_of(kinds["string"]) <= MAX_SQUARES:
        parts.append({"type": "string", "pattern": f"^(?:{excluding_texts(kinds['string'])})$"})
    for kind, least, most in (("array", "minItems", "maxItems"), ("object", "minProperties", "maxProperties")):
        if kinds[kind]:
            sizes = [len(value) for value in kinds[kind]]
            if kind == "array" or max(sizes) == 0:
                parts.append({"type": kind, least: max(sizes) + 1})
            if min(sizes):
                parts.append({"type": kind, most: min(sizes) - 1})
    return any_of(parts)


def kind_of(value: Any) -> str:
    """The JSON type of a value, with integers as numbers."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def squares_of(texts: Iterable[str]) -> int:
    return sum(len(text) ** 2 for text in texts)


def excluding_texts(texts: Sequence[str]) -> str:
    """A regular expression of all other texts."""
    known = {*texts}
    following: dict[str, set[str]] = {"": set()}
    """Beginning of a text -> the characters after it."""
    for text in known:
        for end, char in enumerate(text):
            following.setdefault(text[:end], set()).add(char)
        following.setdefault(text, set())
    alternatives = []
    for prefix in sorted(following):
        others = sorted(following[prefix])
        other = f"[^{''.join(map(_character, others))}](?s:.)*" if others else "(?s:.)+"
        written = "".join(map(_character, prefix))
        alternatives.append(written + (other if prefix in known else f"(?:{other})?"))
    return "|".join(alternatives)


def _character(character: str) -> str:
    return character if character.isascii() and character.isalnum() else f"\\x{{{ord(character):x}}}"
