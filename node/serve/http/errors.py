"""Requests that are refused before any work on them, and the bytes of such refusals below the application."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

BUSY_RETRY_S = 1


@dataclass
class HttpError(Exception):
    """A request that is refused before any work on it."""

    status: int
    message: str
    code: str | None = None
    """For programs, if the status does not say enough."""
    param: str | None = None
    retry_s: int = 0
    """Seconds after which the client may come again; 0: unknown, which no refusal with status 503 leaves it at."""
    more_headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status == 503 and not self.retry_s:
            self.retry_s = BUSY_RETRY_S

    @property
    def headers(self) -> dict[str, str]:
        retry = {"retry-after": str(self.retry_s)} if self.retry_s else {}
        return retry | dict(self.more_headers)


def refusal_body(status: int, message: str) -> bytes:
    """The body of a refusal where the path, and so the API, is not known: one that OpenAI's and Anthropic's clients
    read."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return msgspec.json.encode(
        {"type": "error", "error": {"message": message, "type": kind, "code": None, "param": None}}
    )


_FULL_BODY = refusal_body(503, "this node has as many connections as it can: try again")
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: %d\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (BUSY_RETRY_S, len(_FULL_BODY), _FULL_BODY)
)
"""The response to a connection that has no place."""
