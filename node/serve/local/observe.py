"""The reports of a working node about itself, for its page, for users and for Prometheus.

GET /api/requests      the last requests that entered here, the newest last
GET /api/trace/ID      one request's steps at all nodes; the first digits of its id are enough
GET /api/links         the connections of this node's peers
GET /api/events        the state each second and every change of a request, as server-sent events
GET /api/usage?days=N  what the API keys used in the last N days
GET /metrics           for Prometheus
"""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mycelia.node.serve.api import Api
from mycelia.node.serve.http.bodies import STREAM_HEADERS, json_response
from mycelia.node.serve.http.disconnect import cancelled_at_disconnect
from mycelia.node.serve.http.errors import BUSY_RETRY_S
from mycelia.node.serve.http.keys import client_of
from mycelia.node.serve.local.local import refusal
from mycelia.node.telemetry.usage import MAX_DAYS
from mycelia.node.views.frames import FailedView
from mycelia.proto.admission.subnets import Places, of_client

MAX_STREAMS = 16
"""Event streams at once, one for each open page. A key has three quarters of them at most."""
MAX_TRACES = 4
"""Traces at once: each asks up to 16 nodes."""
STATE_EVERY_S = 1.0
LEAST_BETWEEN_S = 0.1
"""Changes of requests within this time are sent together."""
MIN_ID_CHARS = 6


def observe_routes(api: Api) -> list[Route]:
    streams = Places(MAX_STREAMS, per_key=MAX_STREAMS)
    tracing = trio.CapacityLimiter(MAX_TRACES)
    reading = trio.CapacityLimiter(1)

    async def requests(_: Request) -> Response:
        return json_response(api.recent_requests())

    async def trace(request: Request) -> Response:
        prefix = str(request.path_params["id"]).lower()
        if len(prefix) < MIN_ID_CHARS:
            return _not_found(f"give at least {MIN_ID_CHARS} digits of the request's id")
        async with tracing:
            told = await api.trace(prefix)
        return _not_found("this id fits no known request, or several") if told is None else json_response(told)

    async def links(_: Request) -> Response:
        return json_response(await api.links())

    async def events(request: Request) -> Response:
        return cast(Response, _EventStream(api, streams, client_of(request.scope)))

    async def usage(request: Request) -> Response:
        days = request.query_params.get("days", "1")
        if not re.fullmatch("[0-9]{1,3}", days) or not 1 <= int(days) <= MAX_DAYS:
            return refusal(400, f"days must be a number from 1 to {MAX_DAYS}")
        async with reading:
            return json_response(await api.usage(int(days)))

    async def metrics(_: Request) -> Response:
        return Response(api.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return [
        Route("/api/requests", requests),
        Route("/api/trace/{id}", trace),
        Route("/api/links", links),
        Route("/api/events", events),
        Route("/api/usage", usage),
        Route("/metrics", metrics),
    ]


def _not_found(message: str) -> Response:
    return json_response(FailedView("not_found", message, False), 404)


class _EventStream:
    def __init__(self, api: Api, streams: Places, client: bytes) -> None:
        self._api = api
        self._streams = streams
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        share = of_client(self._client)
        if not self._streams.take(self._client, share, is_known=not self._client):
            message = f"too many event streams are open: at most {MAX_STREAMS}, and fewer for one key"
            await refusal(503, message, BUSY_RETRY_S)(scope, receive, send)
            return
        try:
            await self._send_events(receive, send)
        finally:
            self._streams.free(self._client, share)

    async def _send_events(self, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream"), *STREAM_HEADERS]
        async with cancelled_at_disconnect(receive):
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async with aclosing(_events(self._api)) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})


async def _events(api: Api) -> AsyncGenerator[bytes, None]:
    """Changed rows, LEAST_BETWEEN_S apart or more, and the state every STATE_EVERY_S."""
    known = {row.id: row for row in api.recent_requests()}
    version = 0
    state_at = trio.current_time()
    while True:
        if trio.current_time() >= state_at:
            yield _event("state", api.state())
            state_at = trio.current_time() + STATE_EVERY_S
        rows = {row.id: row for row in api.recent_requests()}
        for row in rows.values():
            if row != known.get(row.id):
                yield _event("request", row)
        known = rows
        await trio.sleep(LEAST_BETWEEN_S)
        with trio.move_on_at(state_at):
            version = await api.requests_changed(version)


def _event(name: str, value: object) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"
