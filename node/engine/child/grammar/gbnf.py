"""llama.cpp's grammar language, GBNF, written as Lark for llguidance.

llguidance has a converter of its own, but it loses escapes such as ``\\u00e9``, takes quadratic time, and makes lexemes
of several characters. llguidance matches lexemes greedily: ``[0-9]+ ws "\\n"`` with ``ws ::= [ \\n]*`` could never end.
Here a grammar without recursion becomes one regular expression, and otherwise each character is a lexeme of its own.
Both have exactly GBNF's meaning. The time is linear, and nothing recurses.
"""

import re

_PART = re.compile(
    r"""
    (?P<space>[ \t]+|\#[^\r\n]*)
  | (?P<line>\r\n|\r|\n)
  | (?P<define>::=)
  | (?P<name>[a-zA-Z0-9_-]+)
  | "(?P<literal>(?:[^"\\\r\n]|\\.)*)"
  | \[(?P<class>(?:[^\]\\]|\\.)*)\]
  | (?P<any>\.)
  | (?P<token><[^<>\s]+>)
  | \{\s*(?P<least>[0-9]{1,9})\s*(?P<comma>,)?\s*(?P<most>[0-9]{1,9})?\s*\}
  | (?P<sign>[()|*+?])
    """,
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))|(.)", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}


class GbnfError(ValueError):
    """The text is not GBNF. One line."""


def lark_of_gbnf(text: str) -> str:
    """A Lark grammar of the same texts. Raises GbnfError."""
    rules = _rules(text)
    if "root" not in rules:
        raise GbnfError("there is no rule root")
    names = {name: f"x{place}" for place, name in enumerate(rules)}
    for parts in rules.values():
        for kind, value in parts:
            if kind == "name" and value not in names:
                raise GbnfError(f"the rule {value[:50]} is not defined")
    is_regular = not any(kind == "token" for parts in rules.values() for kind, _ in parts) and not _recurses(rules)
    if is_regular:
        names = {name: new.upper() for name, new in names.items()}
    lines = [f"start: {names['root']}"]
    for name, parts in rules.items():
        lines.append(f"{names[name]}: {_body(parts, names, is_regular)}")
    return "\n".join(lines) + "\n"


_Parts = list[tuple[str, str]]
"""Kinds of parts with their values, in order."""


def _rules(text: str) -> dict[str, _Parts]:
    """The rules by name. The last one of several with one name counts, as in llama.cpp."""
    parts = _parts(text)
    rules: dict[str, _Parts] = {}
    current: _Parts | None = None
    depth = 0
    for place, (kind, value) in enumerate(parts):
        following = parts[place + 1][0] if place + 1 < len(parts) else ""
        if kind == "name" and following == "define":
            if depth:
                raise GbnfError(f"a parenthesis is open before the rule {value[:50]}")
            current = rules[value] = []
        elif kind == "define":
            if place == 0 or parts[place - 1][0] != "name":
                raise GbnfError("a rule has no name")
        elif current is None:
            raise GbnfError("the text does not begin with a rule")
        else:
            depth += {"(": 1, ")": -1}.get(value, 0) if kind == "sign" else 0
            if depth < 0:
                raise GbnfError("a parenthesis closes nothing")
            if kind == "count" or (kind == "sign" and value in "*+?"):
                _check_repeats(current)
            current.append((kind, value))
    if depth:
        raise GbnfError("a parenthesis is not closed")
    return rules


def _check_repeats(before: _Parts) -> None:
    if not before or before[-1] in (("sign", "("), ("sign", "|")):
        raise GbnfError("a repetition repeats nothing")


def _parts(text: str) -> _Parts:
    """Everything but blanks, comments and line ends: a rule ends where the next one is defined."""
    parts: _Parts = []
    place = 0
    while place < len(text):
        match = _PART.match(text, place)
        if match is None:
            line = text.count("\n", 0, place) + 1
            raise GbnfError(f"line {line} cannot be read at {text[place : place + 20]!r}")
        place = match.end()
        kind = match.lastgroup or "literal"
        if match["least"] is not None:
            most = match["most"] or ""
            parts.append(("count", f"{{{match['least']},{most}}}" if match["comma"] else f"{{{match['least']}}}"))
        elif kind not in ("space", "line"):
            parts.append((kind, match[kind]))
    return parts


def _recurses(rules: dict[str, _Parts]) -> bool:
    """Whether a rule refers to itself, also through others."""
    uses = {name: {value for kind, value in parts if kind == "name"} for name, parts in rules.items()}
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, used in uses.items():
        for other in used:
            users[other].append(name)
    left = {name: len(used) for name, used in uses.items()}
    free = [name for name, count in left.items() if not count]
    num_free = 0
    while free:
        num_free += 1
        for user in users[free.pop()]:
            left[user] -= 1
            if not left[user]:
                free.append(user)
    return num_free < len(rules)


def _body(parts: _Parts, names: dict[str, str], is_regular: bool) -> str:
    """The right side of a rule."""
    words: list[str] = []
    is_empty = True
    """Whether nothing stands in this alternative so far."""
    for kind, value in parts:
        if kind == "sign" and value in "|)" and is_empty:
            words.append('""')
        match kind:
            case "name":
                words.append(names[value])
            case "literal":
                words.append(_literal(value, is_regular))
            case "class":
                words.append(_class(value))
            case "any":
                words.append("/(?s:.)/")
            case "count" | "sign" if value[0] in "{*+?":
                words[-1] += value
            case _:
                words.append(value)
        is_empty = kind == "sign" and value in "(|"
    if is_empty:
        words.append('""')
    return " ".join(words)


def _characters(text: str) -> list[tuple[int, bool]]:
    """(code point, whether it was escaped) for each character."""
    found = []
    for two, four, eight, escaped, plain in _CHARACTER.findall(text):
        digits = two or four or eight
        character = _ESCAPED.get(escaped, escaped) or plain
        found.append((int(digits, 16) if digits else ord(character), not plain))
    return found


def _literal(text: str, is_regular: bool) -> str:
    characters = [f"\\x{{{code:x}}}" for code, _ in _characters(text)]
    if not characters:
        return '""'
    if is_regular:
        return "/" + ("".join(characters) if len(characters) == 1 else f"(?:{''.join(characters)})") + "/"
    return "(" + " ".join(f"/{character}/" for character in characters) + ")"


def _class(text: str) -> str:
    characters = _characters(text)
    negation = "^" if characters[:1] == [(ord("^"), False)] else ""
    members = characters[len(negation) :]
    words = []
    for place, (code, is_escaped) in enumerate(members):
        is_range = code == ord("-") and not is_escaped and 0 < place < len(members) - 1
        words.append("-" if is_range else f"\\x{{{code:x}}}")
    return f"/[{negation}{''.join(words)}]/"
