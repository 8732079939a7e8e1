"""Whose cached prefixes the requests that enter at this node may reuse, see ``proto/cache/sharing.py``."""

from collections.abc import Callable

from blake3 import blake3

from mycelia.proto.cache.sharing import EVERYBODY, SALTED, TAG_BYTES, Salt

PUBLIC_SALT = "public"
"""``cache_salt`` of prompts that hold no secrets, as few-shot examples and benchmarks."""


class Salts:
    """The salts of this node's clients: the same after a restart, and unknown to others."""

    def __init__(self, sign: Callable[[bytes], bytes]) -> None:
        """sign: with this node's key, always alike: the signature stays here and is the secret."""
        self._secret = blake3(sign(b"mycelia prefix salts v1\x00")).digest()

    def of(self, cache_salt: str, client: bytes) -> Salt:
        """Of a request of ``client``, with what it gave as ``cache_salt``."""
        if cache_salt == PUBLIC_SALT:
            return Salt(scope=EVERYBODY)
        if cache_salt:
            context = "mycelia 2026 cache salt v1"
            return Salt(blake3(cache_salt.encode(), derive_key_context=context).digest(length=TAG_BYTES), SALTED)
        return Salt(blake3(client, key=self._secret).digest(length=TAG_BYTES))

    def passed_on(self, cache_salt: str, client: bytes) -> str:
        """The same as a ``cache_salt``, for an entry node to which this node and all its clients are one client."""
        return cache_salt or self.of("", client).key.hex()
