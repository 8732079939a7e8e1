"""Reads a value in one of the notations of models, piece by piece, and writes it as JSON.

The notations are JSON with what models add to it (Python's True, False, None and single quotes, raw line breaks in
strings, trailing commas), the keyword arguments of a Python call, and Gemma's, whose keys have no quotes. Because the
writer never looks back, arguments of any length stream with little memory. What cannot be read raises BrokenError.
"""

import json
import re
from typing import Literal

MAX_DEPTH = 64
"""Maximum nesting of a value."""
_MAX_LITERAL_CHARS = 64
_MAX_KEY_CHARS = 256

Notation = Literal["json", "call", "gemma"]

_SPACE = re.compile(r"[ \t\r\n]*")
_RUNS = {quote: re.compile(rf"[^{quote}\"\\\x00-\x1f]+") for quote in "\"'"}
_CLOSES_SINGLE = re.compile(r"'\s*([,:)\]}=]|$)")
_LITERAL = re.compile(r"[^\s,:=\[\]{}()\"'<]{1,64}")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_BARE_KEY = re.compile(r"[^\s,:=\[\]{}()\"'<>]{1,256}")
_WORDS = {"true": "true", "True": "true", "false": "false", "False": "false"}
_WORDS |= {"null": "null", "None": "null"}
_ESCAPES = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[^ux]|$)", re.DOTALL)
_UNFINISHED_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{0,3}|x[0-9a-fA-F]{0,1})?")
_GEMMA_QUOTES = ('<|"|>', "<escape>")


class BrokenError(Exception):
    """The text is not what it began as."""


class Values:
    """Reads one value. ``read`` it the text as it comes."""

    def __init__(self, notation: Notation = "json") -> None:
        """notation: "call" begins with the opening parenthesis of the arguments, which become an object."""
        self._notation = notation
        self._stack: list[str] = []
        self._wants: Literal["value", "item", "key", "colon", "next"] = "value"
        self._quote = ""
        """The quote that ends the running string; empty: none runs."""
        self._is_key = False
        self._has_comma = False
        """A comma was read, and is written only if a value follows."""
        self.is_done = False
        self.broken_at = 0

    def read(self, text: str, at: int, is_end: bool = False) -> tuple[str, int]:
        """Reads ``text`` from ``at`` on: (the next part of the JSON text, where the reading stopped: give it the rest
        again with more text). is_end: no text will follow. Raises BrokenError, after which ``broken_at`` says where the
        text stops to be a value. Mutates."""
        said: list[str] = []
        while not self.is_done:
            if self._quote:
                there = self._string(text, at, is_end, said)
            else:
                at = self.broken_at = self._space(text, at)
                there = self._token(text, at, is_end, said) if at < len(text) else at
            if there == at:
                break
            at = there
        return "".join(said), at

    def _space(self, text: str, at: int) -> int:
        space = _SPACE.match(text, at)
        assert space is not None
        return space.end()

    def _token(self, text: str, at: int, is_end: bool, said: list[str]) -> int:
        """Reads one token: where it ends, or ``at`` if more text is needed."""
        char, wants = text[at], self._wants
        if wants == "colon":
            if char not in ":=":
                raise BrokenError("no value after a key")
            said.append(": ")
            self._wants = "value"
            return at + 1
        if wants == "next":
            return self._after_value(text, at, is_end, said)
        if char in "]})" and wants != "value":
            return self._close(char, at, said)
        if char in "\"'" or (char == "<" and self._notation != "json"):
            return self._open_string(text, at, is_end, said)
        if wants == "key":
            return self._bare_key(text, at, is_end, said)
        if char in "{[(":
            return self._open(char, at, said)
        return self._literal(text, at, is_end, said)

    def _comma(self, said: list[str]) -> None:
        if self._has_comma:
            said.append(", ")
            self._has_comma = False

    def _open(self, char: str, at: int, said: list[str]) -> int:
        is_call = self._notation == "call" and not self._stack
        if (char == "(") != is_call or len(self._stack) >= MAX_DEPTH:
            raise BrokenError("a bracket where none belongs, or too many")
        self._comma(said)
        said.append("[" if char == "[" else "{")
        self._stack.append(char)
        self._wants = "item" if char == "[" else "key"
        return at + 1

    def _close(self, char: str, at: int, said: list[str]) -> int:
        if not self._stack or self._stack[-1] + char not in ("[]", "{}", "()"):
            raise BrokenError("a closing bracket without its opening one")
        self._stack.pop()
        self._has_comma = False
        said.append("]" if char == "]" else "}")
        self._end_value()
        return at + 1

    def _end_value(self) -> None:
        self.is_done = not self._stack
        self._wants = "next"

    def _after_value(self, text: str, at: int, is_end: bool, said: list[str]) -> int:
        char = text[at]
        is_missing = self._notation == "gemma" and char not in ",]})"  # (Gemma forgets commas)
        if char != "," and not is_missing:
            return self._close(char, at, said)
        self._has_comma = True
        self._wants = "item" if self._stack[-1] == "[" else "key"
        return self._token(text, at, is_end, said) if is_missing else at + 1

    def _literal(self, text: str, at: int, is_end: bool, said: list[str]) -> int:
        found = _LITERAL.match(text, at)
        if found is None:
            raise BrokenError("no value")
        if found.end() == len(text) and not is_end:
            if found.end() - at >= _MAX_LITERAL_CHARS:
                raise BrokenError("a word that is too long")
            return at
        word = found.group()
        if word not in _WORDS and not _NUMBER.fullmatch(word):
            raise BrokenError("a word that is no value")
        self._comma(said)
        said.append(_WORDS.get(word, word))
        self._end_value()
        return found.end()

    def _bare_key(self, text: str, at: int, is_end: bool, said: list[str]) -> int:
        found = _BARE_KEY.match(text, at)
        if found is None or self._notation == "json" or (self._notation == "call" and len(self._stack) > 1):
            raise BrokenError("no key")
        if found.end() == len(text) and not is_end:
            if found.end() - at >= _MAX_KEY_CHARS:
                raise BrokenError("a key that is too long")
            return at
        self._comma(said)
        said.append(as_json(found.group()))
        self._wants = "colon"
        return found.end()

    def _open_string(self, text: str, at: int, is_end: bool, said: list[str]) -> int:
        quotes = _GEMMA_QUOTES if text[at] == "<" else (text[at],)
        quote = next((quote for quote in quotes if text.startswith(quote, at)), "")
        if not quote:
            if not is_end and any(quote.startswith(text[at:]) for quote in quotes):
                return at
            raise BrokenError("no quote")
        self._comma(said)
        said.append('"')
        self._quote, self._is_key = quote, self._wants == "key"
        return at + len(quote)

    def _string(self, text: str, at: int, is_end: bool, said: list[str]) -> int:
        """Reads on in the running string: where it stopped."""
        if self._quote in _GEMMA_QUOTES:
            return self._gemma_string(text, at, said)
        while at < len(text):
            if run := _RUNS[self._quote].match(text, at):
                said.append(run.group())
                at = run.end()
                continue
            char = text[at]
            if char == "\\":
                escape = _ESCAPES.match(text, at)
                if escape is None and not (_UNFINISHED_ESCAPE.fullmatch(text, at) and not is_end):
                    said.append("\\\\")
                    at += 1
                    continue
                if escape is None or not escape.group(1):
                    break
                said.append(_escaped(escape.group(1)))
                at = escape.end()
            elif char == self._quote:
                closes = char == '"' or _CLOSES_SINGLE.match(text, at)
                if closes and char == "'" and not is_end and not closes.group(1):  # type: ignore[union-attr]
                    break
                if not closes:
                    said.append(char)
                    at += 1
                    continue
                return self._end_string(at + 1, said)
            else:
                said.append(as_json(char)[1:-1])
                at += 1
        return at

    def _gemma_string(self, text: str, at: int, said: list[str]) -> int:
        end = text.find(self._quote, at)
        stop = end if end >= 0 else len(text) - overlap(text, at, self._quote)
        said.append(as_json(text[at:stop])[1:-1])
        return self._end_string(end + len(self._quote), said) if end >= 0 else stop

    def _end_string(self, at: int, said: list[str]) -> int:
        said.append('"')
        self._quote = ""
        if self._is_key:
            self._wants = "colon"
        else:
            self._end_value()
        return at


def _escaped(escape: str) -> str:
    """What follows the backslash of an escape, as JSON."""
    if escape[0] == "u" or escape in '"\\/bfnrt':
        return f"\\{escape}"
    if escape[0] == "x":
        return f"\\u00{escape[1:]}"
    if escape in "'\n":
        return escape.strip()
    return f"\\\\{as_json(escape)[1:-1]}"  # (a backslash by itself, as in a regular expression)


def as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def json_of(text: str, notation: Notation = "json") -> str | None:
    """The value that ``text`` consists of, as JSON; None: it is none."""
    values = Values(notation)
    try:
        said, at = values.read(text, 0, is_end=True)
    except BrokenError:
        return None
    return said if values.is_done and not text[at:].strip() else None


def overlap(text: str, at: int, mark: str) -> int:
    """Characters at the end of ``text``, not before ``at``, that may be the beginning of ``mark``."""
    for size in range(min(len(mark) - 1, len(text) - at), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0
