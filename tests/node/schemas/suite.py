"""The official tests of JSON schema, draft 2020-12: ``python -m tests.node.schemas.suite`` prints how many are kept.

Where they are: the folder ``draft2020-12`` in the sources of the Python package jsonschema, which ``make nightly``
fetches into ``.venv/schema-suite``; or the folder that JSON_SCHEMA_SUITE names.

A schema counts as enforced if its grammar takes every valid instance of the suite, in some order of the properties and
in the canonical spelling (1.0 as 1), token for token to the end, and refuses every invalid one in every order; or if it
has no valid instance and is refused for that. Two readings of the specification: a format is checked, as it allows, so
texts that are valid only because a format is a remark need not be taken; and lists with what ``contains`` wants beyond
its first places need not be taken.
"""

import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mycelia.node.engine.child.grammar.checker import read
from mycelia.node.engine.child.grammar.guidance import GrammarError, matcher

FETCHED = Path(__file__).parents[3] / ".venv" / "schema-suite"
EMPTY = "the grammar allows no text"


class Outcome(NamedTuple):
    name: str
    """File and description."""
    kind: str
    """enforced, refused, or wrong."""
    why: str = ""


def folder() -> Path | None:
    """The suite's folder; None: not there."""
    named = os.environ.get("JSON_SCHEMA_SUITE")
    found = [Path(named)] if named else sorted(FETCHED.glob("*/json/tests/draft2020-12"))
    return found[0] if found and found[0].is_dir() else None


def outcomes(suite: Path) -> Iterator[Outcome]:
    from llguidance import LLTokenizer

    tokenizer = LLTokenizer("byte")
    for file in sorted(suite.glob("*.json")):
        for case in json.loads(file.read_text("utf-8")):
            name = f"{file.stem}: {case['description']}"
            tests = [test for test in case["tests"] if "only an annotation" not in test["description"]]
            try:
                translated = read(tokenizer, "json_schema", json.dumps(case["schema"]))
            except GrammarError as exc:
                is_empty = str(exc) == EMPTY and not any(test["valid"] for test in tests)
                yield Outcome(name, "enforced" if is_empty else "refused", str(exc))
                continue
            made = matcher(tokenizer, translated)
            wrong = [
                f"{test['description']}: {test['data']!r} is {'valid' if test['valid'] else 'invalid'}"
                for test in tests
                if accepts(made, test["data"]) != test["valid"]
            ]
            yield Outcome(name, "wrong" if wrong else "enforced", "; ".join(wrong))


def accepts(made: Any, instance: object) -> bool:
    """Whether a matcher on single bytes takes ``instance`` in some order of its properties."""
    for value in _orders(_canonical(instance)):
        try:
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError:
            text = json.dumps(value, separators=(",", ":")).encode()
        copy = made.deep_copy()
        if copy.try_consume_tokens(list(text)) == len(text) and copy.is_accepting():
            return True
    return False


def _canonical(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e16:
        return int(value)
    if isinstance(value, list):
        return [_canonical(one) for one in value]
    return {name: _canonical(one) for name, one in value.items()} if isinstance(value, dict) else value


def _orders(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for items in itertools.islice(itertools.product(*(list(_orders(one)) for one in value)), 200):
            yield list(items)
    elif isinstance(value, dict):
        for names in itertools.islice(itertools.permutations(value), 120):
            parts = itertools.product(*(list(_orders(value[name])) for name in names))
            for values in itertools.islice(parts, 50):
                yield dict(zip(names, values, strict=True))
    else:
        yield value


def main() -> None:
    suite = folder()
    if suite is None:
        raise SystemExit("the suite is not there: make nightly fetches it, or name its folder in JSON_SCHEMA_SUITE")
    found = list(outcomes(suite))
    for outcome in found:
        if outcome.kind != "enforced":
            sys.stdout.write(f"{outcome.kind} {outcome.name} | {outcome.why}\n")
    counts = Counter(outcome.kind for outcome in found)
    share = counts["enforced"] / counts.total()
    sys.stdout.write(f"{counts.total()} schemas: {dict(counts)}; enforced {share:.1%}\n")


if __name__ == "__main__":
    main()
