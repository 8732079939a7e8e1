"""Hostile JSON schemas for ``schema_to_gbnf``: a grammar or a GrammarError. In a node it runs in a process that may die
of it, under limits; here a check's limits hold."""

import random

from mycelia.node.engine.child.grammar.grammar import GrammarError
from mycelia.node.engine.child.grammar.grammar_worker import schema_to_gbnf
from tests.fuzz.odd_json import odd_json

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20, "pattern": "^[a-z]+(\\s[A-Z]{1,3})?$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mail": {"type": ["string", "null"], "format": "date-time"},
        "tags": {"type": "array", "items": {"enum": ["a", 1, None, 'q"\\']}, "minItems": 1, "maxItems": 5},
    },
    "required": ["name"],
    "additionalProperties": False,
}
_SCHEMAS = (
    _PERSON,
    {"anyOf": [_PERSON, {"type": "array", "prefixItems": [{"const": 1}, {"type": "boolean"}]}]},
    {"$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "number"}}}, {"properties": {"b": {}}}]},
    {"type": "object", "additionalProperties": {"type": "string", "format": "uuid"}},
    {"type": "object"},
)


class Schema:
    """The grammar of an Ask or Generate, of kind json_schema."""

    name = "schema"

    def make(self, rng: random.Random) -> str:
        return odd_json(rng.choice(_SCHEMAS), rng)

    def check(self, item: str) -> bool:
        try:
            grammar = schema_to_gbnf(item)
        except GrammarError:
            return False
        assert "root ::=" in grammar
        return True
