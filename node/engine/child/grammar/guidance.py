"""Grammars as llguidance reads them, and its bounds: for the engine, and for the process that reads grammars first."""

import json
from typing import Any

from mycelia.node.engine.child.grammar.gbnf import GbnfError, lark_of_gbnf
from mycelia.node.schemas.document import SchemaError
from mycelia.node.schemas.enforce import enforceable

LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "max_grammar_size": 100_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 20_000,
    "precompute_large_lexemes": False,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "verbose_errors": False,
}
"""Bounds of llguidance. A row of 2,000 items is an object with 500 optional properties. A state takes 1 to 2 kB.
Without ``precompute_large_lexemes`` the vocabulary does not matter for the time that it takes to read a grammar."""
STACK_BYTES = 128 * 1024 * 1024
"""For the threads that call llguidance: chains of rules recurse. Measured: the longest chains that fit into a grammar
take 20 MB. Only what is used takes memory."""
TOO_COSTLY = "the grammar is too large, too deep or too ambiguous"
_COSTLY_WORDS = ("too large", "too many", "too big", "too complex", "too deep", "fuel", "limit", "max is", "TooComplex")
_EMPTY_WORDS = ("NoExtension", "no error message", "Unsatisfiable")

ONE_OF = "oneOf"
"""The keyword that is tried in another way, where llguidance cannot prove that its schemas are disjoint."""


class GrammarError(Exception):
    """The grammar is invalid, too costly, or allows no token: the fault of the request. One line."""


def guidance(kind: str, text: str, expands_one_of: bool = False) -> str:
    """A grammar in llguidance's own form. expands_one_of: see ``enforceable``. Raises GrammarError."""
    from llguidance import LLMatcher

    try:
        match kind:
            case "json_schema":
                return json.dumps({"grammars": [{"json_schema": enforceable(text, expands_one_of)}]})
            case "regex":
                return str(LLMatcher.grammar_from_regex(text))
            case "lark":
                return str(LLMatcher.grammar_from_lark(text))
            case _:
                return str(LLMatcher.grammar_from_lark(lark_of_gbnf(text)))
    except (SchemaError, GbnfError) as exc:
        raise GrammarError(f"the grammar cannot be used: {exc}") from exc


def matcher(tokenizer: Any, text: str) -> Any:
    """An LLMatcher at the beginning of ``text``, a grammar in llguidance's own form. Raises GrammarError."""
    from llguidance import LLMatcher, LLParserLimits

    made = LLMatcher(tokenizer, text, log_level=0, limits=LLParserLimits(**LIMITS))
    if made.is_error():
        raise GrammarError(reason(made.get_error()))
    return made


def reason(error: str) -> str:
    """llguidance's message as one line of ours."""
    lines = [line.strip() for line in error.splitlines() if line.strip() not in ("", "<non-verbose/>")]
    line = " ".join([*lines[:1], *(line for line in lines[1:] if line.startswith("error:"))])
    if ONE_OF in line:
        return f"the keyword {ONE_OF!r} of the JSON schema is not enforced with schemas that may overlap"
    if any(word in line for word in _COSTLY_WORDS):
        return TOO_COSTLY
    if any(word in line for word in _EMPTY_WORDS):
        return "the grammar allows no text"
    return f"the grammar cannot be used: {line[:200] or 'no reason is known'}"
