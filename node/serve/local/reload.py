"""POST /api/reload: the node reads its configuration again. For commands on its machine alone."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mycelia.node.serve.api_keys import is_owner
from mycelia.node.serve.http.bodies import json_response
from mycelia.node.serve.http.keys import client_of
from mycelia.node.views.frames import FailedView
from mycelia.node.views.state import ReloadView
from mycelia.proto.wire.errors import LocalError


def reload_routes(reload: Callable[[], ReloadView]) -> list[Route]:
    """reload: raises LocalError when the configuration cannot be used."""

    async def post(request: Request) -> Response:
        if not is_owner(client_of(request.scope)):
            return json_response(
                FailedView("bad_request", "only commands on the node's machine may do that", False), 403
            )
        try:
            return json_response(reload())
        except LocalError as exc:
            return json_response(FailedView("bad_request", str(exc), False), 422)

    return [Route("/api/reload", post, methods=["POST"])]
