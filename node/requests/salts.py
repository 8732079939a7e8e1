"""The choice of cached prefixes that requests entering at this node may reuse, see ``proto/cache/sharing.py``."""

from collections.abc import Callable

from blake3 import blake3

from mycelia.proto.cache.sharing import EVERYBODY, SALTED, TAG_BYTES, Salt

PUBLIC_SALT = "public"
"""``cache_salt`` of prompts without secrets, such as few-shot examples and benchmarks."""


class Salts:
    """The salts of this node's clients. They are the same after a restart, and other nodes do not know them."""

    def __init__(self, sign: Callable[[bytes], bytes]) -> None:
        """sign: signs with this node's key, deterministically. The signature stays here and is the secret."""
        self._secret = blake3(sign(b"mycelia prefix salts v1\x00")).digest()

    def of(self, cache_salt: str, client: bytes) -> Salt:
        if cache_salt == PUBLIC_SALT:
            return Salt(scope=EVERYBODY)
        if cache_salt:
            context = "mycelia 2026 cache salt v1"
            return Salt(blake3(cache_salt.encode(), derive_key_context=context).digest(length=TAG_BYTES), SALTED)
        return Salt(blake3(client, key=self._secret).digest(length=TAG_BYTES))

    def passed_on(self, cache_salt: str, client: bytes) -> str:
        """The same salt as a ``cache_salt`` for another entry node, which takes all clients of this node for one."""
        return cache_salt or self.of("", client).key.hex()
