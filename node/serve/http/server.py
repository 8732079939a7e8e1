"""The listening socket of a node's gateway, and its connections."""

import ipaddress
import socket

import structlog
import trio
from starlette.types import ASGIApp

from mycelia.node.serve.http.http1 import HttpConnection
from mycelia.node.serve.http.places import HttpPlaces, subnet_of_socket
from mycelia.proto.wire.errors import LocalError

log = structlog.get_logger()

MAX_CONNECTIONS = 256
"""Far below the usual limit of 1,024 open files, which peers' connections need too."""


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


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared with, not bound to
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address[4][0]).is_loopback for address in addresses)


async def serve_http(
    app: ASGIApp, listener: socket.socket, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve ``app`` until cancelled, on a socket from ``bind_api``. Closes it."""
    places = HttpPlaces(MAX_CONNECTIONS)

    async def serve(stream: trio.SocketStream) -> None:
        place = None
        with trio.CancelScope() as scope:
            try:
                place = places.enter(subnet_of_socket(stream.socket), scope.cancel)
                if place is not None:
                    await HttpConnection(app, stream, place).serve()
            except OSError:
                pass  # (the client was gone before its connection was accepted)
            except Exception:
                log.exception("api_connection_failed")
            finally:
                if place is not None:
                    place.leave()
                stream.socket.close()

    async with trio.open_nursery() as nursery:
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
        await nursery.start(trio.serve_listeners, serve, listeners)
        task_status.started()
