"""Prompts of clients, and sessions of prompts that come one after the other.

The tokens are numbers without meaning: equal where prompts share a prefix, and new where they do not. A text is one
such number, repeated. So a session keeps (number, length) pairs, and makes the tokens of a prompt when it is asked:
60,000 of them take half a megabyte.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

from mycelia.proto.cache.sharing import EVERYBODY, Salt

_NEW_TOKENS = 1 << 30
"""First token of those that no two pieces of text share; below are the tokens of shared prefixes and of traces."""


class Piece(NamedTuple):
    """A text: ``length`` times the same token."""

    token: int
    length: int


class Text:
    """Makes pieces that differ from all others."""

    def __init__(self) -> None:
        self._num_pieces = 0

    def new(self, num_tokens: int) -> Piece:
        self._num_pieces += 1
        return Piece(_NEW_TOKENS + self._num_pieces, num_tokens)


@dataclass(frozen=True)
class Prompt:
    """A client's prompt and the answer that any model will give."""

    tokens: tuple[int, ...]
    answer: tuple[int, ...]
    """At least one token."""
    salt: Salt = Salt(scope=EVERYBODY)  # noqa: RUF009  immutable
    """Which prefixes it may reuse: without a salt all, as few-shot prompts should."""
    open_tokens: int = 0
    """Number of leading tokens that hold no secrets."""


class Turn(NamedTuple):
    """A prompt whose tokens are not made yet."""

    pieces: tuple[Piece, ...]
    answer: Piece
    salt: Salt = Salt(scope=EVERYBODY)
    open_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(piece.length for piece in self.pieces)

    def prompt(self) -> Prompt:
        return Prompt(_tokens(self.pieces), _tokens([self.answer]), self.salt, self.open_tokens)


@dataclass(frozen=True)
class Session:
    """Prompts that come one after the other."""

    at_s: float
    """When the first prompt comes, in seconds since the workload's start."""
    turns: tuple[Turn, ...]
    think_s: tuple[float, ...] = ()
    """Seconds between the answer to a prompt and the next one."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The prompts of ``turns``, each made when it is asked for."""
        return _Prompts(self.turns)


class _Prompts(Sequence[Prompt]):
    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = turns

    def __len__(self) -> int:
        return len(self._turns)

    @overload
    def __getitem__(self, place: int) -> Prompt: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Prompt]: ...
    def __getitem__(self, place: int | slice) -> Prompt | Sequence[Prompt]:
        return _Prompts(self._turns[place]) if isinstance(place, slice) else self._turns[place].prompt()

    def __iter__(self) -> Iterator[Prompt]:
        return (turn.prompt() for turn in self._turns)


def _tokens(pieces: Iterable[Piece]) -> tuple[int, ...]:
    tokens: tuple[int, ...] = ()
    for piece in pieces:
        tokens += (piece.token,) * piece.length
    return tokens
