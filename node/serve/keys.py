"""Who may use a node's HTTP: with keys, whoever knows one; without, whoever is on this machine.

The check is an ASGI application of its own in front of everything, and cheap: guesses at a key must not cost more than
what they ask for.
"""

import hashlib
import hmac
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


def client_of(scope: Scope) -> bytes:
    """Whose share of this node a request takes: its key's. Empty where nobody needs one."""
    return bytes(scope.get(_CLIENT, b""))


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=32).digest()
