"""Access to a node's HTTP: with keys, for clients that know one; without, for clients on this machine.

The check is a separate ASGI application in front of everything, and cheap: guessing keys must not cost the node more
than a normal request.
"""

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from mycelia.node.serve.api_keys import ApiKey, digest_of
from mycelia.node.serve.http.bodies import Refusal
from mycelia.node.serve.http.errors import BUSY_RETRY_S
from mycelia.node.serve.http.limits import FREE_PATHS, KeyLimits
from mycelia.node.serve.http.places import admit

_CLIENT = "mycelia.client"
_SCHEME = b"bearer "
_BARE = (b"x-api-key", b"api-key")
"""Headers of other makers' clients that have the key alone: Anthropic's and Azure's."""
_MISSING = "an API key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
_WRONG = (
    "this is none of the node's API keys: 'mycelia key list' there lists their names, 'mycelia key add NAME' makes one"
)


class KeyGate:
    """Lets through the requests that carry one of ``keys``, within the key's limits."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Collection[ApiKey],
        limits: KeyLimits | None,
        refusal: Refusal,
        on_limit: Callable[[str], None],
        open_paths: Collection[str] = (),
    ) -> None:
        """limits: None while no request can be answered. refusal: makes the response to requests that are not let
        through. on_limit: called with the name of a key when its limits refuse a request. open_paths: need no key,
        because they reveal nothing."""
        self._app = app
        self._limits = limits
        self._on_limit = on_limit
        self._open_paths = frozenset(open_paths)
        self._keys = {key.digest: key for key in keys}
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        given = _keys_in(scope)  # (looked up by their hashes: the time that this takes tells nothing about the keys)
        key = next((key for one in given if (key := self._keys.get(digest_of(one)))), None)
        if key is None:
            message = _WRONG if given else _MISSING
            response = self._refusal(scope["path"], 401, message, 0)
            response.headers["www-authenticate"] = "Bearer"
            await response(scope, receive, send)
            return
        scope[_CLIENT] = key.client
        if not admit(scope, key.client):
            message = "too many requests with this key are running"
            await self._refusal(scope["path"], 503, message, BUSY_RETRY_S)(scope, receive, send)
            return
        limits = self._limits
        if limits is None or scope["method"] != "POST" or scope["path"] in FREE_PATHS:
            await self._app(scope, receive, send)
            return
        if refused := limits.enter(key):
            self._on_limit(key.name)
            await self._refusal(scope["path"], 429, refused.message, refused.retry_s)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            limits.leave(key)


def _keys_in(scope: Scope) -> list[bytes]:
    headers = dict(reversed(scope["headers"]))  # (of several equal ones the first counts)
    bearer = headers.get(b"authorization", b"")
    given = [bearer[len(_SCHEME) :]] if bearer[: len(_SCHEME)].lower() == _SCHEME else []
    return [one.strip() for one in (*given, *(headers.get(name, b"") for name in _BARE)) if one.strip()]


class LocalGate:
    """Lets through requests of programs and pages on this machine. A web page from elsewhere can send requests here
    without reading the answers, or make its own name point here; browsers report this in the headers."""

    def __init__(
        self,
        app: ASGIApp,
        refusal: Refusal,
        origins: Collection[str] = (),
        open_paths: Collection[str] = (),
        hosts: Collection[str] = (),
    ) -> None:
        """refusal: makes the response to all other requests. origins: web origins that may send requests, ``*``: all.
        open_paths: any page may lead to them, because they reveal nothing. hosts: names of this machine, in lower case,
        besides those of the loopback."""
        self._app = app
        self._refusal = refusal
        self._origins = frozenset(origins)
        self._open_paths = frozenset(open_paths)
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name: value.decode("latin-1") for name, value in reversed(scope["headers"])}
            host = _name_in(headers.get(b"host", ""))
            if not (_is_this_machine(host) or host in self._hosts):
                message = "without API keys this node serves only its own machine, as 127.0.0.1 or localhost"
                if host:
                    message += f"; if {host[:64]} is this machine, too, as in a container, start it with --allow-host"
                message += "; to serve other machines, start it with --api-key-file"
                await self._refusal(scope["path"], 400, message, 0)(scope, receive, send)
                return
            if scope["path"] not in self._open_paths:
                if not self._is_own_page(headers):
                    message = "this node does not answer web pages of other origins; allow one with --cors ORIGIN"
                    await self._refusal(scope["path"], 403, message, 0)(scope, receive, send)
                    return
                admit(scope, b"")
        await self._app(scope, receive, send)

    def _is_own_page(self, headers: Mapping[bytes, str]) -> bool:
        """Whether the request comes from no page, from a page of this node or from an allowed one. For a page's request
        without CORS (an image, a link) only Sec-Fetch-Site tells it; another port of this machine is another origin."""
        origin = headers.get(b"origin")
        if origin is not None and (origin in self._origins or "*" in self._origins):
            return True
        if headers.get(b"sec-fetch-site", "none") not in ("none", "same-origin"):
            return False
        return origin is None or origin.partition("://")[2].lower() == headers[b"host"].lower()


def client_of(scope: Scope) -> bytes:
    """The client whose share of this node a request takes: its key's. Empty if no key is needed."""
    return bytes(scope.get(_CLIENT, b""))


_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]+))(?::[0-9]*)?", re.IGNORECASE)


def _name_in(host: str) -> str:
    """The name or address in a Host header, in lower case; empty: it has none."""
    parts = _HOST.fullmatch(host)
    return (parts[1] or parts[2]).lower() if parts else ""


def _is_this_machine(name: str) -> bool:
    if name in ("localhost", "127.0.0.1"):  # (as most clients write it)
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
