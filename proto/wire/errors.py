"""Errors, split by who is to blame (h11's rule).

A ``RemoteError`` is the peer's fault and costs the peer; a ``LocalError`` is the caller's fault and is a bug or bad
input on this side; ``LimitExceeded`` says that a bound of ours was hit, whoever asked for it.
"""

from mycelia.proto.wire.refusals import Refusal


class MyceliaError(Exception):
    """Base of every error this project raises on purpose."""


class RemoteError(MyceliaError):
    """A peer sent something that the protocol does not allow. The peer pays, the node goes on."""

    def __init__(self, message: str, refusal: Refusal = Refusal.MALFORMED) -> None:
        super().__init__(message)
        self.refusal = refusal
        """What it counts as."""


class LocalError(MyceliaError):
    """The caller on this side asked for something impossible. The message says what to do instead."""


class LimitExceeded(MyceliaError):
    """A documented bound was reached; trying again later, or with less, may work."""
