"""HTTP on every node: everything that is served there, and who may ask for it.

Requests that a web page could forge are refused: the Host must be local.
"""

import socket

import structlog
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response

from node.serve.api import Api
from node.serve.bodies import json_response
from node.serve.local_api import local_routes, refusal
from node.serve.server import serve_http
from node.views import FailedView

log = structlog.get_logger()


def make_app(api: Api) -> Starlette:
    """The ASGI application in front of ``api``."""
    return Starlette(
        exception_handlers={HTTPException: _on_http_error, Exception: _on_bug},
        routes=local_routes(api),
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])],
    )


async def serve_gateway(
    api: Api, listener: socket.socket, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled, on a socket from ``bind_loopback``. Closes it."""
    await serve_http(make_app(api), listener, task_status)


async def _on_http_error(_: Request, exc: Exception) -> Response:
    """No such path, wrong method."""
    assert isinstance(exc, HTTPException)
    response = refusal(exc.status_code, exc.detail)
    response.headers.update(exc.headers or {})
    return response


async def _on_bug(_: Request, exc: Exception) -> Response:
    """An error that nothing expected costs its request, and is told in the log."""
    log.error("api_request_failed", exc_info=exc)
    return json_response(FailedView("internal", "an error inside the node; its log says more", True), 500)
