"""The text of an answer as readers see it: what has come and is not read yet. A reader is a generator that yields when
it needs more text; ``is_end`` says that none will come."""

import re
from collections.abc import Generator, Sequence

from mycelia.node.formats.patterns import PARTIAL, Match, Pattern

Reading = Generator[None, None, None]

_SPACE = re.compile(r"\s*")


def after_space(text: str, at: int) -> int:
    """Where the white space at ``at`` ends."""
    space = _SPACE.match(text, at)
    assert space is not None
    return space.end()


class Source:
    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        """What is before it has been read."""
        self.is_end = False
        self._base = 0
        self._kept: list[str] | None = None
        self._kept_from = 0
        self.position_kept = 0
        """Where ``kept`` begins in the whole answer."""

    @property
    def position(self) -> int:
        """Where ``at`` is in the whole answer."""
        return self._base + self.at

    @property
    def next(self) -> str:
        """The next character; empty: more text is needed. (Not by cutting off the rest, which may be long.)"""
        return self.text[self.at : self.at + 1]

    def add(self, text: str) -> None:
        self._keep()
        self.text = self.text[self.at :] + text
        self._base += self.at
        self.at = self._kept_from = 0

    def keep(self) -> None:
        """From here on, remember what is read. Mutates."""
        self._kept, self._kept_from, self.position_kept = [], self.at, self.position

    def kept(self) -> str:
        """What was read since ``keep``; nothing is remembered any more. Mutates."""
        self._keep()
        kept, self._kept = self._kept or [], None
        return "".join(kept)

    def _keep(self) -> None:
        if self._kept is not None:
            self._kept.append(self.text[self._kept_from : self.at])
            self._kept_from = self.at

    def skip_space(self) -> Reading:
        while True:
            self.at = after_space(self.text, self.at)
            if self.at < len(self.text) or self.is_end:
                return
            yield

    def skip_any(self, marks: Sequence[Pattern]) -> Reading:
        """Read over white space, and over ``marks`` between it."""
        while True:
            yield from self.skip_space()
            if (yield from self.match(marks)) is None:
                return

    def match(self, patterns: Sequence[Pattern]) -> Generator[None, None, tuple[int, Match] | None]:
        """(which pattern matches here, its match), read; None: none does, and nothing is read."""
        while True:
            is_open = False
            for place, pattern in enumerate(patterns):
                found = pattern.match(self.text, self.at, self.is_end)
                if found == PARTIAL:
                    is_open = True
                elif found is not None:
                    if is_open:  # (an earlier one goes first)
                        break
                    self.at = found.end
                    return place, found
            if not is_open:
                return None
            yield
