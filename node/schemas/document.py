"""A JSON schema as a document: its references, and the keywords that it may have."""

import re
from typing import Any
from urllib.parse import unquote

Schema = dict[str, Any] | bool

MAX_DEPTH = 60
"""The number of schemas in each other. Each takes two levels of the 127 that llguidance reads."""
MAX_LEAST = 1_000_000
"""What a text, a list or an object must have at least, at most: no answer is longer."""
ONE = frozenset(
    {
        *("additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then"),
        *("unevaluatedItems", "unevaluatedProperties"),
    }
)
"""Keywords with a schema."""
LIST = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
"""Keywords with a list of schemas."""
MAP = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keywords with an object of schemas."""
PLAIN = frozenset(
    {
        *("$anchor", "$dynamicAnchor", "$dynamicRef", "$id", "$ref", "const", "dependentRequired", "enum"),
        *("exclusiveMaximum", "exclusiveMinimum", "format", "maximum", "minimum", "multipleOf", "pattern", "required"),
        *("maxContains", "maxItems", "maxLength", "maxProperties", "type", "uniqueItems"),
        *("minContains", "minItems", "minLength", "minProperties"),
    }
)
"""Other keywords."""
COUNTS = frozenset(name for name in PLAIN if name[:3] in ("min", "max") and name not in ("minimum", "maximum"))
NOTES = frozenset(
    {
        *("$comment", "$vocabulary", "contentEncoding", "contentMediaType", "contentSchema", "default", "deprecated"),
        *("description", "discriminator", "example", "examples", "externalDocs", "readOnly", "title", "writeOnly"),
        *("allowComments", "allowTrailingCommas", "defaultSnippets", "deprecationMessage", "doNotSuggest", "enumNames"),
        *("enumDescriptions", "errorMessage", "id", "javaType", "links", "markdownDescription", "media", "options"),
        *("markdownEnumDescriptions", "order", "propertyOrder", "propertyOrdering", "tsEnumNames", "tsType", "xml"),
    }
)
"""Keywords that constrain nothing: of JSON schema, OpenAPI, editors, generators of forms and of code."""
_NOTE_PREFIXES = ("x-", "ui:", "$$")


class SchemaError(ValueError):
    """The schema is invalid, or has a keyword that is not enforced. One line."""


def not_enforced(keyword: str, why: str = "here") -> SchemaError:
    return SchemaError(f"the keyword {keyword[:64]!r} of the JSON schema is not enforced {why}")


def _of_today(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema object of an older draft, or of OpenAPI 3.0, in the words of draft 2020-12. Raises SchemaError for one
    of another kind."""
    kept = {**schema}
    draft = kept.pop("$schema", None)
    if draft is not None and not (isinstance(draft, str) and _DRAFT.fullmatch(draft)):
        raise SchemaError(f"the JSON schema is of an unknown kind: {str(draft)[:100]}")
    rest = kept.pop("additionalItems", None)
    if isinstance(kept.get("items"), list):
        kept["prefixItems"] = kept.pop("items")
        if rest is not None:
            kept["items"] = rest
    for name, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(kept.get(name), bool) and kept.pop(name) and bound in kept:
            kept[name] = kept.pop(bound)
    needed = _of_kind("dependencies", kept.pop("dependencies", {}), dict)
    for kind, is_list in (("dependentRequired", True), ("dependentSchemas", False)):
        if of_kind := {name: one for name, one in needed.items() if isinstance(one, list) is is_list}:
            kept[kind] = {**kept.get(kind, {}), **of_kind}
    properties = kept.get("properties")
    if isinstance(properties, dict):
        kept |= _of_draft_3(properties, kept.get("required", []))
    if kept.pop("nullable", False) is True and isinstance(kept.get("type"), str):
        kept["type"] = [kept["type"], "null"]
    return kept


def _of_draft_3(properties: dict[str, Any], required: Any) -> dict[str, Any]:
    """Properties that say of themselves whether they are required, in the words of today."""
    said = {
        name: one["required"]
        for name, one in properties.items()
        if isinstance(one, dict) and isinstance(one.get("required"), bool)
    }
    if not said:
        return {}
    others = {
        name: {keyword: value for keyword, value in one.items() if keyword != "required"} if name in said else one
        for name, one in properties.items()
    }
    return {"properties": others, "required": [*required, *(name for name in said if said[name])]}


_DRAFT = re.compile(r"https?://json-schema\.org/(draft/20(19-09|20-12)|draft-0[4-7])/schema#?")


class Document:
    """A schema whose references can be followed, without remarks and with whole counts. Callers see no change of it."""

    def __init__(self, schema: object) -> None:
        """Raises SchemaError for what is no schema, and for unknown keywords."""
        self._anchors: dict[str, list[Schema]] = {}
        self._ids = 0
        self._found: dict[str, Schema] = {}
        """What was found by a reference, which may be long and followed thousands of times."""
        self.root = self._read(schema, 0)

    def _read(self, schema: object, depth: int) -> Schema:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise SchemaError("a JSON schema is an object, true or false")
        if depth > MAX_DEPTH:
            raise SchemaError("the JSON schema is nested too deep")
        kept: dict[str, Any] = {}
        for keyword, value in _of_today(schema).items():
            if keyword in ONE:
                kept[keyword] = self._read(value, depth + 1)
            elif keyword in LIST:
                kept[keyword] = [self._read(one, depth + 1) for one in _of_kind(keyword, value, list)]
            elif keyword in MAP:
                schemas = _of_kind(keyword, value, dict)
                kept[keyword] = {name: self._read(one, depth + 1) for name, one in schemas.items()}
            elif keyword == "required":
                kept[keyword] = _of_kind(keyword, value, list)
                if not all(isinstance(name, str) for name in value):
                    raise SchemaError("'required' of the JSON schema has something that is no name")
            elif keyword in COUNTS and type(value) in (int, float) and value == value // 1:
                if keyword.startswith("min") and value > MAX_LEAST:
                    raise not_enforced(keyword, f"above {MAX_LEAST}")
                kept[keyword] = int(value)
            elif keyword in PLAIN:
                kept[keyword] = value
            elif not (keyword in NOTES or keyword.startswith(_NOTE_PREFIXES)):
                raise not_enforced(keyword)
        self._ids += "$id" in kept
        for keyword in ("$anchor", "$dynamicAnchor"):
            if keyword in kept:
                self._anchors.setdefault(str(kept[keyword]), []).append(kept)
        return kept

    @property
    def is_one_resource(self) -> bool:
        """Whether all references are relative to the root."""
        return self._ids == 0 or (self._ids == 1 and isinstance(self.root, dict) and "$id" in self.root)

    def find(self, reference: object) -> Schema:
        """The schema that a reference within the document means. Raises SchemaError."""
        if not isinstance(reference, str) or not reference.startswith("#") or not self.is_one_resource:
            raise SchemaError(f"the reference {str(reference)[:100]!r} cannot be followed here")
        if reference not in self._found:
            self._found[reference] = self._look_up(reference)
        return self._found[reference]

    def _look_up(self, reference: str) -> Schema:
        """Raises SchemaError."""
        if not reference.startswith("#/"):
            found = [self.root] if reference == "#" else self._anchors.get(reference[1:], [])
            if len(found) != 1:
                raise SchemaError(f"the reference {reference[:100]!r} means no schema, or several")
            return found[0]
        place: Any = self.root
        for part in reference[2:].split("/"):
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(place, list) and name.isascii() and name.isdigit() and int(name) < len(place):
                place = place[int(name)]
            elif isinstance(place, dict) and name in place:
                place = place[name]
            else:
                raise SchemaError(f"the reference {reference[:100]!r} means no schema")
        if not isinstance(place, dict | bool):
            raise SchemaError(f"the reference {reference[:100]!r} means no schema")
        return place


def num_members(schema: Schema) -> int:
    """How many members the lists and objects directly in a schema of a document have: the work of a look at it."""
    if isinstance(schema, bool):
        return 0
    num_needed = sum(map(len, schema.get("dependentRequired", {}).values()))
    return num_needed + sum(len(value) for value in schema.values() if isinstance(value, dict | list))


def _of_kind(keyword: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise SchemaError(f"{keyword!r} of the JSON schema has no {kind.__name__}")
    return value
