"""The keys of a node's HTTP API: their names and limits. Only a key's hash is kept, the key itself nowhere."""

import hashlib
from dataclasses import dataclass

MIN_KEY_CHARS = 16
MAX_KEYS = 1_024
LOCAL = "local"
"""The name of the programs on this machine: of all clients of a node without keys, and of the commands of one with
keys, which have a key that is new at each start."""
LOCAL_CLIENT = hashlib.sha256(b"mycelia: the commands of this machine").digest()[:16]
"""The client that those commands are."""


@dataclass(frozen=True)
class Limits:
    """None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    """Tokens of prompts, cached ones too, and of answers; a day is one of UTC."""
    concurrent: int | None = None
    """Requests that are being answered at once."""


@dataclass(frozen=True)
class ApiKey:
    name: str
    digest: bytes
    """See ``digest_of``."""
    limits: Limits = Limits()

    @property
    def client(self) -> bytes:
        """The client whose share of the node its requests take."""
        return LOCAL_CLIENT if self.name == LOCAL else self.digest[:16]


def is_owner(client: bytes) -> bool:
    """Whether ``client`` stands for programs on this machine: of a node without keys all clients do."""
    return client in (b"", LOCAL_CLIENT)


def digest_of(key: bytes) -> bytes:
    """SHA-256, so that other programs can make it, too. A key has so many characters that it cannot be guessed."""
    return hashlib.sha256(key).digest()


def unnamed(key: str) -> ApiKey:
    """A key without limits, named after its hash."""
    digest = digest_of(key.encode())
    return ApiKey(f"key-{digest.hex()[:8]}", digest)


def local_key(key: str) -> ApiKey:
    """The key of the commands on this machine."""
    return ApiKey(LOCAL, digest_of(key.encode()))
