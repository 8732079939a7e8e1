"""HTTP on every node: everything that a node serves, and which clients may use it.

Without keys, a node serves only its own machine and refuses what a web page could forge: the Host must be local, and no
page of another origin may send a request, even if it could not read the answer. With keys, every request must carry
one, and its origin does not matter. Only the page itself, which asks its reader for the key, is open to all.
"""

import socket
from dataclasses import dataclass

import structlog
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from mycelia.node.drain import Drain
from mycelia.node.serve.api import Api
from mycelia.node.serve.http.bodies import json_response
from mycelia.node.serve.http.drain import DrainMiddleware
from mycelia.node.serve.http.keys import KeyGate, LocalGate
from mycelia.node.serve.http.server import serve_http
from mycelia.node.serve.local.local import local_routes, refusal
from mycelia.node.serve.local.observe import observe_routes
from mycelia.node.serve.local.page import PAGE, page_routes
from mycelia.node.serve.openai.api import PREFIX, openai_refusal, openai_routes
from mycelia.node.views import FailedView

log = structlog.get_logger()

_HEADERS = [
    "x-mycelia-served-by",
    "x-mycelia-cached-tokens",
    "x-mycelia-ttft-ms",
    "x-mycelia-route",
    "x-request-id",
    "retry-after",
]
"""Response headers that scripts of web pages may read."""


@dataclass(frozen=True)
class Access:
    keys: tuple[str, ...] = ()
    """Any of them is accepted; empty: no key is needed, and only local Hosts are served."""
    origins: tuple[str, ...] = ()
    """Origins of web pages whose scripts may use the gateway."""


def make_app(api: Api, access: Access = Access(), drain: Drain | None = None) -> Starlette:
    """The ASGI application in front of ``api``. drain: counts the requests in progress."""
    middleware = [Middleware(DrainMiddleware, drain=drain)] if drain else []
    if access.origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(access.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type"],
                expose_headers=_HEADERS,
            )
        )
    if access.keys:
        middleware.append(Middleware(KeyGate, keys=access.keys, refusal=_refusal, open_paths=[PAGE]))
    else:
        middleware.append(Middleware(LocalGate, refusal=_refusal, origins=access.origins, open_paths=[PAGE]))
    return Starlette(
        exception_handlers={HTTPException: _on_http_error, Exception: _on_bug},
        routes=[*openai_routes(api), *local_routes(api), *observe_routes(api), *page_routes()],  # (tried in order)
        middleware=middleware,
    )


async def serve_gateway(
    api: Api,
    listener: socket.socket,
    access: Access = Access(),
    drain: Drain | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, on a socket from ``bind_api``. Closes it. drain: see ``make_app``."""
    await serve_http(make_app(api, access, drain), listener, task_status)


def _refusal(path: str, status: int, message: str) -> Response:
    """A response in the shape of the API that ``path`` belongs to."""
    if path.startswith(PREFIX):
        return openai_refusal(status, message)
    return refusal(status, message)


async def _on_http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    response = _refusal(request.scope["path"], exc.status_code, exc.detail)
    response.headers.update(exc.headers or {})
    return response


async def _on_bug(request: Request, exc: Exception) -> Response:
    """An unexpected error fails its request and is logged."""
    log.error("api_request_failed", exc_info=exc)
    message = "an error inside the node; see its log"
    if request.scope["path"].startswith(PREFIX):
        return openai_refusal(500, message)
    return json_response(FailedView("internal", message, True), 500)
