"""Request bodies, read within bounds, and the common parts of refusals."""

import math
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import trio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from mycelia.node.serve.http.places import hold
from mycelia.proto.wire.messages import MAX_CHAT_BYTES, Failed

MAX_BODY_BYTES = 6 * MAX_CHAT_BYTES + 65_536
"""JSON spells a control character with six bytes: any prompt that the command line accepts fits."""
MAX_CONTAINERS = 131_072
"""Opening brackets and braces in a body, also in its texts: a million empty arrays take 0.5 s and 65 MB to decode. A
chat of the largest size that is all program text has fewer."""
BODY_DEADLINE_S = 30.0
BUSY_RETRY_S = 1

_Body = TypeVar("_Body", bound=msgspec.Struct)
Refusal = Callable[[str, int, str], Response]
"""(path, status, message) -> the response."""


@dataclass
class HttpError(Exception):
    """A request that is refused before any work on it."""

    status: int
    message: str
    code: str | None = None
    """For programs, if the status does not say enough."""
    param: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(BUSY_RETRY_S)} if self.status == 503 else {}


async def read_json(request: Request, kind: type[_Body]) -> _Body:
    """The body as ``kind``. Its bytes count as held until the request is done. Raises HttpError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HttpError(415, "the body must be application/json")
    body = bytearray()
    with trio.move_on_after(BODY_DEADLINE_S) as deadline:
        try:
            async with aclosing(request.stream()) as chunks:
                async for chunk in chunks:
                    if not hold(request.scope, len(chunk)):
                        raise HttpError(503, "too many request bodies are held at once")
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise HttpError(413, f"the body has more than {MAX_BODY_BYTES} bytes")
        except ClientDisconnect:
            raise HttpError(400, "the body ended early") from None
    if deadline.cancelled_caught:
        raise HttpError(408, f"the body did not arrive within {BODY_DEADLINE_S:.0f} s")
    if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        raise HttpError(413, f"the body has more than {MAX_CONTAINERS} brackets and braces")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise HttpError(400, f"the body is not valid: {exc}") from None


def retry_after(failed: Failed) -> tuple[bytes, bytes]:
    """The header, in whole seconds."""
    return b"retry-after", str(max(math.ceil(failed.retry_after_ms / 1000), 1)).encode()


def json_response(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
