"""Reads an answer as it comes: which of its text is content, thought or a call.

Nothing that a model writes is lost. Text that looks like the beginning of a call is held back until it is one, and is
content if it turns out not to be: because the function is not offered, or because what follows is no call. From the
first certain character of a call on, its arguments stream. A call that then breaks off is reported as such, with its
text.

The reader is a generator over ``Source`` that stops where it needs more text. It never reads a character twice for a
mark that it has ruled out, and holds back a bounded text, so hostile answers cost time in proportion to their length.
"""

import re
from collections.abc import Generator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from mycelia.node.formats.bodies import read_call
from mycelia.node.formats.calls import Calls
from mycelia.node.formats.format import Format, Thoughts
from mycelia.node.formats.forms import Form
from mycelia.node.formats.patterns import PARTIAL, Match, Partial, Pattern
from mycelia.node.formats.pieces import CallBroken, CallEnded, Content, Piece, Thought, WasThought
from mycelia.node.formats.schemas import schemas_of
from mycelia.node.formats.source import Reading, Source, after_space
from mycelia.node.formats.values import BrokenError

_MAX_SPACE = 4_096
"""White space that is held back, because it belongs to a call that may follow."""
_MAX_TAIL = 131_072
"""Characters of a thought that are read again, all at once, because a call in it may have been meant."""


class _Mark:
    """A place in an answer where it changes its kind."""

    def __init__(self, pattern: Pattern, kind: str, form: Form | None = None) -> None:
        """kind: "think", "close", "drop" or "call"."""
        self.pattern = pattern
        self.kind = kind
        self.form = form
        is_bound = form is not None and not form.only_at_start
        self.counts_in_thoughts = is_bound and not pattern.source.startswith("`")
        """Calls that models without a format of their own write mean nothing in the middle of a thought."""


class _Marks:
    """The marks of a format, and a quick search for places where one may begin."""

    def __init__(self, marks: list[_Mark]) -> None:
        self.marks = [mark for mark in marks if mark.pattern.first]
        self.in_thoughts = [mark.pattern for mark in self.marks if mark.counts_in_thoughts]
        self.bare = [mark for mark in marks if not mark.pattern.first]
        firsts = sorted({mark.pattern.first for mark in self.marks}, key=len, reverse=True)
        self.search = re.compile("|".join(map(re.escape, firsts))).search if firsts else None
        self._beginnings = {first[:size] for first in firsts for size in range(1, len(first))}
        self._longest = max(map(len, firsts), default=0)
        self._first_chars = {first[0] for first in firsts}

    def overlap(self, text: str, at: int) -> int:
        """Characters at the end of ``text``, not before ``at``, with which a mark may begin."""
        for start in range(max(at, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_chars and text[start:] in self._beginnings:
                return len(text) - start
        return 0


@lru_cache(64)
def _marks_of(format_: Format, has_tools: bool) -> _Marks:
    thoughts = format_.thoughts
    marks = [_Mark(begin, "call", form) for form in format_.forms for begin in form.begins] if has_tools else []
    marks += [_Mark(_literal(text), "think") for text in thoughts.opens]
    marks += [_Mark(_literal(text), "drop") for text in thoughts.dropped]
    marks += [_Mark(_literal(text), "close") for text in thoughts.closes]
    return _Marks(marks)


@lru_cache(256)
def _literal(text: str) -> Pattern:
    return Pattern(text)


class AnswerReader:
    """Reads one answer. ``feed`` it all text, then call ``end``."""

    def __init__(self, format_: Format, tools: Mapping[str, Any] | None = None, opened: str = "") -> None:
        """tools: the parameters of each function that may be called, by name; with none, no text is a call. opened:
        see ``Route.opened``."""
        self._format = format_
        self._tools = tools
        self._thoughts = format_.thoughts
        self._marks = _marks_of(format_, bool(tools))
        self._is_plain = not self._marks.marks and not self._marks.bare
        self._out: list[Piece] = []
        self._source = Source()
        self._calls = Calls(schemas_of(tools or {}), self._source, self._out)
        self._opened = len(opened)
        self._is_start = True
        """Only white space came since the answer, or what follows a thought or a call, began."""
        self._has_content = False
        self._num_thoughts = 0
        self._tail: list[str] | None = None
        """The text of the running thought since a call began in it; None: none did."""
        self._last_tail: list[str] | None = None
        """The same of the thought before."""
        self._reading = self._read()
        if opened and not self._is_plain:
            self._source.add(opened)
        else:
            self._opened = 0

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain with the next part of the answer."""
        if not text:
            return []
        source = self._source
        if self._is_plain:
            source.at += len(text)
            return [Content(text, source.at - len(text))]
        source.add(text)
        next(self._reading)
        return self._taken()

    def end(self) -> list[Piece]:
        """The last pieces."""
        if self._is_plain:
            return []
        self._source.is_end = True
        for _ in self._reading:
            raise AssertionError("a reader wants more text than there is")
        return self._taken()

    def _taken(self) -> list[Piece]:
        taken = self._out[:]
        self._out.clear()
        return taken

    # --- what the text is ------------------------------------------------------------------------------------------

    def _read(self) -> Reading:
        source = self._source
        while True:
            found = yield from self._next_mark()
            if found is None:
                if not (self._has_content or self._calls.num_ended):
                    self._tail = self._last_tail
                    self._call_at_end()
                return
            mark, start, match = found
            if mark.form is not None:
                self._say(source.at + len(source.text[source.at : start].rstrip()))
                yield from self._call(mark.form, match)
                continue
            self._say(start)
            source.at = match.end
            if mark.kind == "think":
                yield from self._thought(mark.pattern.source)
            elif mark.kind == "close":
                if self._has_content:
                    self._out.append(WasThought(mark.pattern.source, self._place(start)))
                self._num_thoughts += 1
                self._is_start = True
                yield from source.skip_space()
            else:
                self._is_start = True

    def _next_mark(self) -> Generator[None, None, tuple[_Mark, int, Match] | None]:
        """The next mark, where it begins, and its match; says all content before it. None: the answer is over."""
        source = self._source
        at = source.at
        while True:
            text = source.text
            place = self._candidate(text, at)
            if place < 0 or (not source.is_end and place > len(text) - self._marks.overlap(text, source.at)):
                # (nothing begins here, or a mark may begin earlier whose rest is not here yet)
                self._say(len(text) if source.is_end else self._certain(text))
                if source.is_end:
                    return None
                yield
                at = source.at
                continue
            found = self._try(text, place)
            if found is None:
                at = place + 1
                if self._is_start and text[source.at : at].strip():
                    self._is_start = False
            elif found == PARTIAL:
                self._say(source.at + len(text[source.at : place].rstrip()))
                yield
                at = source.at
            else:
                return found[0], place, found[1]

    def _candidate(self, text: str, at: int) -> int:
        """Where the next mark may begin; -1: nowhere."""
        marks = self._marks
        if self._is_start and marks.bare:
            first = after_space(text, self._source.at)
            if first < len(text) and text[first] in "{[" and first >= at:
                return first
        found = marks.search(text, at) if marks.search else None
        return found.start() if found else -1

    def _certain(self, text: str) -> int:
        """Where the text ends that is content whatever follows."""
        source = self._source
        stop = len(text) - self._marks.overlap(text, source.at)
        held = text[source.at : stop]
        return max(source.at + len(held.rstrip()), stop - _MAX_SPACE)

    def _try(self, text: str, place: int) -> tuple[_Mark, Match] | Partial | None:
        marks, is_end, is_open = self._marks, self._source.is_end, False
        is_start = self._is_start and after_space(text, self._source.at) >= place
        for mark in (*marks.marks, *(marks.bare if is_start else ())):
            first = mark.pattern.first
            if not text.startswith(first, place) and len(text) - place >= len(first):
                continue  # (the quick way out: hostile answers have such places at each character)
            if not self._is_allowed(mark, is_start):
                continue
            found = mark.pattern.match(text, place, is_end)
            if found == PARTIAL:
                is_open = True
            elif found is not None:
                if mark.form is not None and mark.form.next_chars:
                    follows = after_space(text, found.end)
                    following = text[follows : follows + 1]
                    has_too_much_space = follows - found.end > _MAX_SPACE
                    if has_too_much_space or (following not in mark.form.next_chars if following else is_end):
                        continue
                    is_open = is_open or not following
                return PARTIAL if is_open else (mark, found)
        return PARTIAL if is_open else None

    def _is_allowed(self, mark: _Mark, is_start: bool) -> bool:
        if mark.kind == "think":
            return is_start or self._thoughts.anywhere
        if mark.kind == "close":
            return not self._num_thoughts and not self._thoughts.anywhere
        return mark.form is None or is_start or not mark.form.only_at_start

    def _thought(self, opening: str) -> Reading:
        source, closes, ends_at_call = self._source, self._thoughts.closes, self._thoughts.ends_at_call
        self._num_thoughts += 1
        yield from source.skip_space()
        yield from source.match((_literal(opening),))  # (some models write it again after the template did)
        yield from source.skip_space()
        seen = source.at
        while True:
            text = source.text
            ends = [(place, len(close)) for close in closes if (place := text.find(close, source.at)) >= 0]
            call, is_whole = self._call_in_thought(text, seen) if self._tail is None else (-1, False)
            if is_whole and ends_at_call:
                ends.append((call, 0))
            elif is_whole and (not ends or call < min(ends)[0]):
                self._think(source.at + len(text[source.at : call].rstrip()))
                self._tail = []
                continue
            if ends:
                place, size = min(ends)
                self._think(source.at + len(text[source.at : place].rstrip()))
                source.at, self._last_tail, self._tail = place + size, self._tail, None
                self._is_start, self._has_content = True, False
                yield from source.skip_space()
                return
            if source.is_end:
                self._think(len(text.rstrip()))
                source.at = len(text)
                self._call_at_end()
                return
            stop = call if call >= 0 else len(text) - self._marks.overlap(text, source.at)
            self._think(source.at + len(text[source.at : stop].rstrip()))
            yield
            seen = source.at

    def _call_in_thought(self, text: str, at: int) -> tuple[int, bool]:
        """(where a call may begin after ``at``, whether it does for certain); (-1, False): nowhere."""
        marks, is_end = self._marks, self._source.is_end
        while marks.search and (found := marks.search(text, at)):
            place = found.start()
            if not is_end and place > (undecided := len(text) - marks.overlap(text, at)):
                return undecided, False
            matches = [begin.match(text, place, is_end) for begin in marks.in_thoughts]
            if any(matches):
                return place, any(isinstance(match, Match) for match in matches)
            at = place + 1
        return -1, False

    def _call_at_end(self) -> None:
        """An answer that ends with calls inside a thought, which may be closed after them, was meant to call."""
        tail, self._tail = "".join(self._tail or ()), None
        if not 0 < len(tail) <= _MAX_TAIL:
            return
        reader = AnswerReader(replace(self._format, thoughts=Thoughts()), self._tools)
        pieces = [*reader.feed(tail), *reader.end()]
        no_call = (CallBroken, Content)
        first = next((at for at in range(len(pieces), 0, -1) if isinstance(pieces[at - 1], no_call)), 0)
        self._out += pieces[first:]
        self._calls.num_ended += sum(isinstance(piece, CallEnded) for piece in pieces[first:])

    def _call(self, form: Form, begun: Match) -> Reading:
        source, calls = self._source, self._calls
        source.keep()
        source.at = begun.end
        try:
            yield from read_call(form, begun, source, calls)
        except BrokenError:
            place = source.position_kept
            text = source.kept()
            if calls.is_open:
                calls.is_open = False
                self._out.append(CallBroken(text, max(place - self._opened, 0)))
            else:
                self._content(text, place)
            self._is_start = False
            return
        source.kept()
        yield from source.skip_any((*form.ends, *form.after))
        self._is_start = True

    # --- saying it -------------------------------------------------------------------------------------------------

    def _place(self, at: int) -> int:
        return max(0, self._source.position - self._source.at + at - self._opened)

    def _say(self, stop: int) -> None:
        """What is before ``stop`` is content. White space where content begins waits for the rest of it."""
        source = self._source
        text = source.text[source.at : stop]
        is_held = self._is_start and len(text) <= _MAX_SPACE and not source.is_end and not text.strip()
        if not text or is_held:
            return
        self._content(text, source.position)
        source.at = stop
        self._is_start = False

    def _content(self, text: str, position: int) -> None:
        if position < self._opened:
            text = text[self._opened - position :]
            position = self._opened
        if text:
            self._has_content = True
            self._out.append(Content(text, position - self._opened))

    def _think(self, stop: int) -> None:
        source = self._source
        if stop > source.at:
            self._out.append(Thought(source.text[source.at : stop]))
            if self._tail is not None:
                self._tail.append(source.text[source.at : stop])
            source.at = stop
