"""Hostile grammars of every kind, as the process that reads grammars gets them: llguidance's form or a GrammarError. In
a node that process may die of them, under limits; here a check's limits hold."""

import json
import random

from mycelia.node.engine.child.grammar.checker import read
from mycelia.node.engine.child.grammar.guidance import GrammarError
from tests.fuzz.mutate import spoil_bytes
from tests.fuzz.odd_json import odd_json

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20, "pattern": "^[a-z]+(\\s[A-Z]{1,3})?$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150, "multipleOf": 3},
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
    {"type": "object", "additionalProperties": {"type": "string", "format": "uuid"}, "minProperties": 1},
    {"if": {"properties": {"a": {"const": 1}}}, "then": {"required": ["b"]}, "else": {"not": {"type": "object"}}},
    {"oneOf": [{"type": "integer"}, {"minimum": 2}], "unevaluatedProperties": False, "dependentRequired": {"a": ["b"]}},
    {"contains": {"type": "string"}, "minContains": 2, "uniqueItems": True, "unevaluatedItems": False},
    {"patternProperties": {"^a": {"type": "string"}}, "propertyNames": {"maxLength": 3}},
    {"type": "object"},
)
_TEXTS = (
    ("gbnf", 'root ::= "yes" | [a-z]{2,3} item* # note\nitem ::= ("\\u00e9" | "(" root ")" | .)+ [^\\n\\]-]?\n'),
    ("gbnf", 'root ::= root "x" | <think> \'\n'),
    ("regex", r"(?i)(a|b\d+)*[^\w/\]]{2,5}(?:x?)$"),
    ("regex", r"\p{L}{1,20}\x{e9}&&[a--b]"),
    ("lark", 'start: a | B\na[lazy]: /x.*y/ "z"~2..3\nB: /[0-9]+/ & ~/12/\n%ignore / /\n'),
    ("lark", 'start: %json {"type": "integer", "minimum": 3} <[5-9]> x::0\nx::_: "a" x::incr(_) | ""\n'),
)


class Schema:
    """The grammar of an Ask or Generate: (kind, text)."""

    name = "schema"

    def __init__(self) -> None:
        from llguidance import LLTokenizer

        self._tokenizer = LLTokenizer("byte")

    def make(self, rng: random.Random) -> str:
        if rng.random() < 0.6:
            return json.dumps(["json_schema", odd_json(rng.choice(_SCHEMAS), rng)])
        kind, text = rng.choice(_TEXTS)
        return json.dumps([kind, spoil_bytes(text.encode(), rng).decode("utf-8", "replace")])

    def check(self, item: str) -> bool:
        kind, text = json.loads(item)
        try:
            made = read(self._tokenizer, kind, text)
        except GrammarError as exc:
            error = str(exc)
        else:
            assert made
            return True
        assert error and "\n" not in error
        return False
