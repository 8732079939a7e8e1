"""A leaving node finishes its HTTP answers."""

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from mycelia.node.requests.drain import Drain

log = structlog.get_logger()


class DrainMiddleware:
    """Each POST counts as work until its last byte is written; pages for watching do not."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            with self._drain.working():
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)
