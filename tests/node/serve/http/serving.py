"""Small applications behind HTTP connections, and requests of a client to them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from starlette.types import ASGIApp, Receive, Scope, Send

from mycelia.node.serve.http.places import admit
from mycelia.node.serve.http.server import bind_api, serve_http

DEADLINE_S = 30.0


async def body_of(receive: Receive) -> bytes:
    body, is_more = b"", True
    while is_more:
        message = await receive()
        assert message["type"] == "http.request"
        body, is_more = body + message["body"], message["more_body"]
    return body


async def reply(send: Send, body: bytes, status: int = 200, **headers: str) -> None:
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": given})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def connected(app: ASGIApp) -> AsyncIterator[trio.SocketStream]:
    """A client's end of a connection to ``app``, behind a gate that admits everything."""

    async def gate(scope: Scope, receive: Receive, send: Send) -> None:
        admit(scope, b"")
        await app(scope, receive, send)

    async with served(gate) as stream:
        yield stream


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[trio.SocketStream]:
    """A client's end of a connection to ``app``, without a gate."""
    listener = bind_api("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_http, app, listener)
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                yield stream
            nursery.cancel_scope.cancel()


def request(method: str, target: str, body: bytes = b"", **headers: str) -> bytes:
    given = {"Host": "x", "Content-Length": str(len(body))} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body


async def until(stream: trio.SocketStream, end: bytes, seen: bytes = b"") -> bytes:
    while not seen.endswith(end):
        data = await stream.receive_some()
        assert data, f"ended after {seen!r}"
        seen += data
    return seen


async def rest_of(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(data) async for data in stream])


async def dial(stream: trio.SocketStream, source: str = "127.0.0.1") -> trio.SocketStream:
    """One more connection to the server of ``stream``."""
    return await trio.open_tcp_stream("127.0.0.1", stream.socket.getpeername()[1], local_address=source)


@asynccontextmanager
async def closing(streams: Sequence[trio.SocketStream]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for stream in streams:
            await trio.aclose_forcefully(stream)
