"""The listening socket of a node's gateway, and its connections."""

import ipaddress
import socket
import ssl
from contextlib import suppress

import structlog
import trio
from starlette.types import ASGIApp

from mycelia.node.serve.http.errors import FULL
from mycelia.node.serve.http.http1 import HttpConnection
from mycelia.node.serve.http.places import HttpPlaces, subnet_of_socket
from mycelia.node.sockets import receive_some, send_at_once
from mycelia.proto.wire.errors import LocalError

log = structlog.get_logger()

MAX_CONNECTIONS = 256
"""Far below the usual limit of 1,024 open files, which peers' connections need too."""
MAX_REFUSING = 32
"""Further connections at once that get an answer with a retry time."""
REFUSE_S = 2.0
"""Time for a refused request to come and for its refusal to be read."""


def bind_api(host: str, port: int) -> socket.socket:
    """A listening socket. Raises LocalError with the remedy if there can be none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as exc:
        raise LocalError(f"cannot serve the API on {host!r}: it is no address of this machine (--api-host)") from exc
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
    except OSError as exc:
        listener.close()
        raise LocalError(
            f"cannot serve the API on {host}:{port}: {exc.strerror};"
            " choose another port with --api-port (0 takes any free one)"
        ) from exc
    return listener


def bind_other_loopback(listener: socket.socket) -> socket.socket | None:
    """A second listening socket beside ``listener`` on 127.0.0.1, as many programs try ::1 first for "localhost". None:
    ``listener`` is elsewhere, or there is no such address here."""
    host, port = listener.getsockname()[:2]
    if host != "127.0.0.1":
        return None
    try:
        return bind_api("::1", port)
    except LocalError:
        return None


def url_of(listener: socket.socket, is_encrypted: bool = False) -> str:
    host, port = listener.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared with, not bound to
    scheme = "https" if is_encrypted else "http"
    return f"{scheme}://[{local}]:{port}" if ":" in local else f"{scheme}://{local}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address[4][0]).is_loopback for address in addresses)


async def serve_http(
    app: ASGIApp,
    *listeners: socket.socket,
    context: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` until cancelled, on sockets from ``bind_api``. Closes them. context: connections are encrypted."""
    places = HttpPlaces(MAX_CONNECTIONS)
    refusing = trio.CapacityLimiter(MAX_REFUSING)

    async def serve(stream: trio.SocketStream) -> None:
        place = None
        with trio.CancelScope() as scope:
            try:
                place = places.enter(subnet_of_socket(stream.socket), scope.cancel)
                if place is not None:
                    await HttpConnection(app, stream, place, context).serve()
                elif context is None:
                    await _refuse(stream, refusing)
            except (OSError, trio.ClosedResourceError):
                pass  # (the client was gone before its connection was accepted)
            except Exception:
                log.exception("api_connection_failed")
            finally:
                if place is not None:
                    place.leave()
                stream.socket.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(places.turns.run)
        opened = [trio.SocketListener(trio.socket.from_stdlib_socket(listener)) for listener in listeners]
        await nursery.start(trio.serve_listeners, serve, opened)
        task_status.started()


async def _refuse(stream: trio.SocketStream, refusing: trio.CapacityLimiter) -> None:
    """Answers a connection that got no place, without parsing its request. If too many wait for that, it is closed
    without an answer. Raises OSError or ClosedResourceError."""
    with suppress(trio.WouldBlock):
        refusing.acquire_nowait()
        try:
            with trio.move_on_after(REFUSE_S):
                await receive_some(stream.socket, _REFUSED_BYTES)
                send_at_once(stream.socket, FULL)
                stream.socket.shutdown(trio.socket.SHUT_WR)
                while await receive_some(stream.socket, _REFUSED_BYTES):  # (closing with unread bytes resets it)
                    pass
        finally:
            refusing.release()


_REFUSED_BYTES = 65_536
