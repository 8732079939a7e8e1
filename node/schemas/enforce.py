"""Which schema llguidance gets for a client's schema: of the same values, with the keywords that it enforces.

llguidance has no ``not``, ``if``, ``contains``, ``unevaluatedProperties`` and others. Most of what people say with
them can be said with the rest. Where it cannot be said exactly, the new schema has fewer values: an answer always fits
the client's schema. What cannot be said at all is refused by the keyword's name, never dropped.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from mycelia.node.schemas.disjoint import Disjoint
from mycelia.node.schemas.document import Document, Schema, SchemaError, not_enforced, num_members
from mycelia.node.schemas.names import matches_name, pattern_of_names, texts_of
from mycelia.node.schemas.negation import Negation, all_of, any_of, item_at, squares_of, with_item
from mycelia.node.schemas.seen import COPIED_A_STEP, Branch, Seen, product, seen_of
from mycelia.node.schemas.texts import LARGEST_INTEGER, of_format, of_pattern

MAX_CONTAINS = 3
MAX_STEPS = 30_000
"""Schemas made from one: as many as fit into the longest text, and some. Each takes about 10 microseconds."""
MAX_NESTED = 120
MAX_UNIQUE = 5
"""Values whose sets are told one by one."""
_SQUARES_A_STEP = 2_048
"""Squared characters in which a pattern is looked for in the time of a step."""
_OWN = frozenset(
    {
        *("additionalProperties", "items", "patternProperties", "prefixItems", "properties"),
        *("const", "enum", "format", "pattern", "required", "type", "maxItems", "maxLength", "maxProperties"),
        *("minItems", "minLength", "minProperties", "exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum"),
        "multipleOf",
    }
)
"""Keywords that llguidance enforces, and which schemas in other places do not change."""
_NAMES = ("$anchor", "$defs", "$id", "definitions")


def enforceable(text: str, expands_one_of: bool = False) -> Schema:
    """The schema that llguidance gets for the schema ``text``. expands_one_of: for what llguidance cannot prove to be
    disjoint. Raises SchemaError."""
    try:
        document = Document(_read(text))
        return _Enforcer(document, expands_one_of).of(document.root)
    except RecursionError as exc:
        raise SchemaError("the JSON schema is nested too deep") from exc
    except SchemaError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as exc:
        # (a value of the wrong kind: "required": 5)
        raise SchemaError(f"the JSON schema is invalid: {str(exc)[:100]}") from exc


def _read(text: str) -> object:
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError as exc:
        raise SchemaError(f"the JSON schema is no JSON: {exc}") from exc


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


class _Enforcer:
    def __init__(self, document: Document, expands_one_of: bool) -> None:
        self._document = document
        self._not = Negation(document)
        self._disjoint = Disjoint(document)
        self._expands_one_of = expands_one_of
        self._depth = self._steps = 0
        self._pointers: dict[str, str] | None = None
        """Anchor -> where it stands."""

    def of(self, schema: Schema) -> Schema:
        if isinstance(schema, bool):
            return schema
        self._depth += 1
        self._count_look(schema)
        try:
            return self._of(schema)
        finally:
            self._depth -= 1

    def _count(self, num_steps: int = 1) -> None:
        """Raises SchemaError when it is too much."""
        self._steps += num_steps
        if self._depth > MAX_NESTED or self._steps > MAX_STEPS:
            raise SchemaError("the JSON schema is nested too deep, or its parts apply together in too many ways")

    def _count_look(self, schema: Schema) -> None:
        self._count(1 + num_members(schema) // COPIED_A_STEP)

    def _of(self, schema: dict[str, Any]) -> Schema:
        schema = _with_plain_rest(schema)
        kept: dict[str, Any] = {}
        more: list[Schema] = []
        for keyword, value in schema.items():
            if isinstance(value, str):
                self._count(len(value) // COPIED_A_STEP)
            if keyword in ("properties", "patternProperties", "$defs", "definitions"):
                kept[keyword] = {name: self.of(one) for name, one in value.items()}
            elif keyword in ("allOf", "anyOf", "prefixItems"):
                kept[keyword] = [self.of(one) for one in value]
            elif keyword in ("items", "additionalProperties"):
                kept[keyword] = self.of(value)
            elif keyword == "minProperties" and value > 1:
                # A name may come twice and counts twice then.
                if len({*schema.get("required", ())}) < value:
                    raise not_enforced(keyword, "above 1, except by what is required")
            elif keyword in ("format", "pattern"):
                more += self._text(keyword, value, schema, kept)
            elif keyword in _BOUNDS:
                kept[keyword] = _bound(keyword, value, schema.get("type"))
            elif keyword == "$ref" and isinstance(value, str):
                kept[keyword] = quote(value, safe="/#%!$&'()*+,;=:@?~")
            elif keyword in _OWN or keyword in ("$ref", "$id", "$anchor"):
                kept[keyword] = value
            else:
                more += self._more(keyword, value, schema)
        if not more:
            return kept
        self._count(len(more))
        names = {name: kept.pop(name) for name in _NAMES if name in kept}
        if not _UNEVALUATED.isdisjoint(schema):
            kept = {}  # (it is in each branch)
            more = [one for keyword in _UNEVALUATED & {*schema} for one in self._more(keyword, schema[keyword], schema)]
        whole = all_of([kept or True, *more])
        return {**names, "allOf": [whole]} if names else whole

    def _text(self, keyword: str, value: Any, schema: dict[str, Any], kept: dict[str, Any]) -> list[Schema]:
        """What a format or a pattern means: put into ``kept`` where that has room for it, else returned."""
        said = of_format(value) if keyword == "format" else of_pattern(value)
        if said is None:
            kept[keyword] = value
        elif said.keys().isdisjoint({*schema} - {keyword}):
            kept |= said
        else:
            return [said]
        return []

    def _more(self, keyword: str, value: Any, schema: dict[str, Any]) -> list[Schema]:
        """What a keyword means that llguidance does not have. Raises SchemaError."""
        match keyword:
            case "$dynamicAnchor":
                return []
            case "$dynamicRef":
                self._document.find(value)
                return [self.of(self._followed(value))]
            case "not":
                return [self._negated("not", value)]
            case "oneOf":
                if self._disjoint.all(value):
                    return [any_of([self.of(one) for one in value])]
                if not self._expands_one_of:
                    return [{"oneOf": [self.of(one) for one in value]}]
                return [any_of([all_of(conjuncts) for conjuncts in self._one_of(value)])]
            case "if":
                return [any_of([all_of(conjuncts) for conjuncts in self._if(schema)])]
            case "then" | "else":
                return []
            case "dependentRequired":
                return [
                    any_of([{"properties": {name: False}}, {"required": [name, *others]}])
                    for name, others in value.items()
                    if others
                ]
            case "dependentSchemas":
                return [any_of([{"properties": {name: False}}, self.of(one)]) for name, one in value.items()]
            case "propertyNames":
                return [self._names(value, schema)]
            case "uniqueItems" if value is False or schema.get("maxItems", 2) <= 1:
                return []
            case "uniqueItems":
                return [self._unique(schema)]
            case "contains":
                return [self._contains(value, schema.get("minContains", 1), schema.get("maxContains"))]
            case "minContains" | "maxContains":
                return []
            case "unevaluatedProperties" | "unevaluatedItems":
                return [self._unevaluated(keyword, value, schema)]
        raise not_enforced(keyword)

    def _followed(self, reference: str) -> Schema:
        # A dynamic reference is an ordinary one where its anchor stands once.
        return {"$ref": reference if reference.startswith("#/") or reference == "#" else self._pointer(reference[1:])}

    def _pointer(self, anchor: str) -> str:
        if self._pointers is None:
            self._pointers = dict(reversed([*_pointers(self._document.root, "#")]))
        if anchor not in self._pointers:
            raise not_enforced("$dynamicRef")
        return self._pointers[anchor]

    def _negated(self, keyword: str, schema: Schema) -> Schema:
        """Raises SchemaError when nothing is known to be excluded by ``schema``, but something may be."""
        negated = self._not.of(schema)
        if negated is False and schema is not True and schema != {}:
            raise not_enforced(keyword, "with such a schema")
        return self.of(negated)

    def _one_of(self, schemas: Sequence[Schema]) -> list[list[Schema]]:
        ways = []
        for place, one in enumerate(schemas):
            others = [*self._without_others(schemas, place)]
            ways.append([self.of(one), *map(self.of, others)])
        if self._not.loses_fractions or (schemas and all(all_of(way) is False for way in ways)):
            raise not_enforced("oneOf", "with such schemas")
        return ways

    def _without_others(self, schemas: Sequence[Schema], place: int) -> Iterator[Schema]:
        """What values of this one of ``schemas`` must also keep to be values of no other one."""
        for at, other in enumerate(schemas):
            if at != place and not self._disjoint.two(schemas[place], other):
                yield self._not.of(other)

    def _unique(self, schema: dict[str, Any]) -> Schema:
        """Lists of a few values, each at most once and in the order of the schema."""
        values = texts_of(schema.get("items", True), self._document, self._count, only_texts=False)
        if values is None or len(values) > MAX_UNIQUE or "prefixItems" in schema:
            raise not_enforced("uniqueItems")
        subsets = [chosen for size in range(len(values) + 1) for chosen in itertools.combinations(values, size)]
        lists: list[Schema] = [
            {"prefixItems": [{"const": value} for value in chosen], "items": False, "minItems": len(chosen)}
            for chosen in subsets
        ]
        self._steps += len(lists)
        return any_of([{"type": [*_OTHERS["array"]]}, all_of([{"type": "array"}, any_of(lists)])])

    def _if(self, schema: dict[str, Any]) -> list[list[Schema]]:
        if "then" not in schema and "else" not in schema:
            return [[True]]
        condition = schema["if"]
        return [
            [self.of(condition), self.of(schema.get("then", True))],
            [self._negated("if", condition), self.of(schema.get("else", True))],
        ]

    def _contains(self, schema: Schema, least: int, most: int | None) -> Schema:
        for keyword, count in (("minContains", least), ("maxContains", most or 0)):
            if not (isinstance(count, int) and 0 <= count <= MAX_CONTAINS):
                raise not_enforced(keyword, f"above {MAX_CONTAINS}")
        item, parts = self.of(schema), list[Schema]()
        if least == 1:
            parts.append(with_item(item))
        elif least > 1:
            places = itertools.combinations(range(least + 2), least)
            parts.append(any_of([all_of([item_at(place, item) for place in chosen]) for chosen in places]))
        if most is not None:
            other = self._negated("maxContains", schema)
            ways: list[Schema] = [{"items": other}]
            for count in range(1, most + 1):
                for chosen in itertools.combinations(range(most + 2), count):
                    prefix = [item if place in chosen else other for place in range(chosen[-1] + 1)]
                    ways.append({"prefixItems": prefix, "items": other})
            self._steps += len(ways)
            parts.append(any_of(ways))
        return any_of([{"type": [*_OTHERS["array"]]}, all_of([{"type": "array"}, *parts])])

    def _names(self, schema: Schema, whole: dict[str, Any]) -> Schema:
        """The constraint by ``propertyNames``."""
        texts = texts_of(schema, self._document, self._count)
        if texts is not None:
            return {"properties": dict.fromkeys(texts, True), "additionalProperties": False}
        if schema in ({"minLength": 1}, {"minLength": 1, "type": "string"}):
            return {"properties": {"": False}}
        pattern = pattern_of_names(schema, self._document, self._count)
        if pattern is None:
            return True
        known = [*whole.get("properties", {}), *whole.get("required", [])]
        self._count(len(known) // 8 + squares_of(known) // _SQUARES_A_STEP)
        refused = [name for name in known if not matches_name(pattern, name)]
        return {
            "properties": dict.fromkeys(refused, False),
            "patternProperties": {pattern: True},
            "additionalProperties": False,
        }

    # --- unevaluated properties and items ---------------------------------------------------------------------------

    def _unevaluated(self, keyword: str, value: Schema, schema: dict[str, Any]) -> Schema:
        rest = {name: one for name, one in schema.items() if name not in ("unevaluatedProperties", "unevaluatedItems")}
        ways = []
        for conjuncts, seen in self._branches(rest, ()):
            is_needed = keyword == "unevaluatedItems" and not seen.all_items
            contained = [self.of(one) for one in seen.contained] if is_needed else []
            ways.append(all_of([*conjuncts, seen.rest(keyword, self.of(value), contained)]))
        return any_of(ways)

    def _branches(self, schema: Schema, followed: tuple[str, ...]) -> list[Branch]:
        """The ways to apply a schema in its place."""
        self._count_look(schema)
        if isinstance(schema, bool):
            return [([schema], Seen())]
        own = {keyword: value for keyword, value in schema.items() if keyword in _OWN}
        ways: list[list[Branch]] = [[([self.of(own)] if own else [], seen_of(schema))]]
        for keyword, value in schema.items():
            match keyword:
                case "allOf":
                    ways += [self._branches(one, followed) for one in value]
                case "anyOf":
                    ways.append(self._some(value, followed))
                case "oneOf":
                    ways.append(self._exactly_one(value, followed))
                case "if":
                    ways.append(self._conditional(schema, followed))
                case "dependentSchemas":
                    for name, one in value.items():
                        without: Branch = ([{"properties": {name: False}}], Seen())
                        there = [([{"required": [name]}, *held], seen) for held, seen in self._branches(one, followed)]
                        ways.append([without, *there])
                case "$ref" | "$dynamicRef":
                    if value in followed:
                        raise not_enforced("unevaluatedProperties", "in a circle of references")
                    ways.append(self._branches(self._document.find(value), (*followed, value)))
                case "unevaluatedProperties" | "unevaluatedItems":
                    nested = {name: one for name, one in schema.items() if name not in _NAMES}
                    seen = Seen(all_names=True) if keyword == "unevaluatedProperties" else Seen(all_items=True)
                    ways.append([([self.of(nested)], seen)])
                case _ if keyword not in _OWN and keyword not in _NAMES:
                    more = self._more(keyword, value, schema)
                    ways.append([(more, Seen())])
        return product(ways, self._count)

    def _some(self, schemas: Sequence[Schema], followed: tuple[str, ...]) -> list[Branch]:
        """One or more of ``schemas`` apply: with more of them, more is evaluated."""
        each = [self._branches(one, followed) for one in schemas]
        sizes = range(1, len(each) + 1) if len(each) <= 4 else (1,)
        return [
            branch
            for size in sizes
            for chosen in itertools.combinations(each, size)
            for branch in product([*chosen], self._count)
        ]

    def _exactly_one(self, schemas: Sequence[Schema], followed: tuple[str, ...]) -> list[Branch]:
        found: list[Branch] = []
        for place, one in enumerate(schemas):
            others = [*map(self.of, self._without_others(schemas, place))]
            found += [([*held, *others], seen) for held, seen in self._branches(one, followed)]
        return found

    def _conditional(self, schema: dict[str, Any], followed: tuple[str, ...]) -> list[Branch]:
        condition, otherwise = self._branches(schema["if"], followed), self._not.of(schema["if"])
        then, other = (self._branches(schema.get(name, True), followed) for name in ("then", "else"))
        return [
            *product([condition, then], self._count),
            *product([[([self.of(otherwise)], Seen())], other], self._count),
        ]


_BOUNDS = frozenset({"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum"})
_LARGEST = {"integer": LARGEST_INTEGER, "number": 10**15}


def _bound(keyword: str, value: Any, kind: Any) -> Any:
    """A bound that llguidance keeps: one of larger numbers is narrowed. kind: the type in the schema. Raises
    SchemaError for a bound that only larger numbers meet."""
    largest = _LARGEST["integer" if kind == "integer" else "number"]
    if not isinstance(value, int | float) or abs(value) <= largest:
        return value
    if (value > 0) is keyword.endswith("inimum"):
        raise not_enforced(keyword, f"beyond {largest}")
    return largest if value > 0 else -largest


def _with_plain_rest(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema`` with the ordinary keywords instead of ``unevaluated...``, where both mean the same."""
    if _UNEVALUATED.isdisjoint(schema) or not _IN_PLACE.isdisjoint(schema):
        return schema
    kept = {**schema}
    for unevaluated, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if unevaluated in kept and not (plain == "items" and "contains" in kept):
            value = kept.pop(unevaluated)
            kept.setdefault(plain, value)
    return kept


_UNEVALUATED = frozenset({"unevaluatedItems", "unevaluatedProperties"})
_IN_PLACE = frozenset({"$dynamicRef", "$ref", "allOf", "anyOf", "dependentSchemas", "if", "oneOf"})
"""Keywords with schemas for the same value."""

_OTHERS = {"array": ("null", "boolean", "number", "string", "object")}


def _pointers(schema: Any, place: str) -> Iterator[tuple[str, str]]:
    """(anchor, where it stands) of all anchors."""
    if isinstance(schema, dict):
        for keyword in ("$dynamicAnchor", "$anchor"):
            if keyword in schema:
                yield str(schema[keyword]), place
        for name, one in schema.items():
            yield from _pointers(one, f"{place}/{name.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(schema, list):
        for number, one in enumerate(schema):
            yield from _pointers(one, f"{place}/{number}")
