"""Errors, split by blame (h11's rule).

A ``RemoteError`` is the peer's fault and costs the peer. A ``LocalError`` is the caller's fault: a bug or bad input on
this side. ``LimitExceeded`` says that a bound of this node was reached, whatever the cause.
"""

from mycelia.proto.wire.refusals import Refusal


class MyceliaError(Exception):
    """Base of every error this project raises on purpose."""


class RemoteError(MyceliaError):
    """A peer sent something that the protocol does not allow. The peer is charged; the node continues."""

    def __init__(self, message: str, refusal: Refusal = Refusal.MALFORMED) -> None:
        super().__init__(message)
        self.refusal = refusal


class LocalError(MyceliaError):
    """The caller on this side asked for something impossible. The message says what to do instead."""


class LimitExceeded(MyceliaError):
    """A documented bound was reached; trying again later, or with less, may work."""
