"""Who may use a node's HTTP: with keys, whoever knows one; without, whoever is on this machine.

The check is an ASGI application of its own in front of everything, and cheap: guesses at a key must not cost more than
what they ask for.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from node.serve.bodies import Refusal

MIN_KEY_CHARS = 16
_CLIENT = "mycelia.client"
_SCHEME = b"bearer "


class KeyGate:
    """Lets requests through that carry one of ``keys`` as OpenAI's clients send it."""

    def __init__(self, app: ASGIApp, keys: Collection[str], refusal: Refusal, open_paths: Collection[str] = ()) -> None:
        """refusal: makes the response to everybody else. open_paths: need no key, because they tell nothing."""
        self._app = app
        self._open_paths = frozenset(open_paths)
        self._digests = [_digest(key.encode()) for key in keys]
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            digest = self._known(scope)
            if digest is None:
                message = "this needs a key: send it as 'Authorization: Bearer KEY'"
                response = self._refusal(scope["path"], 401, message)
                response.headers["www-authenticate"] = "Bearer"
                await response(scope, receive, send)
                return
            scope[_CLIENT] = digest[:16]
        await self._app(scope, receive, send)

    def _known(self, scope: Scope) -> bytes | None:
        """The digest of the key that came along, None: there is none or it is wrong."""
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if given[: len(_SCHEME)].lower() != _SCHEME:
            return None
        digest = _digest(given[len(_SCHEME) :].strip())
        matches = [known for known in self._digests if hmac.compare_digest(digest, known)]
        return matches[0] if matches else None


class HostGate:
    """Lets requests through that name this machine: a web page can make its own name lead here, and then its scripts
    send that name along."""

    def __init__(self, app: ASGIApp, refusal: Refusal) -> None:
        """refusal: makes the response to everybody else."""
        self._app = app
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = next((value for name, value in scope["headers"] if name == b"host"), b"")
            if not _is_this_machine(host.decode("latin-1")):
                message = (
                    "without keys this node answers only under a name of its own machine, as 127.0.0.1 or localhost;"
                    " to serve others, start it with --api-key-file"
                )
                await self._refusal(scope["path"], 400, message)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def client_of(scope: Scope) -> bytes:
    """Whose share of this node a request takes: its key's. Empty where nobody needs one."""
    return bytes(scope.get(_CLIENT, b""))


_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]+))(?::[0-9]*)?", re.IGNORECASE)


def _is_this_machine(host: str) -> bool:
    """host: a name or an address, with or without a port."""
    parts = _HOST.fullmatch(host)
    name = (parts[1] or parts[2]).lower() if parts else ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=32).digest()
