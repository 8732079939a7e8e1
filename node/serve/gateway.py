"""The local API of a node: HTTP on loopback, for the command line and for programs on the same machine.

    POST /api/ask      a conversation in, the frames of its answer out, one JSON object a line as they come
    POST /api/tokenize the prompt tokens of a conversation
    GET  /api/state    the node and its peers
    GET  /api/tree     the local radix tree

Requests that a web page could forge are refused: the Host must be local, and a body must say it is JSON, which a
browser does not send across origins without asking first.
"""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Protocol, TypeVar

import hypercorn.config
import hypercorn.trio
import msgspec
import trio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from node.views import FailedView, NodeState, TreeRowView, frame_view
from proto.errors import LocalError
from proto.messages import MAX_CHAT_BYTES, MAX_CHAT_MESSAGES, Ask, ChatMessage, EntryFrame, Sampling

MAX_BODY_BYTES = 2 * MAX_CHAT_BYTES
DEFAULT_MAX_TOKENS = 256


class Api(Protocol):
    """What the gateway needs of the node behind it."""

    def ask(self, ask: Ask) -> AbstractAsyncContextManager[AsyncIterator[EntryFrame]]: ...

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
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=131_072)] = DEFAULT_MAX_TOKENS
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0


def make_app(api: Api) -> Starlette:
    """The ASGI application in front of ``api``."""

    async def ask(request: Request) -> Response:
        body = await _read_json(request, _AskBody)
        if isinstance(body, Response):
            return body
        return StreamingResponse(_lines(api, _to_ask(body)), media_type="application/x-ndjson")

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
        return _json(await api.tree())

    return Starlette(
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
    """Serve until cancelled, on a socket from ``bind_loopback``. Closes it."""
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.accesslog = None
    config.errorlog = None
    config.graceful_timeout = 0.5
    config.h11_max_incomplete_size = 65_536
    async with trio.open_nursery() as nursery:
        await nursery.start(_serve, make_app(api), config)
        task_status.started()


async def _serve(
    app: Starlette,
    config: hypercorn.config.Config,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    await hypercorn.trio.serve(
        app,  # type: ignore[arg-type]
        config,
        shutdown_trigger=trio.sleep_forever,
        task_status=task_status,
    )


async def _lines(api: Api, ask: Ask) -> AsyncIterator[bytes]:
    """Frames as JSON lines. When the client goes away Starlette closes this generator, which cancels the request."""
    async with api.ask(ask) as frames:
        async for frame in frames:
            yield msgspec.json.encode(frame_view(frame)) + b"\n"


_Body = TypeVar("_Body", bound=msgspec.Struct)


async def _read_json(request: Request, kind: type[_Body]) -> _Body | Response:
    """The body as ``kind``, or the response that refuses it."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return _refused(415, "the body must be application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return _refused(413, f"the body is over {MAX_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as exc:
        return _refused(400, f"the body is not valid: {exc}")


def _refused(status: int, message: str) -> Response:
    return _json(FailedView("bad_request", message, False), status)


def _turns(body: _Conversation) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage(role=turn.role, content=turn.content) for turn in body.messages)


def _to_ask(body: _AskBody) -> Ask:
    return Ask(
        request_id=bytes(16),
        model=body.model,
        messages=_turns(body),
        sampling=Sampling(max_tokens=body.max_tokens, temperature=body.temperature, seed=body.seed),
    )


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
