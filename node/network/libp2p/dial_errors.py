"""The reason why a dial failed, in words for users: libp2p wraps the errors of its layers in each other."""

import errno
import os
from collections.abc import Iterator

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey

from mycelia.node.network.names import NameFailure

SILENT = errno.ETIMEDOUT
"""The error of a host that does not answer. A deadline that passes later means that it does, and then says nothing."""
_OF_SYSTEM = {
    SILENT: ("no answer", "the node is switched off, its address has changed, or a firewall drops what is sent there"),
    errno.ECONNREFUSED: ("connection refused", "no node listens there: start it, or correct the port"),
    errno.EHOSTUNREACH: ("no machine has this address", "check the address, and whether this machine is online"),
    errno.ENETUNREACH: (
        "no route leads there",
        "connect this machine to a network that leads there",
    ),
}
_OTHER_NODE = ("answers with another peer id: the address is old", "replace it by the one that the node prints now")
_NO_NODE = (
    "speaks no libp2p, or has another swarm key",
    "check the port, and that both have the same --swarm-key",
)


def explained(exc: BaseException) -> tuple[str, str]:
    """What happened, and what the user can do about it; empty: unknown."""
    causes = list(_causes(exc))
    last = causes[-1]
    if any(isinstance(one, PeerIDMismatchesPubkey) or "Peer ID mismatch" in str(one) for one in causes):
        return _OTHER_NODE
    match last:
        case NameFailure():
            return str(last), last.fix
        case OSError(errno=int(number)) if number in _OF_SYSTEM:
            return _OF_SYSTEM[number]
        case trio.TooSlowError():
            return f"accepts the connection and then says nothing: it {_NO_NODE[0]}", _NO_NODE[1]
        case BaseLibp2pError() if is_handshake(causes):
            return _NO_NODE
        case _:
            return root_cause(exc), ""


def is_handshake(causes: list[BaseException]) -> bool:
    """Whether the peer was reached and the layers above did not agree."""
    return any("failed to upgrade" in str(one) for one in causes)


def is_silent(exc: BaseException) -> bool:
    """Whether nothing was received from the other end."""
    *_, last = _causes(exc)
    return isinstance(last, trio.TooSlowError) or (isinstance(last, OSError) and last.errno == SILENT)


def root_cause(exc: BaseException) -> str:
    """The text of the last error in a chain of causes."""
    *_, last = _causes(exc)
    if isinstance(last, trio.TooSlowError):
        return "no answer in time"
    if isinstance(last, OSError) and last.errno:
        return os.strerror(last.errno)
    return str(last).splitlines()[0][:200] if str(last) else type(last).__name__


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """The error and the causes of it, the deepest last."""
    while True:
        yield exc
        deeper = exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc.__cause__
        if deeper is None:
            return
        exc = deeper
