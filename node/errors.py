"""Errors as users see them: the most important error of an exception group, in one line, and attempts that failed."""

from collections.abc import Sequence
from dataclasses import dataclass

from mycelia.proto.wire.errors import LocalError, MyceliaError

EXIT_TRY_LATER = 75
"""The exit code of a command that ended with a PassingError, as sysexits.h has it."""


class BusyError(LocalError):
    """There is no place for this request now; the client may try again."""

    def __init__(self, message: str, retry_s: float = 0.0) -> None:
        """retry_s: seconds after which to try again; 0: unknown."""
        super().__init__(message)
        self.retry_s = retry_s


class PassingError(LocalError):
    """Something outside this machine failed that may be better in minutes, such as a hub that cannot be reached."""


class FailedError(LocalError):
    """A request that failed for a reason that has a code of its own (``proto/wire/serving.py``)."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def no_such_model(name: str, served: Sequence[str]) -> str:
    """The message for a model that no node serves, in OpenAI's words, by which clients know the case. It has at most
    512 characters, as a message between nodes."""
    others = [one for one in served if one != name]  # (it may be in a list that is some minutes old)
    wanted, *shown = (one_line(one[:64])[:64] for one in (name, *others[:MAX_NAMED]))
    told = ", ".join(shown) + ", ..." * (len(others) > MAX_NAMED)
    return f"The model `{wanted}` does not exist: no node that can be found serves it. Served: {told or 'none'}."


MAX_NAMED = 5
"""Models in that message: peers can report any number."""


def one_line(message: str) -> str:
    """``message`` as one line of printable text: other characters, as from a path or a name, are escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)


def first_error(exc: BaseException) -> BaseException:
    """The most important error of a group and the groups in it: a MyceliaError if there is one, else the first.

    An exception that is not a group is returned unchanged.
    """
    while isinstance(exc, BaseExceptionGroup):
        ours = exc.subgroup(MyceliaError)
        exc = (ours if ours is not None else exc).exceptions[0]
    return exc


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way that did not lead to a peer."""

    what: str
    """Such as "203.0.113.1 port 7117", "node.example.org", or a source of addresses such as the local network."""
    says: str
    fix: str = ""
    """What the user can do; empty: nothing, or nothing more than for the others."""

    def __str__(self) -> str:
        return f"{self.what}: {self.says}{f' ({self.fix})' if self.fix else ''}"
