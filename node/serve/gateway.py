"""HTTP on every node: everything that a node serves, and which clients may use it.

Without keys, a node serves only its own machine and refuses what a web page could forge: the Host must be local, and no
page of another origin may send a request, even if it could not read the answer. With keys, every request must carry
one, and its origin does not matter. Only the page, which asks its reader for the key, and /health are open to all.
"""

import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mycelia.node.requests.drain import Drain
from mycelia.node.serve.anthropic.api import ANTHROPIC_PREFIX, anthropic_refusal, anthropic_routes
from mycelia.node.serve.api import Api
from mycelia.node.serve.api_keys import ApiKey
from mycelia.node.serve.http.bodies import json_response
from mycelia.node.serve.http.drain import DrainMiddleware
from mycelia.node.serve.http.errors import BUSY_RETRY_S
from mycelia.node.serve.http.keys import KeyGate, LocalGate
from mycelia.node.serve.http.limits import KeyLimits
from mycelia.node.serve.http.paths import UsualPaths, no_such_path
from mycelia.node.serve.http.server import serve_http
from mycelia.node.serve.local.local import LOCAL_PREFIX, local_routes, refusal
from mycelia.node.serve.local.observe import observe_routes
from mycelia.node.serve.local.owner import owner_routes
from mycelia.node.serve.local.page import PAGE, page_routes
from mycelia.node.serve.local.reload import reload_routes
from mycelia.node.serve.openai.api import openai_routes
from mycelia.node.serve.openai.errors import openai_refusal
from mycelia.node.serve.probes import LOADING, OPEN_PROBES, health_routes, probe_routes
from mycelia.node.serve.responses.api import responses_routes
from mycelia.node.telemetry.usage import UsageMeter
from mycelia.node.views.frames import FailedView
from mycelia.node.views.state import ReloadView

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
_PREFLIGHT_S = 7_200
"""Time for which browsers may keep the answer to a preflight; Chromium keeps none longer."""


@dataclass(frozen=True)
class Access:
    keys: tuple[ApiKey, ...] = ()
    """Any of them is accepted; empty: no key is needed, and only local Hosts are served."""
    origins: tuple[str, ...] = ()
    """Origins of web pages whose scripts may use the gateway."""
    hosts: tuple[str, ...] = ()
    """Names of this machine besides those of the loopback, which a request's Host may have when no key is needed."""


class Gateway:
    """The ASGI application of a node. Until ``open`` is called, it answers that the model is loading."""

    def __init__(self, access: Access = Access(), drain: Drain | None = None, usage: UsageMeter | None = None) -> None:
        """drain: counts the requests in progress. usage: what the keys have used, for their limits."""
        self._access = access
        self._drain = drain
        self._usage = usage or UsageMeter()
        self._limits = KeyLimits(access.keys, self._usage.tokens_today, time.monotonic, time.time)
        self._is_loading = True
        self._routes = [*health_routes(lambda: LOADING), *page_routes()]
        self._app = self._made()

    def open(self, api: Api, reload: Callable[[], ReloadView] | None = None) -> None:
        """Serve ``api`` from now on. reload: see ``reload_routes``; None: there is no such path. Mutates."""
        # (routes are tried in order)
        of_apis = [*openai_routes(api), *responses_routes(api), *anthropic_routes(api), *probe_routes(api)]
        self._routes = [*of_apis, *local_routes(api), *owner_routes(api), *observe_routes(api), *page_routes()]
        if reload is not None:
            self._routes += reload_routes(reload)
        self._is_loading = False
        self._app = self._made()

    def set_access(self, access: Access) -> None:
        """Other clients from now on. Requests that have begun are answered to their end. Mutates."""
        self._access = access
        self._limits.set_keys(access.keys)
        self._app = self._made()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self._app(scope, receive, send)

    def _made(self) -> Starlette:
        open_paths = [PAGE, *OPEN_PROBES]
        access = self._access
        if access.keys:
            gate = Middleware(
                KeyGate,
                keys=access.keys,
                limits=None if self._is_loading else self._limits,
                refusal=_refusal,
                on_limit=self._usage.refused,
                open_paths=open_paths,
            )
        else:
            gate = Middleware(
                LocalGate, refusal=_refusal, origins=access.origins, open_paths=open_paths, hosts=access.hosts
            )
        drain = None if self._is_loading else self._drain
        return _app(self._routes, access, gate, drain, self._is_loading)


def make_app(
    api: Api, access: Access = Access(), drain: Drain | None = None, usage: UsageMeter | None = None
) -> Gateway:
    """The ASGI application in front of ``api``. drain, usage: see ``Gateway``."""
    gateway = Gateway(access, drain, usage)
    gateway.open(api)
    return gateway


def _app(routes: list[Route], access: Access, gate: Middleware, drain: Drain | None, is_loading: bool) -> Starlette:
    middleware = [Middleware(UsualPaths)]
    if drain:
        middleware.append(Middleware(DrainMiddleware, drain=drain))
    if access.origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(access.origins),
                allow_methods=["GET", "HEAD", "POST", "DELETE"],
                allow_headers=["*"],  # (SDKs send many of their own, such as x-stainless-retry-count)
                allow_private_network=True,
                expose_headers=_HEADERS,
                max_age=_PREFLIGHT_S,
            )
        )
    middleware.append(gate)
    known = [route.path for route in routes]

    async def on_http_error(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        path, status, message = request.scope["path"], exc.status_code, exc.detail
        if status == 404 and is_loading:
            status, message = 503, "the node is loading its model: try again in a moment"
        elif status == 404:
            message = no_such_path(path, known)
        elif status == 405:
            message = f"{request.method} is not allowed for {path}: use {(exc.headers or {}).get('Allow', 'another')}"
        response = _refusal(path, status, message, BUSY_RETRY_S if status == 503 else 0)
        response.headers.update(exc.headers or {})
        return response

    app = Starlette(
        exception_handlers={HTTPException: on_http_error, Exception: _on_bug}, routes=routes, middleware=middleware
    )
    app.router.redirect_slashes = False
    return app


async def serve_gateway(
    api: Api,
    listener: socket.socket,
    access: Access = Access(),
    drain: Drain | None = None,
    usage: UsageMeter | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, on a socket from ``bind_api``. Closes it. drain, usage: see ``Gateway``."""
    await serve_http(make_app(api, access, drain, usage), listener, task_status=task_status)


def _refusal(path: str, status: int, message: str, retry_s: int = 0) -> Response:
    """A response in the shape of the API that ``path`` belongs to. retry_s: see ``HttpError``."""
    if path.startswith(LOCAL_PREFIX):
        response = refusal(status, message, retry_s)
    elif path.startswith(ANTHROPIC_PREFIX):
        response = anthropic_refusal(status, message)
    else:
        response = openai_refusal(status, message)
    if retry_s:
        response.headers["retry-after"] = str(retry_s)
    return response


async def _on_bug(request: Request, exc: Exception) -> Response:
    """An unexpected error fails its request and is logged."""
    log.error("api_request_failed", exc_info=exc)
    message = "an error inside the node; see its log"
    if request.scope["path"].startswith(LOCAL_PREFIX):
        return json_response(FailedView("internal", message, True), 500)
    return _refusal(request.scope["path"], 500, message)
