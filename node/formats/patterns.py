"""Patterns for the marks of a format, which say of a text that ends too early that it may still match.

A pattern is literal text with fields:

    {_}      white space, maybe none
    {name}   the name of a function
    {id}     the id of a call
    {key}    the name of an argument
    {type}   the type of an argument
    {...}    anything up to the text that follows in the pattern, in the same line
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

MAX_FIELD_CHARS = 256
"""Maximum length of a field: a name, a key or an id. It bounds the text that is held back for a mark."""

_FIELDS = {
    "_": re.compile(r"\s{0,256}"),
    "name": re.compile(r"[\w.:/@+-]{1,256}"),
    "id": re.compile(r"[\w.:-]{1,256}"),
    "key": re.compile(r"[^<>\n\"/][^<>\n\"]{0,255}"),
    "type": re.compile(r"\w{1,256}"),
    "...": re.compile(r"[^\n]{0,256}?"),
}
_FIELD = re.compile(r"\{(_|name|id|key|type|\.\.\.)\}")

Partial = Literal["partial"]
PARTIAL: Partial = "partial"
"""The text ends before it is known whether it matches."""


@dataclass(frozen=True)
class Match:
    end: int
    """Where the text goes on after the match."""
    fields: Mapping[str, str]


class Pattern:
    """One mark. Immutable."""

    def __init__(self, source: str) -> None:
        """source: begins with literal text, unless it is empty."""
        self.source = source
        parts = _FIELD.split(source)
        self._parts = [(bool(at % 2), part) for at, part in enumerate(parts) if part]
        self.first = parts[0]
        """The literal text with which a match begins."""

    def match(self, text: str, at: int, is_end: bool = False) -> Match | Partial | None:
        """The match that begins at ``at``. is_end: no text will follow."""
        fields: dict[str, str] = {}
        for place, (is_field, part) in enumerate(self._parts):
            if not is_field:
                if text.startswith(part, at):
                    at += len(part)
                    continue
                # (the rest is cut off only where it is shorter: a long one is tried at many places)
                is_open = not is_end and len(text) - at < len(part) and part.startswith(text[at:])
                return PARTIAL if is_open else None
            found = self._until_next(text, at, place) if part == "..." else _FIELDS[part].match(text, at)
            if found is None:
                is_open = not is_end and (
                    len(text) == at or (part == "..." and len(text) - at < MAX_FIELD_CHARS and "\n" not in text[at:])
                )
                return PARTIAL if is_open else None
            if found.end() == len(text) and not is_end and found.end() - at < MAX_FIELD_CHARS:
                return PARTIAL  # (more of the field may follow)
            if part not in ("_", "..."):
                fields[part] = found.group()
            at = found.end()
        return Match(at, fields)

    def _until_next(self, text: str, at: int, place: int) -> re.Match[str] | None:
        following = self._parts[place + 1][1]
        return _up_to(following).match(text, at)


@lru_cache(256)
def _up_to(literal: str) -> re.Pattern[str]:
    return re.compile(_FIELDS["..."].pattern + f"(?={re.escape(literal)})")
