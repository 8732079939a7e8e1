"""What the readers of calls report to."""

from mycelia.node.formats.pieces import CallArguments, CallBegun, CallEnded, Piece
from mycelia.node.formats.schemas import Schema
from mycelia.node.formats.source import Source
from mycelia.node.formats.values import BrokenError

MAX_HELD_CHARS = 1 << 20
"""Text of a call that is held back: a value that is no string, or arguments that come before the function's name."""
MAX_CALLS = 256
"""Calls of one answer."""


class Calls:
    """What the readers of calls report to: checks names, counts, and makes the pieces."""

    def __init__(self, schemas: dict[str, Schema], source: Source, out: list[Piece]) -> None:
        """schemas: the functions that may be called."""
        self._source = source
        self.schemas = schemas
        self.num_ended = 0
        self.is_open = False
        """A call has begun and not ended."""
        self._out = out

    def known(self, name: str) -> str:
        """The name of the offered function that ``name`` means. Raises BrokenError."""
        short = name.removeprefix("functions.")
        for candidate in (name, short, short.rpartition(":")[0], short.rpartition(":")[2]):
            if candidate in self.schemas:
                return candidate
        raise BrokenError("a function that is not offered")

    def begin(self, name: str, call_id: str = "") -> None:
        if self.num_ended >= MAX_CALLS:
            raise BrokenError("too many calls")
        self.is_open = True
        self._out.append(CallBegun(name, call_id))

    def write(self, json: str) -> None:
        if json:
            self._out.append(CallArguments(json))

    def end(self) -> None:
        self.is_open = False
        self.num_ended += 1
        self._out.append(CallEnded())
        self._source.keep()
