"""What the owner of the machine does with the node. API keys of others do not reach it.

POST /api/pause        {"for_s": 7200}, or {}: take no prompts of other nodes for this time, or until the next
POST /api/resume       which ends the pause
GET  /api/days?days=N  what the node gave and received in the last N days
"""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mycelia.node.guest.pausing import MAX_PAUSE_DAYS
from mycelia.node.serve.api import Api
from mycelia.node.serve.api_keys import is_owner
from mycelia.node.serve.http.bodies import json_response, read_json, refusing
from mycelia.node.serve.http.keys import client_of
from mycelia.node.serve.local.local import refusal
from mycelia.node.telemetry.days import MAX_DAYS
from mycelia.node.views.frames import FailedView
from mycelia.node.views.state import PausedView
from mycelia.proto.wire.errors import LocalError


class _Pause(msgspec.Struct, forbid_unknown_fields=True):
    for_s: Annotated[float, msgspec.Meta(gt=0, le=86_400 * MAX_PAUSE_DAYS)] | None = None


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


def owner_routes(api: Api) -> list[Route]:
    async def pause(request: Request) -> Response:
        body = await read_json(request, _Pause)
        return _now(lambda: api.pause(body.for_s))

    async def resume(request: Request) -> Response:
        await read_json(request, _Nothing)
        return _now(api.resume)

    async def days(request: Request) -> Response:
        wanted = request.query_params.get("days", "1")
        if not re.fullmatch("[0-9]{1,3}", wanted) or not 1 <= int(wanted) <= MAX_DAYS:
            return refusal(400, f"days must be a number from 1 to {MAX_DAYS}")
        return json_response(api.days(int(wanted)))

    refused = refusing(lambda exc: refusal(exc.status, exc.message, exc.retry_s))
    return [
        Route("/api/pause", refused(_only_owner(pause)), methods=["POST"]),
        Route("/api/resume", refused(_only_owner(resume)), methods=["POST"]),
        Route("/api/days", _only_owner(days)),
    ]


_Endpoint = Callable[[Request], Awaitable[Response]]


def _only_owner(endpoint: _Endpoint) -> _Endpoint:
    async def checked(request: Request) -> Response:
        if not is_owner(client_of(request.scope)):
            return refusal(403, "this is for commands on the node's own machine, not for API keys")
        return await endpoint(request)

    return checked


def _now(change: Callable[[], str]) -> Response:
    try:
        return json_response(PausedView(change()))
    except LocalError as exc:
        return json_response(FailedView("internal", str(exc), False), 500)
