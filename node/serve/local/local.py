"""The local API of a node, for the command line and for programs on the same machine.

    POST /api/ask      a conversation in, the frames of its answer out as they come, one JSON object per line;
                       status 429 with Retry-After while all nodes are busy
    POST /api/tokenize the prompt tokens of a conversation
    GET  /api/state    the node and its peers
    GET  /api/models   the models of the swarm
    GET  /api/tree     the local radix tree

A body must be declared as JSON, which browsers do not send to another origin without asking it first.
"""

import secrets
from collections.abc import Sequence
from typing import Annotated, cast

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mycelia.node.serve.api import Api
from mycelia.node.serve.http.bodies import STREAM_HEADERS, json_response, read_json, refusing, retry_after
from mycelia.node.serve.http.disconnect import cancelled_at_disconnect
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.http.keys import client_of
from mycelia.node.views.frames import MAX_TIMEOUT_S, FailedView, frame_view
from mycelia.proto.admission.overload import OVERLOADED
from mycelia.proto.wire.codec import check_sampling
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import (
    MAX_CHAT_BYTES,
    MAX_CHAT_MESSAGES,
    MAX_SALT_CHARS,
    Ask,
    Begun,
    ChatMessage,
    Conversation,
    EntryFrame,
    Failed,
    Sampling,
)
from mycelia.proto.wire.messages import Route as RouteFrame

LOCAL_PREFIX = "/api/"
HOLD_S = 0.5
"""How long the status line of an answer waits for the first text. A node refuses within two round trips, and a refusal
can only be a status before the status line is sent. Later everything streams at once: so a long prefill shows where the
prompt went, and the client knows that a node has accepted it. A later refusal, of a prompt held at the entry node, is
the last line of the stream."""
DEFAULT_MAX_TOKENS = 256
_DEFAULTS = Sampling(max_tokens=DEFAULT_MAX_TOKENS)


class _Turn(msgspec.Struct, forbid_unknown_fields=True):
    role: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    content: Annotated[str, msgspec.Meta(max_length=MAX_CHAT_BYTES)]


class _Conversation(msgspec.Struct, forbid_unknown_fields=True):
    messages: Annotated[list[_Turn], msgspec.Meta(min_length=1, max_length=MAX_CHAT_MESSAGES)]


class _AskBody(_Conversation, forbid_unknown_fields=True):
    model: Annotated[str, msgspec.Meta(max_length=128)] = ""
    request_id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")] | None = None
    """The client's own random id for the request, to ask for its trace; without it, see the header x-request-id."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=MAX_TIMEOUT_S)] | None = None
    """A longer answer is cancelled and fails with code ``deadline``."""
    max_tokens: int = _DEFAULTS.max_tokens
    temperature: float = _DEFAULTS.temperature
    seed: int = _DEFAULTS.seed
    top_k: int = _DEFAULTS.top_k
    top_p: float = _DEFAULTS.top_p
    min_p: float = _DEFAULTS.min_p
    repeat_penalty: float = _DEFAULTS.repeat_penalty
    frequency_penalty: float = _DEFAULTS.frequency_penalty
    presence_penalty: float = _DEFAULTS.presence_penalty
    repeat_last_n: int = _DEFAULTS.repeat_last_n
    stop: tuple[str, ...] = _DEFAULTS.stop
    logprobs: int = _DEFAULTS.logprobs
    grammar: str = _DEFAULTS.grammar
    grammar_kind: str = _DEFAULTS.grammar_kind
    cache_salt: Annotated[str, msgspec.Meta(max_length=MAX_SALT_CHARS)] = ""
    """See ``Ask.cache_salt``."""
    reads_format: bool = False
    """See ``Ask.reads_format``."""

    def sampling(self) -> Sampling:
        """Raises LocalError that names the field out of bounds."""
        sampling = Sampling(**{name: getattr(self, name) for name in Sampling.__struct_fields__ if hasattr(self, name)})
        check_sampling(sampling)
        return sampling


def local_routes(api: Api) -> list[Route]:
    async def ask(request: Request) -> Response:
        body = await read_json(request, _AskBody)
        # (Starlette accepts any ASGI application as a response)
        return cast(Response, _Answer(api, _to_ask(body), body.timeout_s, client_of(request.scope)))

    async def tokenize(request: Request) -> Response:
        turns = _turns(await read_json(request, _Conversation))
        return json_response(await api.tokenize(Conversation(turns), client_of(request.scope)))

    async def state(_: Request) -> Response:
        return json_response(api.state())

    async def models(_: Request) -> Response:
        return json_response(await api.models())

    async def tree(request: Request) -> Response:
        try:
            return json_response(await api.tree(client_of(request.scope)))
        except LocalError as exc:
            raise HttpError(503, str(exc)) from exc

    refused = refusing(lambda exc: refusal(exc.status, exc.message, exc.retry_s))
    return [
        Route("/api/ask", refused(ask), methods=["POST"]),
        Route("/api/tokenize", refused(tokenize), methods=["POST"]),
        Route("/api/state", state),
        Route("/api/models", models),
        Route("/api/tree", refused(tree)),
    ]


def refusal(status: int, message: str, retry_s: int = 0) -> Response:
    """A refusal in the shape of this API's failures. retry_s: see ``HttpError``."""
    is_passing = status in (429, 503)
    return json_response(FailedView(OVERLOADED if is_passing else "bad_request", message, is_passing, retry_s), status)


class _Answer:
    """The frames of an answer as JSON lines. A client that disconnects cancels the request."""

    def __init__(self, api: Api, ask: Ask, timeout_s: float | None, client: bytes) -> None:
        self._api = api
        self._ask = ask
        self._timeout_s = timeout_s
        self._client = client

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        response = _LateResponse(send, self._ask.request_id)
        async with cancelled_at_disconnect(receive) as nursery:
            nursery.start_soon(response.begin_in_time)
            async with self._api.ask(self._ask, self._timeout_s, self._client) as frames:
                async for frame in frames:
                    await response.add(frame)
        await response.end()


class _LateResponse:
    """Holds back an answer's first routes, so that a refusal can be its status. See ``HOLD_S``."""

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self._request_id = request_id
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
                self._held.clear()  # (the routes led nowhere)
                await self._begin(429, [retry_after(frame)])
            self._held.append(msgspec.json.encode(frame_view(frame)) + b"\n")
            if not isinstance(frame, RouteFrame | Begun):
                await self._begin()
            if self._has_begun:
                await self._flush()

    async def end(self) -> None:
        await self._begin()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        if not self._has_begun:
            self._has_begun = True
            all_headers = [
                (b"content-type", b"application/x-ndjson"),
                (b"x-request-id", self._request_id.hex().encode()),
                *STREAM_HEADERS,
                *headers,
            ]
            await self._send({"type": "http.response.start", "status": status, "headers": all_headers})
            await self._flush()

    async def _flush(self) -> None:
        for line in self._held:
            await self._send({"type": "http.response.body", "body": line, "more_body": True})
        self._held.clear()


def _turns(body: _Conversation) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage(role=turn.role, content=turn.content) for turn in body.messages)


def _to_ask(body: _AskBody) -> Ask:
    return Ask(
        request_id=bytes.fromhex(body.request_id) if body.request_id else secrets.token_bytes(16),
        model=body.model,
        messages=_turns(body),
        sampling=body.sampling(),
        cache_salt=body.cache_salt,
        reads_format=body.reads_format,
    )
