"""The paths of requests: other spellings of the same path, and which path a client may have meant."""

import difflib
import re
from collections.abc import Awaitable, Iterable
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/v1"
_UNPREFIXED = re.compile(
    r"/(chat/completions|completions|embeddings|models(/.+)?|responses(/.+)?|messages(/count_tokens)?)"
)
"""Paths of the APIs below /v1 that clients ask for when their base URL lacks it."""
_DOUBLED = re.compile(r"(/openai)?(/v1)+(?=/)")
"""The base URL has the /v1, and the client adds it again; some clients have the base path of another server."""
_AZURES = re.compile(r"(/openai)?(/v1)?/deployments/[^/]+(?=/(chat/completions|completions|embeddings)$)")
"""The base path of a model in Azure's API. Its clients also have the model's name in the body."""
_RERANKS = re.compile(r"(/v[12])?/rerank(ing)?")
"""The paths of Cohere's two versions and of llama-server."""
_MAX_SHOWN = 64


def usual(path: str) -> str:
    """``path`` as the routes spell it. Idempotent, so that every check sees the same path."""
    return _usual_short(path) if len(path) <= _MAX_SHOWN else _usual(path)


def _usual(path: str) -> str:
    path = re.sub("/{2,}", "/", path)
    path = _AZURES.sub("", path.rstrip("/"), count=1) or "/"
    path = _DOUBLED.sub(PREFIX, path, count=1) if _DOUBLED.match(path) else path
    if _RERANKS.fullmatch(path):
        return "/v1/rerank"
    return PREFIX + path if _UNPREFIXED.fullmatch(path) else path


_usual_short = lru_cache(maxsize=256)(_usual)


class UsualPaths:
    """Middleware that must stand before all others, as they decide by the path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http":
            scope["path"] = usual(scope["path"])
        return self._app(scope, receive, send)


def no_such_path(path: str, known: Iterable[str]) -> str:
    """The message for a path that does not exist, with the one that the client may have meant."""
    paths = [one for one in known if "{" not in one]
    shown = path if len(path) <= _MAX_SHOWN else path[:_MAX_SHOWN] + "..."
    ending = [one for one in paths if one != "/" and path.endswith(one)]
    begun = [one for one in paths if one.startswith(path + "/") and path != PREFIX]
    (nearest,) = (ending or begun)[:1] or difflib.get_close_matches(path[:_MAX_SHOWN], paths, 1, 0.6) or [""]
    if nearest:
        return f"there is no path {shown} here; did you mean {nearest}?"
    return f"there is no path {shown} here; the OpenAI API is at {PREFIX}, and /openapi.json describes it"
