"""Errors as messages to clients and peers."""

import math

from mycelia.node.errors import BusyError, FailedError
from mycelia.proto.admission.overload import OVERLOADED
from mycelia.proto.admission.shares import MAX_RETRY_S
from mycelia.proto.wire.errors import LocalError, RemoteError
from mycelia.proto.wire.messages import Failed


def failed_of(exc: LocalError | RemoteError) -> Failed:
    """The message for an error, as long as a message may be."""
    message = str(exc)[:512]
    if isinstance(exc, BusyError):
        return Failed(code=OVERLOADED, message=message, retryable=True, retry_after_ms=retry_after_ms(exc.retry_s))
    code = exc.code if isinstance(exc, FailedError) else "bad_request"
    return Failed(code=code, message=message, retryable=code == "no_peer")


def retry_after_ms(retry_s: float) -> int:
    return math.ceil(1_000 * min(retry_s, MAX_RETRY_S))
