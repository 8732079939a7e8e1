"""Request bodies, read within bounds, and the common parts of refusals."""

import math
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mycelia.node.errors import BusyError
from mycelia.node.serve.http.errors import BUSY_RETRY_S, HttpError
from mycelia.node.serve.http.inflate import inflated
from mycelia.node.serve.http.invalid import mistake
from mycelia.node.serve.http.places import hold, take_turn
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import MAX_CHAT_BYTES, Failed

MAX_BODY_BYTES = 6 * MAX_CHAT_BYTES + 65_536
"""JSON spells a control character with six bytes: any prompt that the command line accepts fits."""
MAX_CONTAINERS = 131_072
"""Opening brackets and braces in a body, also in its texts: a million empty arrays take 0.5 s and 65 MB to decode. A
chat of the largest size that is all program text has fewer."""
_TOO_LONG = f"the body has more than {MAX_BODY_BYTES} bytes"
STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
"""Headers of a response that comes piece by piece, which proxies must pass on as it comes."""

_Body = TypeVar("_Body", bound=msgspec.Struct)
Refusal = Callable[[str, int, str, int], Response]
"""(path, status, message, seconds after which to come again or 0) -> the response."""
Handler = Callable[[Request], Awaitable[Response]]


async def read_json(request: Request, kind: type[_Body]) -> _Body:
    """The body as ``kind``. Its bytes count as held until the request is done. Raises HttpError."""
    headers = dict(reversed(request.scope["headers"]))  # (of several equal ones the first counts)
    if headers.get(b"content-type") != b"application/json":
        _check_type(request.headers)
    if int(headers.get(b"content-length", 0)) > MAX_BODY_BYTES:
        raise HttpError(413, _TOO_LONG)
    body: bytes | bytearray = await _received(request)
    if encoding := headers.get(b"content-encoding", b"").decode("latin-1"):
        await take_turn(request.scope)
        body = inflated(bytes(body), encoding, MAX_BODY_BYTES)
        _hold(request, len(body))
    if body.startswith(_UTF8_MARK):
        body = body[len(_UTF8_MARK) :]
    if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        raise HttpError(413, f"the body has more than {MAX_CONTAINERS} brackets and braces")
    try:
        return _decoded(body, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        what = "it is UTF-16, send UTF-8" if body.startswith(_UTF16_MARKS) else mistake(exc, kind)
        raise HttpError(400, f"the body is not valid: {what}") from None


async def _received(request: Request) -> bytearray:
    body = bytearray()
    is_over = False
    while not is_over:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise HttpError(400, "the body ended early")
        chunk = message.get("body", b"")
        _hold(request, len(chunk))
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HttpError(413, _TOO_LONG)
        is_over = not message.get("more_body", False)
    return body


def _hold(request: Request, num_bytes: int) -> None:
    if not hold(request.scope, num_bytes):
        raise HttpError(503, "too many request bodies are held at once")


def _check_type(headers: Mapping[str, str]) -> None:
    """Raises HttpError for a body that is not declared as JSON, unless it comes from a program that declares it badly,
    as ``curl -d`` does. A web page can send the types below without asking first, and no others."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.endswith(("/json", "+json")):
        return
    if kind in _UNDECLARED and not _is_browser(headers):
        return
    raise HttpError(415, "the body must be JSON, declared as Content-Type: application/json")


_UNDECLARED = ("", "text/plain", "application/x-www-form-urlencoded")


def _is_browser(headers: Mapping[str, str]) -> bool:
    """Whether a web page may have sent the request. Pages cannot leave out all of these headers."""
    return any(name in headers for name in _OF_BROWSERS) or "mozilla" in headers.get("user-agent", "").lower()


_OF_BROWSERS = ("origin", "referer", "cookie", "sec-fetch-site", "sec-fetch-mode")
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def _decoded(body: bytes | bytearray, kind: type[_Body]) -> _Body:
    """Raises DecodeError, UnicodeDecodeError or RecursionError."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError:
        # (a client that cuts a text inside an emoji sends half of its escape)
        mended = _ESCAPE.sub(lambda found: b"\\ufffd" if found[1] else found[0], body)
        if mended == body:
            raise
        return msgspec.json.decode(mended, type=kind)


_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\(u[dD][89a-fA-F][0-9a-fA-F]{2})"
    rb"|(?:\\(?:[^u]|u(?![dD][89a-fA-F]))[^\\]*+)++",
    re.DOTALL,
)
"""A surrogate pair in JSON, a half of one (the group), or all from another escape to the next such place: a match for
each escape would block the event loop for 0.6 s in a body of the largest size."""


def retry_after(failed: Failed) -> tuple[bytes, bytes]:
    """The header, in whole seconds."""
    return b"retry-after", str(max(math.ceil(failed.retry_after_ms / 1000), 1)).encode()


def json_response(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def refusing(refuse: Callable[[HttpError], Response]) -> Callable[[Handler], Handler]:
    """A decorator that turns what a handler raises for a client's mistake into a response. refuse: makes its body, in
    the shape of an API."""

    def decorated(handler: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except HttpError as exc:
                refused = exc
            except BusyError as exc:
                refused = HttpError(429, str(exc), retry_s=max(math.ceil(exc.retry_s), BUSY_RETRY_S))
            except LocalError as exc:
                refused = HttpError(400, str(exc))
            response = refuse(refused)
            response.headers.update(refused.headers)
            return response

        return handle

    return decorated
