"""Errors as they are told: the one that matters of a nursery's group, and in one line."""

from mycelia.proto.wire.errors import LocalError, MyceliaError


class BusyError(LocalError):
    """There is no place for it now; it may be asked again."""

    def __init__(self, message: str, retry_s: float = 0.0) -> None:
        """retry_s: after how many seconds; 0: unknown."""
        super().__init__(message)
        self.retry_s = retry_s


def one_line(message: str) -> str:
    """``message`` as one line of text that can be shown and encoded, whatever a path or a name put into it."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)


def first_error(exc: BaseException) -> BaseException:
    """The error that matters of a group, however deep: one of ours before anything else. Others come back as they
    are."""
    while isinstance(exc, BaseExceptionGroup):
        ours = exc.subgroup(MyceliaError)
        exc = (ours if ours is not None else exc).exceptions[0]
    return exc
