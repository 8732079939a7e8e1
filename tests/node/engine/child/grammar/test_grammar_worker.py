"""Grammars made from JSON schemas, in the process of a grammar."""

import json

import pytest

from mycelia.node.engine.child.grammar.grammar_worker import schema_to_gbnf


@pytest.mark.parametrize("pattern", ["^a}$", "^a]$", "^[a-z]+(\\s[A-Z]{1}3})?$", "^a-z]+$"])
def test_a_bracket_that_closes_nothing_is_a_literal(pattern: str) -> None:
    grammar = schema_to_gbnf(json.dumps({"type": "string", "pattern": pattern}))
    assert "root ::=" in grammar and ("}" in grammar or "]" in grammar)


def test_brackets_that_close_something_stay() -> None:
    grammar = schema_to_gbnf(json.dumps({"type": "string", "pattern": r"^[\]}]{2}\}$"}))
    assert r"root-1 ::= [\]}]" in grammar and 'root-1 root-1 "}"' in grammar
