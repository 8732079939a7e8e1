"""What answers with vectors and with ranks have in common: the end of their work, and their failures."""

from abc import ABC, abstractmethod
from typing import Any

from starlette.types import Receive, Scope, Send

from mycelia.node.requests.failures import failed_of
from mycelia.node.serve.api import Embedded
from mycelia.node.serve.http.bodies import json_response
from mycelia.node.serve.http.disconnect import cancelled_at_disconnect
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.openai.errors import error_body, openai_refusal, status_of
from mycelia.proto.wire.errors import LocalError


class VectorAnswer(ABC):
    """An ASGI application. A client that disconnects cancels its request."""

    @abstractmethod
    async def make(self) -> Embedded:
        """Raises LocalError, also as BusyError and FailedError."""

    @abstractmethod
    async def shape(self, made: Embedded) -> Any:
        """The body of the response. Raises HttpError."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = None
        async with cancelled_at_disconnect(receive):
            response = await self._response()
        if response is not None:  # (otherwise the client is gone)
            await response(scope, receive, send)

    async def _response(self) -> Any:
        try:
            return json_response(await self.shape(await self.make()))
        except HttpError as exc:
            return openai_refusal(exc.status, exc.message, exc.code, exc.param)
        except LocalError as exc:
            failed = failed_of(exc)
        status, headers = status_of(failed)
        response = json_response(error_body(failed), status)
        response.headers.update({name.decode(): value.decode() for name, value in headers})
        return response
