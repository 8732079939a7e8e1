"""Failures in OpenAI's shape, with the status codes that its clients act on: they retry 408, 409, 429 and 5xx."""

from starlette.responses import Response

from mycelia.node.serve.http.bodies import json_response, refusing, retry_after
from mycelia.node.serve.openai.response_types import Error, Errors
from mycelia.proto.wire.messages import Failed

_STATUS = {
    "bad_request": 400,
    "too_long": 400,
    "unknown_model": 404,
    "overloaded": 429,
    "deadline": 504,
    "timeout": 504,
    "no_peer": 503,
    "leaving": 503,
    "engine_lost": 503,
}
"""The status for each failure of a request; 500 for any other."""
_CODES = {
    "too_long": "context_length_exceeded",
    "unknown_model": "model_not_found",
    "overloaded": "rate_limit_exceeded",
}
"""OpenAI's names for the same failures."""
_STATUS_CODES = {429: "rate_limit_exceeded"}
"""The codes of failures that have none of their own."""
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def status_of(failed: Failed) -> tuple[int, list[tuple[bytes, bytes]]]:
    """The status of a failure, and its headers."""
    status = _STATUS.get(failed.code, 500)
    return status, [retry_after(failed)] if status in (429, 503) else []


def error_body(failed: Failed) -> Errors:
    status = _STATUS.get(failed.code, 500)
    return errors(status, failed.message, _CODES.get(failed.code, failed.code))


def errors(status: int, message: str, code: str | None = None, param: str | None = None) -> Errors:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return Errors(Error(message, kind, code or _STATUS_CODES.get(status), param))


def openai_refusal(status: int, message: str, code: str | None = None, param: str | None = None) -> Response:
    """A refusal in the shape of this API's errors."""
    return json_response(errors(status, message, code, param), status)


refusing_openai = refusing(lambda exc: openai_refusal(exc.status, exc.message, exc.code, exc.param))
