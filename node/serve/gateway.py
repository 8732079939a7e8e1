"""The local API of a node: HTTP on loopback, for the command line and for programs on the same machine.

    POST /api/ask      a conversation in, the frames of its answer out, one JSON object a line as they come; or status
                       429 with Retry-After while all nodes are busy
    POST /api/tokenize the prompt tokens of a conversation
    GET  /api/state    the node and its peers
    GET  /api/tree     the local radix tree

Requests that a web page could forge are refused: the Host must be local, and a body must say it is JSON, which a
browser does not send across origins without asking first.
"""

import math
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from typing import Annotated, Protocol, TypeVar, cast

import msgspec
import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, Framework
from hypercorn.utils import wrap_app
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from node.sockets import send_at_once, send_rest
from node.views import MAX_TIMEOUT_S, FailedView, NodeState, TreeRowView, frame_view
from proto.codec import check_sampling
from proto.errors import LocalError
from proto.messages import MAX_CHAT_BYTES, MAX_CHAT_MESSAGES, Ask, ChatMessage, EntryFrame, Failed, Sampling
from proto.messages import Route as RouteFrame
from proto.overload import OVERLOADED

log = structlog.get_logger()

MAX_BODY_BYTES = 6 * MAX_CHAT_BYTES + 65_536
"""JSON spells a control character with six bytes: whatever prompt the command line takes fits."""
BODY_DEADLINE_S = 30.0
WRITE_DEADLINE_S = 30.0
"""A client that reads nothing for this long is dropped."""
HOLD_S = 0.5
"""How long the status line of an answer waits for the first text: a node refuses within two round trips, and only
before the status line can a refusal be a status. Later everything streams at once, so that a long prefill shows where
the prompt went; a refusal that comes still later is the last line of the stream."""
LINGER_S = 2.0
"""How long a connection that is over still takes what the client is sending."""
MAX_CONNECTIONS = 256
"""Far below the usual limit of 1,024 open files, which the peers' connections need too."""
DEFAULT_MAX_TOKENS = 256


class Api(Protocol):
    """What the gateway needs of the node behind it."""

    def ask(self, ask: Ask, deadline_s: float | None) -> AbstractAsyncContextManager[AsyncIterator[EntryFrame]]:
        """deadline_s: what the answer may take; None: any time."""
        ...

    def state(self) -> NodeState: ...

    async def tree(self) -> list[TreeRowView]: ...

    async def tokenize(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Raises LocalError for a conversation that the model's template refuses."""
        ...


class _Turn(msgspec.Struct, forbid_unknown_fields=True):
    role: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    content: Annotated[str, msgspec.Meta(max_length=MAX_CHAT_BYTES)]


class _Conversation(msgspec.Struct, forbid_unknown_fields=True):
    messages: Annotated[list[_Turn], msgspec.Meta(min_length=1, max_length=MAX_CHAT_MESSAGES)]


class _AskBody(_Conversation, forbid_unknown_fields=True):
    model: Annotated[str, msgspec.Meta(max_length=128)] = ""
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=MAX_TIMEOUT_S)] | None = None
    """The answer is cancelled when it takes longer, and fails with code ``deadline``."""
    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float = 0.0
    seed: int = 0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    stop: tuple[str, ...] = ()
    logprobs: int = 0
    grammar: str = ""
    grammar_kind: str = "gbnf"

    def sampling(self) -> Sampling:
        """Raises LocalError that names the field out of bounds."""
        names = [field.name for field in msgspec.structs.fields(Sampling)]
        sampling = Sampling(**{name: getattr(self, name) for name in names})
        check_sampling(sampling)
        return sampling


def make_app(api: Api) -> Starlette:
    """The ASGI application in front of ``api``."""

    async def ask(request: Request) -> Response:
        body = await _read_json(request, _AskBody)
        if isinstance(body, Response):
            return body
        try:
            ask = _to_ask(body)
        except LocalError as exc:
            return _refused(400, str(exc))
        return cast(
            Response, _Answer(api, ask, body.timeout_s)
        )  # (Starlette takes any ASGI application for a response)

    async def tokenize(request: Request) -> Response:
        body = await _read_json(request, _Conversation)
        if isinstance(body, Response):
            return body
        try:
            return _json(await api.tokenize(_turns(body)))
        except LocalError as exc:
            return _refused(400, str(exc))

    async def state(_: Request) -> Response:
        return _json(api.state())

    async def tree(_: Request) -> Response:
        try:
            return _json(await api.tree())
        except LocalError as exc:
            return _json(FailedView("overloaded", str(exc), True), 503)

    return Starlette(
        exception_handlers={HTTPException: _on_http_error, Exception: _on_bug},
        routes=[
            Route("/api/ask", ask, methods=["POST"]),
            Route("/api/tokenize", tokenize, methods=["POST"]),
            Route("/api/state", state),
            Route("/api/tree", tree),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])],
    )


def bind_loopback(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1. Raises LocalError that says what to do when the port is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError as exc:
        listener.close()
        raise LocalError(
            f"cannot serve the local API on 127.0.0.1:{port}: {exc.strerror};"
            " choose another port with --api-port (0 takes any free one)"
        ) from exc
    return listener


async def serve_gateway(
    api: Api, listener: socket.socket, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled, on a socket from ``bind_loopback``. Closes it.

    The loop over connections is not Hypercorn's own: in that one an error of its parsers ends the server, and a client
    that does not read holds the end of the node for ever.
    """
    config = Config()
    config.errorlog = None
    config.h11_max_incomplete_size = 65_536
    app = wrap_app(cast(Framework, make_app(api)), config.wsgi_max_body_size, "asgi")
    clients: set[_Client] = set()

    async def serve(stream: trio.SocketStream) -> None:
        if len(clients) >= MAX_CONNECTIONS:
            await stream.aclose()
            return
        client = _Client(stream)
        clients.add(client)
        try:
            as_stream = cast("trio.SSLStream[trio.SocketStream]", client)
            await TCPServer(app, config, WorkerContext(None), ConnectionState({}), as_stream).run()
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


class _Answer:
    """The frames of an answer as JSON lines. A client that goes away cancels the request."""

    def __init__(self, api: Api, ask: Ask, timeout_s: float | None) -> None:
        self._api = api
        self._ask = ask
        self._timeout_s = timeout_s

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        async def watch(scope: trio.CancelScope) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            scope.cancel()

        response = _LateResponse(send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            nursery.start_soon(response.begin_in_time)
            async with self._api.ask(self._ask, self._timeout_s) as frames:
                async for frame in frames:
                    await response.add(frame)
            nursery.cancel_scope.cancel()
        # (not above: the end of the response reads as a disconnect too, and would break off its own tidying up)
        await response.end()


class _LateResponse:
    """Holds an answer's first routes back for HOLD_S at most, so that a refusal can be its status. See ``HOLD_S``."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[bytes] = []
        self._has_begun = False
        self._sending = trio.Lock()

    async def begin_in_time(self) -> None:
        await trio.sleep(HOLD_S)
        async with self._sending:
            await self._begin()

    async def add(self, frame: EntryFrame) -> None:
        async with self._sending:
            if isinstance(frame, Failed) and frame.code == OVERLOADED and not self._has_begun:
                self._held.clear()  # (nothing came of the routes)
                await self._begin(429, [(b"retry-after", str(_whole_seconds(frame)).encode())])
            self._held.append(msgspec.json.encode(frame_view(frame)) + b"\n")
            if not isinstance(frame, RouteFrame):
                await self._begin()
            if self._has_begun:
                await self._flush()

    async def end(self) -> None:
        await self._begin()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        if not self._has_begun:
            self._has_begun = True
            all_headers = [(b"content-type", b"application/x-ndjson"), *headers]
            await self._send({"type": "http.response.start", "status": status, "headers": all_headers})
            await self._flush()

    async def _flush(self) -> None:
        for line in self._held:
            await self._send({"type": "http.response.body", "body": line, "more_body": True})
        self._held.clear()


def _whole_seconds(failed: Failed) -> int:
    """For Retry-After, which knows no parts of seconds."""
    return max(math.ceil(failed.retry_after_ms / 1000), 1)


_Body = TypeVar("_Body", bound=msgspec.Struct)


async def _read_json(request: Request, kind: type[_Body]) -> _Body | Response:
    """The body as ``kind``, or the response that refuses it."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return _refused(415, "the body must be application/json")
    body = bytearray()
    with trio.move_on_after(BODY_DEADLINE_S) as deadline:
        try:
            async with aclosing(request.stream()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        return _refused(413, f"the body is over {MAX_BODY_BYTES} bytes")
        except ClientDisconnect:
            return _refused(400, "the body broke off")
    if deadline.cancelled_caught:
        return _refused(408, f"the body did not arrive within {BODY_DEADLINE_S:.0f} s")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        return _refused(400, f"the body is not valid: {exc}")


async def _on_http_error(_: Request, exc: Exception) -> Response:
    """No such path, wrong method."""
    assert isinstance(exc, HTTPException)
    response = _refused(exc.status_code, exc.detail)
    response.headers.update(exc.headers or {})
    return response


async def _on_bug(_: Request, exc: Exception) -> Response:
    """An error that nothing expected costs its request, and is told in the log."""
    log.error("api_request_failed", exc_info=exc)
    return _json(FailedView("internal", "an error inside the node; its log says more", True), 500)


def _refused(status: int, message: str) -> Response:
    return _json(FailedView("bad_request", message, False), status)


def _turns(body: _Conversation) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage(role=turn.role, content=turn.content) for turn in body.messages)


def _to_ask(body: _AskBody) -> Ask:
    return Ask(
        request_id=bytes(16),
        model=body.model,
        messages=_turns(body),
        sampling=body.sampling(),
    )


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
