"""Whether schemas have no value in common. llguidance proves that of plain schemas only: not behind a reference, as in
every union that pydantic writes. Where it is proved here, ``oneOf`` means the same as ``anyOf``."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mycelia.node.schemas.document import Document, Schema, SchemaError, num_members
from mycelia.node.schemas.negation import TYPES, kind_of

_MAX_STEPS = 30_000
"""Schemas and members of schemas that are looked at, and comparisons: about 30 ms."""
_MAX_DEPTH = 12
_NAMES_A_STEP, _CHARS_A_STEP = 8, 64
"""Names or values that are compared, and characters that are read, in the time of a step."""


class _TooMuchError(Exception):
    """More than _MAX_STEPS."""


@dataclass
class _Facts:
    """What holds for all values of a schema. Everything that is not known holds for all values."""

    types: frozenset[str] = frozenset(TYPES)
    values: frozenset[str] | None = None
    """All values, as JSON."""
    required: set[str] = field(default_factory=set)
    properties: dict[str, list[Schema]] = field(default_factory=dict)
    names: frozenset[str] | None = None
    """All names that an object may have."""
    least: float = -math.inf
    most: float = math.inf
    length: tuple[float, float] = (0, math.inf)
    size: tuple[float, float] = (0, math.inf)
    first_item: Schema = True
    ways: list[Sequence[Schema]] = field(default_factory=list)
    """One schema of each of these holds as well."""


class Disjoint:
    """Compares the schemas of one document."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._steps = 0
        self._known: dict[int, _Facts] = {}
        """Facts of schemas by their identity; the document holds the schemas."""

    def all(self, schemas: Sequence[Schema]) -> bool:
        """Whether no value fits two of ``schemas``; False if that is not known."""
        with suppress(_TooMuchError):
            facts = [self._facts(schema) for schema in schemas]
            if self._have_a_mark(facts):
                return True
            pairs = ((one, other) for place, one in enumerate(facts) for other in facts[:place])
            return all(self._disjoint(one, other, 0) for one, other in pairs)
        return False

    def two(self, one: Schema, other: Schema) -> bool:
        with suppress(_TooMuchError):
            return self._disjoint(self._facts(one), self._facts(other), 0)
        return False

    def _count(self, num_steps: int) -> None:
        """Raises _TooMuchError."""
        self._steps += num_steps
        if self._steps > _MAX_STEPS:
            raise _TooMuchError

    def _disjoint(self, one: _Facts, other: _Facts, depth: int) -> bool:
        self._count(1)
        if depth > _MAX_DEPTH:
            return False
        if one.values is not None and other.values is not None:
            self._count(min(len(one.values), len(other.values)) // _NAMES_A_STEP)
            if one.values.isdisjoint(other.values):
                return True
        if all(self._have_no(kind, one, other, depth) for kind in one.types & other.types):
            return True
        for mixed, plain in ((one, other), (other, one)):
            for schemas in mixed.ways:
                if all(self._disjoint(self._facts(schema), plain, depth + 1) for schema in schemas):
                    return True
        return False

    def _have_no(self, kind: str, one: _Facts, other: _Facts, depth: int) -> bool:
        """Whether no value of this type fits both."""
        match kind:
            case "number":
                return one.most < other.least or other.most < one.least
            case "string":
                return _are_apart(one.length, other.length)
            case "array":
                has_items = max(one.size[0], other.size[0]) > 0
                firsts = (self._facts(one.first_item), self._facts(other.first_item)) if has_items else None
                return _are_apart(one.size, other.size) or (firsts is not None and self._disjoint(*firsts, depth + 1))
            case "object":
                names = one.required | other.required
                self._count(len(names) // _NAMES_A_STEP)
                return any(self._clash(name, one, other, depth) for name in names)
        return False

    def _clash(self, name: str, one: _Facts, other: _Facts, depth: int) -> bool:
        """Whether no value of the property ``name`` fits both."""
        if any(facts.names is not None and name not in facts.names for facts in (one, other)):
            return True
        firsts, seconds = one.properties.get(name, ()), other.properties.get(name, ())
        return any(
            self._disjoint(self._facts(first), self._facts(second), depth + 1) for first in firsts for second in seconds
        )

    def _have_a_mark(self, facts: Sequence[_Facts]) -> bool:
        """Whether all are objects that must have a property whose value says which of them it is."""
        if len(facts) < 2 or any(one.types != {"object"} for one in facts):
            return False
        for name in facts[0].required.intersection(*(one.required for one in facts[1:])):
            known: set[str] = set()
            for one in facts:
                values = self._values(one.properties.get(name, ()))
                if not values or not known.isdisjoint(values):
                    break
                known |= values
            else:
                return True
        return False

    def _values(self, schemas: Sequence[Schema]) -> frozenset[str]:
        """Values of which what fits all of ``schemas`` is one, as JSON; empty: they are not known."""
        for schema in schemas:
            if values := self._facts(schema).values:
                self._count(len(values) // _NAMES_A_STEP)
                return values
        return frozenset()

    # --- facts ------------------------------------------------------------------------------------------------------

    def _facts(self, schema: Schema) -> _Facts:
        if id(schema) in self._known:
            return self._known[id(schema)]
        facts = self._known[id(schema)] = _Facts()
        for part in self._parts(schema, ()):
            if part is False:
                facts.types = frozenset()
            elif isinstance(part, dict):
                _add(facts, part)
        return facts

    def _parts(self, schema: Schema, followed: tuple[str, ...]) -> Iterator[Schema]:
        """The schemas that all hold where ``schema`` does."""
        self._count(1 + num_members(schema) + _num_chars(schema) // _CHARS_A_STEP)
        yield schema
        if isinstance(schema, bool) or len(followed) > _MAX_DEPTH:
            return
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in followed:
            with suppress(SchemaError):  # (llguidance may find it, or says that it does not)
                yield from self._parts(self._document.find(reference), (*followed, reference))
        for one in schema.get("allOf", ()):
            yield from self._parts(one, (*followed, ""))


def _add(facts: _Facts, schema: dict[str, Any]) -> None:
    """Mutates ``facts``."""
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        facts.types &= {"number" if kind == "integer" else kind for kind in kinds}
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None:
        facts.types &= {kind_of(value) for value in values}
        told = frozenset(map(_told, values))
        facts.values = told if facts.values is None else facts.values & told
    facts.required |= {*schema.get("required", ())}
    properties = schema.get("properties", {})
    for name, one in properties.items():
        facts.properties.setdefault(name, []).append(one)
    if schema.get("additionalProperties") is False and not schema.get("patternProperties"):
        names = frozenset(properties)
        facts.names = names if facts.names is None else facts.names & names
    least = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    most = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    facts.least, facts.most = max(facts.least, least), min(facts.most, most)
    facts.length = _narrowed(facts.length, schema.get("minLength", 0), schema.get("maxLength", math.inf))
    facts.size = _narrowed(facts.size, schema.get("minItems", 0), schema.get("maxItems", math.inf))
    first = (schema.get("prefixItems") or [schema.get("items", True)])[0]
    if facts.first_item is True:
        facts.first_item = first
    facts.ways += [schema[keyword] for keyword in ("anyOf", "oneOf") if keyword in schema]


def _num_chars(schema: Schema) -> int:
    """The length of what is not said in schemas."""
    if isinstance(schema, bool):
        return 0
    return sum(len(json.dumps(schema[keyword])) for keyword in ("$ref", "const", "enum") if keyword in schema)


def _narrowed(bounds: tuple[float, float], least: float, most: float) -> tuple[float, float]:
    return max(bounds[0], least), min(bounds[1], most)


def _are_apart(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[1] < other[0] or other[1] < one[0]


def _told(value: Any) -> str:
    """JSON that is equal for equal values, such as 1 and 1.0."""
    return json.dumps(_canonical(value), sort_keys=True)


def _canonical(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_canonical(one) for one in value]
    return {name: _canonical(one) for name, one in value.items()} if isinstance(value, dict) else value
