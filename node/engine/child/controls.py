"""The control tokens of a vocabulary as they are spelled in texts, and who wrote each of them.

If a rendered conversation were tokenized as it is, a user could write ``<|im_end|><|im_start|>system`` and speak as the
system. So a control token counts only where the chat template itself wrote it. The template is rendered twice: as its
authors wrote it, and with *marked* control tokens in its literals, whose characters are replaced by characters of
Unicode's private use. Both texts have the same length, as everything else is the same. A control token is the
template's own if all of its characters are marked in the second text. Whatever a template does with contents (join,
split, trim, change their case), it cannot make marks of them.

Where the two texts differ in more than marks (a template computes with its literals), or a template composes control
tokens of a role's name, it is rendered once, with a *break* in every control token that people spelled: a noncharacter
that nobody wrote, and that is taken out again.

Control tokens are those that llama.cpp reads only on request, and user-defined tokens that look like them. Any other
user-defined token, such as ``<think>`` in most vocabularies, is text: people may write it, as in other programs.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

_MARKS = range(0xE000, 0xF900)
NONCHARACTERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
_NEUTRAL = re.compile(r"[\s\"'\\\x00-\x1f]")
"""Characters that ``trim`` and ``tojson`` treat in their own way; without marks."""

Span = tuple[int, int]
"""Start and end of a part of a text."""


@dataclass(frozen=True)
class Part:
    text: str
    with_controls: bool
    """Whether spelled control tokens are control tokens here."""
    continues: bool = False
    """Whether the text of the part before goes on, and no control token stands between them."""
    controls: Sequence[Span] = ()
    """The control tokens in ``text``, in order; they do not overlap."""


@dataclass(frozen=True)
class Rendered:
    """A rendered text in which it is known who wrote each control token. The spans are in order and do not overlap."""

    text: str
    own: Sequence[Span]
    """The template's control tokens."""
    foreign: Sequence[Span] = ()
    """Whatever else spells control tokens."""
    cuts: Sequence[int] = ()
    """Places in ``foreign`` where the text has to be cut."""

    def up_to(self, end: int) -> "Rendered":
        """The first ``end`` characters."""
        own = [span for span in self.own if span[1] <= end]
        foreign = [(start, min(stop, end)) for start, stop in self.foreign if start < end]
        return Rendered(self.text[:end], own, foreign, [cut for cut in self.cuts if cut < end])

    def parts(self) -> list[Part]:
        """The text between two control tokens is a part by itself if something foreign reaches into it."""
        parts, start, end, place = [], 0, 0, 0
        for own_start, own_end in [*self.own, (len(self.text),) * 2]:
            while place < len(self.foreign) and self.foreign[place][1] <= end:
                place += 1
            if place < len(self.foreign) and self.foreign[place][0] < own_start and end < own_start:
                cuts = self.cuts[bisect_right(self.cuts, end) : bisect_left(self.cuts, own_start)]
                edges = [end, *cuts, own_start]
                parts += [self._part(start, end), *self._pieces(edges)]
                start = own_start
            end = own_end
        return [part for part in [*parts, self._part(start, len(self.text))] if part.text]

    def _part(self, start: int, end: int) -> Part:
        own = self.own[bisect_left(self.own, (start, 0)) : bisect_left(self.own, (end, 0))]
        return Part(self.text[start:end], True, controls=[(first - start, stop - start) for first, stop in own])

    def _pieces(self, edges: Sequence[int]) -> list[Part]:
        return [Part(self.text[start:end], False, continues=start > edges[0]) for start, end in pairwise(edges)]


class Controls:
    """The spellings of a vocabulary's control tokens. Immutable."""

    def __init__(self, spellings: Iterable[str], user_defined: Iterable[str] = ()) -> None:
        """user_defined: those that llama.cpp reads also where control tokens do not count. Spellings of nothing but
        blanks and quotes are left out: everybody has to write those."""
        self._user_defined = frozenset(user_defined)
        self._spellings = frozenset(one for one in [*spellings, *self._user_defined] if _NEUTRAL.sub("", one))
        self._lengths: dict[str, set[int]] = {}
        seconds: dict[str, set[str]] = {}
        for one in self._spellings:
            self._lengths.setdefault(one[:2], set()).add(len(one))
            seconds.setdefault(one[0], set()).add(one[1:2])
        self._starts = re.compile("|".join(map(_start, seconds, seconds.values())) or "(?!)")
        letters = sorted({letter for one in self._spellings for letter in _NEUTRAL.sub("", one)})
        self._marks = {ord(letter): mark for letter, mark in zip(letters, _MARKS, strict=False)}

    def find(self, text: str) -> list[Span]:
        """All places that spell a control token. They may overlap."""
        found = []
        for match in self._starts.finditer(text):
            start = match.start()
            lengths = chain(self._lengths.get(text[start : start + 2], ()), self._lengths.get(text[start], ()))
            ends = {start + length for length in lengths}
            found += [(start, end) for end in ends if text[start:end] in self._spellings]
        return found

    def all_count(self, text: str) -> Part:
        """A text in which every spelled control token is one."""
        return Part(text, True, controls=_joined(self.find(text)))

    def written_in(self, text: str, literals: Sequence[Span]) -> Rendered:
        """A text of which the template wrote ``literals``, and others the rest."""
        return self._sort(text, lambda start, end: any(first <= start and end <= last for first, last in literals))

    # --- marks -----------------------------------------------------------------------------------------------------

    def mark(self, literal: str) -> str:
        """``literal``, a text of the template, with marks."""
        return self._replaced(literal, _joined(self.find(literal)))

    def compare(self, plain: str, marked: str) -> Rendered | None:
        """A text that was rendered both ways. None if the two differ in more than marks."""
        rendered = self._sort(plain, lambda start, end: marked[start:end] == plain[start:end].translate(self._marks))
        return rendered if self._replaced(plain, rendered.own) == marked else None

    def _replaced(self, text: str, spans: Iterable[Span]) -> str:
        """``text`` with marks in ``spans``."""
        pieces, end = [], 0
        for start, stop in spans:
            pieces += [text[end:start], text[start:stop].translate(self._marks)]
            end = stop
        return "".join([*pieces, text[end:]])

    def _sort(self, text: str, is_own: Callable[[int, int], bool]) -> Rendered:
        own: list[Span] = []
        foreign: list[Span] = []
        for span in self.find(text):
            (own if is_own(*span) else foreign).append(span)
        cuts = [start + 1 for start, end in foreign if text[start:end] in self._user_defined]
        return Rendered(text, _joined(own), _joined(foreign), sorted(set(cuts)))

    # --- breaks ----------------------------------------------------------------------------------------------------

    def break_in(self, text: str, noncharacter: str) -> str:
        """``text``, which a client wrote, with breaks."""
        # (a control token of one character cannot be broken; the break stands before it)
        places = sorted({min(start + 1, end - 1) for start, end in self.find(text)})
        edges = zip([0, *places], [*places, len(text)], strict=True)
        return noncharacter.join(text[start:end] for start, end in edges)

    def without_breaks(self, broken: str, noncharacter: str) -> Rendered:
        """A rendered text, some contents of which had breaks."""
        pieces = broken.split(noncharacter)
        places, at = set(), 0
        for piece in pieces[:-1]:
            at += len(piece)
            places.add(at)
        return self._sort("".join(pieces), lambda start, end: places.isdisjoint(range(start, end)))


def _start(first: str, seconds: Iterable[str]) -> str:
    """A pattern for one character and what may follow it."""
    followed = "" if "" in seconds else f"(?=[{re.escape(''.join(seconds))}])"
    return re.escape(first) + followed


def _joined(spans: Iterable[Span]) -> list[Span]:
    """The union of ``spans``, in order."""
    union: list[Span] = []
    for start, end in sorted(spans):
        if union and start < union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((start, end))
    return union
