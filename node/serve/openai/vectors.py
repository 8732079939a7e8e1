"""What answers with vectors and with ranks have in common: the end of their work, and their failures."""

import math
from abc import ABC, abstractmethod
from typing import Any

from starlette.types import Receive, Scope, Send

from mycelia.node.errors import BusyError, FailedError
from mycelia.node.serve.api import Embedded
from mycelia.node.serve.http.bodies import json_response
from mycelia.node.serve.http.disconnect import cancelled_at_disconnect
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.openai.errors import error_body, openai_refusal, status_of
from mycelia.proto.admission.shares import MAX_RETRY_S
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Failed

RETRY_MS = 1_000
"""Used when no better time is known."""


class VectorAnswer(ABC):
    """An ASGI application. A client that disconnects cancels its request."""

    @abstractmethod
    async def make(self) -> Embedded:
        """Raises LocalError, also as BusyError and FailedError."""

    @abstractmethod
    def shape(self, made: Embedded) -> Any:
        """The body of the response. Raises HttpError."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = None
        async with cancelled_at_disconnect(receive):
            response = await self._response()
        if response is not None:  # (otherwise the client is gone)
            await response(scope, receive, send)

    async def _response(self) -> Any:
        try:
            return json_response(self.shape(await self.make()))
        except HttpError as exc:
            return openai_refusal(exc.status, exc.message, exc.code, exc.param)
        except LocalError as exc:
            failed = _failed(exc)
        status, headers = status_of(failed)
        response = json_response(error_body(failed), status)
        response.headers.update({name.decode(): value.decode() for name, value in headers})
        return response


def _failed(exc: LocalError) -> Failed:
    if isinstance(exc, BusyError):
        retry_ms = math.ceil(1_000 * min(exc.retry_s, MAX_RETRY_S)) or RETRY_MS
        return Failed(code="overloaded", message=str(exc), retryable=True, retry_after_ms=retry_ms)
    code = exc.code if isinstance(exc, FailedError) else "bad_request"
    return Failed(code=code, message=str(exc), retryable=False)
