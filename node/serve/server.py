"""HTTP connections of a node's gateway: a socket in, an ASGI application behind it.

The loop over connections is not Hypercorn's own: in that one an error of its parsers ends the server, and a client
that does not read holds the end of the node for ever.
"""

import ipaddress
import socket
from contextlib import suppress
from typing import cast

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, Framework
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp

from node.sockets import send_at_once, send_rest
from proto.errors import LocalError

log = structlog.get_logger()

WRITE_DEADLINE_S = 30.0
"""A client that reads nothing for this long is dropped."""
LINGER_S = 2.0
"""How long a connection that is over still takes what the client is sending."""
MAX_CONNECTIONS = 256
"""Far below the usual limit of 1,024 open files, which the peers' connections need too."""
MAX_HEAD_BYTES = 65_536


def bind_api(host: str, port: int) -> socket.socket:
    """A listening socket. Raises LocalError that says what to do when there is none to be had."""
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
    """Where programs on this machine reach it."""
    host, port = listener.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared with, not bound to
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address[4][0]).is_loopback for address in addresses)


async def serve_http(
    app: ASGIApp, listener: socket.socket, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve ``app`` until cancelled, on a socket from ``bind_api``. Closes it."""
    config = Config()
    config.errorlog = None
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    wrapped = wrap_app(cast(Framework, app), config.wsgi_max_body_size, "asgi")
    clients: set[_Client] = set()

    async def serve(stream: trio.SocketStream) -> None:
        if len(clients) >= MAX_CONNECTIONS:
            await stream.aclose()
            return
        client = _Client(stream)
        clients.add(client)
        try:
            as_stream = cast("trio.SSLStream[trio.SocketStream]", client)
            await TCPServer(wrapped, config, WorkerContext(None), ConnectionState({}), as_stream).run()
        except Exception:
            log.exception("api_connection_failed")
        finally:
            clients.discard(client)

    async with trio.open_nursery() as nursery:
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
        await nursery.start(trio.serve_listeners, serve, listeners)
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            for client in clients:
                client.socket.close()


class _Client:
    """A connection whose writes have a deadline (Hypercorn shields them from every cancellation), and that can be ended
    while the client still sends: closing a socket with unread bytes resets the connection, and the client would lose
    the very answer that refused them."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._reading = trio.Lock()
        self._is_ending = False
        self.socket = stream.socket
        self.send_eof = stream.send_eof

    async def receive_some(self, max_bytes: int) -> bytes:
        async with self._reading:
            data = await self._stream.receive_some(max_bytes)
            return b"" if self._is_ending else bytes(data)

    async def send_all(self, data: bytes) -> None:
        """Whole pieces, one at a time: Hypercorn sees to that."""
        try:
            rest = send_at_once(self.socket, data)
            if not rest:
                return
            with trio.move_on_after(WRITE_DEADLINE_S):
                await send_rest(self.socket, rest)
                return
        except OSError as exc:
            raise trio.BrokenResourceError("the client is gone") from exc
        self.socket.close()
        raise trio.BrokenResourceError("the client does not read")

    async def aclose(self) -> None:
        """May be called by several tasks; the connection ends when the client does or after LINGER_S."""
        self._is_ending = True
        with trio.move_on_after(LINGER_S), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            with suppress(trio.BusyResourceError):  # (another task is just doing the same)
                await self.send_eof()
            async with self._reading:
                while await self._stream.receive_some(65_536):
                    pass
        await self._stream.aclose()
