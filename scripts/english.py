"""The English of docstrings and comments that `make check` watches: phrases without a noun, pronouns for programs.

A docstring that begins with "Of ..." lacks its subject, and "he" or "whoever" hides who is meant: client, user, peer or
node.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("proto", "sim", "node", "bench", "tests", "examples", "scripts", "packaging")
RULES = {
    "begins without a noun": re.compile(r"\A\(?(Of|That|Likewise|And|Until)\b"),
    "pronoun for a program or a person": re.compile(r"\b(he|his|him|himself|whoever)\b", re.IGNORECASE),
}


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every string that stands alone as a statement, with its line: docstrings, also those of attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value.strip()


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Every comment with its line; lines of comments below each other are one comment."""
    start, end, column, text = 0, 0, -1, ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        words = token.string.lstrip("#").strip()
        if token.start == (end + 1, column):
            text += "\n" + words
        else:
            if text:
                yield start, text
            start, column, text = *token.start, words
        end = token.start[0]
    if text:
        yield start, text


def findings(path: Path) -> Iterator[tuple[str, int, str]]:
    """The rule, the line and its text of everything in one file that a rule is about."""
    source = path.read_text()
    for line, text in [*docstrings(ast.parse(source)), *comments(source)]:
        for rule, pattern in RULES.items():
            for match in pattern.finditer(text):
                before = text.count("\n", 0, match.start())
                yield rule, line + before, text.splitlines()[before].strip()


def main() -> int:
    is_good = True
    for path in sorted(path for folder in FOLDERS for path in Path(folder).rglob("*.py")):
        if path.name == "english.py":  # which quotes the words
            continue
        for rule, line, text in findings(path):
            is_good = False
            sys.stdout.write(f"{path}:{line}: {rule}: {text}\n")
    if not is_good:
        sys.stdout.write("Name the thing: the client, the user, the peer, the node. A docstring has a subject.\n")
    return int(not is_good)


if __name__ == "__main__":
    sys.exit(main())
