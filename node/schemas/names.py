"""What ``propertyNames`` says of the names of an object: which they are, or how they look."""

import re
from collections.abc import Callable
from typing import Any

from mycelia.node.schemas.document import Document, Schema, not_enforced
from mycelia.node.schemas.negation import MAX_SQUARES, excluding_texts, squares_of
from mycelia.node.schemas.texts import PATTERNS, of_format, of_pattern

_MAX_DEPTH = 8


def texts_of(
    schema: Schema, document: Document, count: Callable[[int], None], only_texts: bool = True, depth: int = 0
) -> list[Any] | None:
    """All values that fit ``schema``; None: they are not listed. count: is told the steps that this takes; may raise,
    since references may multiply the values. only_texts: values of other types are left out."""
    count(1)
    if isinstance(schema, bool) or depth > _MAX_DEPTH:
        return [] if schema is False else None
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        keywords = {*schema} - {"const", "enum", "type"}
        if keywords:
            return None
        count(len(values))
        return [value for value in values if isinstance(value, str) or not only_texts]
    if "$ref" in schema and {*schema} <= {"$ref", "type"}:
        return texts_of(document.find(schema["$ref"]), document, count, only_texts, depth + 1)
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema and {*schema} <= {keyword, "type"}:
            found = [texts_of(one, document, count, only_texts, depth + 1) for one in schema[keyword]]
            lists = [one for one in found if one is not None]
            return [value for values in lists for value in values] if len(lists) == len(found) else None
    if schema.get("type") == "boolean" and not only_texts:
        return [False, True]
    return None


def pattern_of_names(schema: Schema, document: Document, count: Callable[[int], None], depth: int = 0) -> str | None:
    """A pattern of the texts that fit ``schema``; None: all texts do. count: see ``texts_of``. Raises SchemaError when
    there is none."""
    if isinstance(schema, bool):
        return None if schema else "^(?:[^\\x00-\\x{10ffff}])$"
    if "$ref" in schema and {*schema} <= {"$ref", "type"} and depth <= _MAX_DEPTH:
        return pattern_of_names(document.find(schema["$ref"]), document, count, depth + 1)
    kinds = schema.get("type", "string")
    keywords = {*schema} - {"type"}
    if kinds != "string":
        raise not_enforced("propertyNames", "with such a schema")
    if not keywords or (keywords == {"format"} and of_format(schema["format"]) == {}):
        return None
    if keywords <= {"minLength", "maxLength"}:
        return f"^(?s:.{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}})$"
    if keywords == {"pattern"} or (keywords == {"minLength", "pattern"} and _needs_a_character(schema)):
        count(len(schema["pattern"]) // 64)
        said = of_pattern(schema["pattern"])
        if {*said} == {"pattern"}:
            return str(said["pattern"])
    if keywords == {"format"} and schema["format"] in PATTERNS:
        return PATTERNS[schema["format"]]
    if keywords == {"not"} and (texts := texts_of(schema["not"], document, count)) is not None:
        if (squares := squares_of({*texts})) <= MAX_SQUARES:
            count(squares // 16)
            return f"^(?:{excluding_texts(texts)})$"
    raise not_enforced("propertyNames", "with such a schema")


def _needs_a_character(schema: dict[str, Any]) -> bool:
    """Whether a text that fits the pattern cannot be empty, which is all that ``minLength`` wants."""
    pattern = schema["pattern"]
    return (
        schema["minLength"] <= 1 and isinstance(pattern, str) and pattern.startswith("^[") and pattern.endswith("]+$")
    )


def matches_name(pattern: str, name: str) -> bool:
    """Whether a property's name fits a pattern. Raises SchemaError for a pattern that may take long."""
    if len(pattern) > 200 or "(" in pattern or re.search(r"[*+?}].*[*+?{]", pattern):
        raise not_enforced("propertyNames", "with such a pattern beside named properties")
    return re.search(pattern, name) is not None
