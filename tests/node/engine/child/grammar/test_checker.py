"""The process that reads grammars first."""

import json
from collections.abc import Iterator

import pytest

from mycelia.node.engine.child.grammar import checker as checker_module
from mycelia.node.engine.child.grammar.checker import MAX_CPU_S, NO_PROCESS, Checker
from mycelia.node.engine.child.grammar.guidance import TOO_COSTLY


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    made = Checker()
    yield made
    made.close()


CHAIN = "start: A0\n" + "".join(f"A{i}:A{i + 1} A{i + 1}\n" for i in range(1_000)) + 'A1000:"x"'
PATTERNS = {"patternProperties": {f"^{number:04d}[a-z]*$": {"type": "string"} for number in range(800)}}
"""Each takes llguidance a minute or more."""


def test_a_grammar_that_takes_too_long_ends_its_process_alone(checker: Checker) -> None:
    for kind, text in (("lark", CHAIN), ("json_schema", json.dumps(PATTERNS))):
        checked = checker.check(kind, text)
        assert (checked.guidance, checked.error) == ("", TOO_COSTLY)
        assert 0 < checked.cpu_s <= MAX_CPU_S, "less if llguidance reaches a bound of its own, or of its memory, before"
    for kind, text in (("regex", "a+"), ("lark", 'start: "a"'), ("gbnf", 'root ::= "a"'), ("json_schema", "{}")):
        checked = checker.check(kind, text)
        assert checked.guidance and not checked.error and checked.cpu_s < MAX_CPU_S


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("regex", "(?=a)b", "look-around"),
        ("lark", "start: A\nA: B\nB: A", "circular"),
        ("lark", 'start: start "x"', "no text"),
        ("gbnf", "root ::= [", "line 1"),
        ("json_schema", "[1]", "an object"),
        ("json_schema", "{", "no JSON"),
    ],
)
def test_a_refusal_says_why_in_one_line(checker: Checker, kind: str, text: str, says: str) -> None:
    checked = checker.check(kind, text)
    assert says in checked.error and "\n" not in checked.error and not checked.guidance


def test_without_a_process_the_request_may_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker_module, "COMMAND", ("/nowhere/python",))
    assert Checker().check("regex", "a").error == NO_PROCESS
