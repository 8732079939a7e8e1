"""Keys of private swarms: what follows from an invitation's secret, and the nonces that say which key a dialler uses.

A node of a private swarm has several keys: that of the members, those of earlier epochs, and one of each invitation. A
dialler's 24-byte nonce ends with an 8-byte tag, which only a holder of the same key can tell from random bytes. So a
node knows the key before it decrypts anything, and a stranger learns nothing from either side's nonce.
"""

from collections.abc import Iterable

from blake3 import blake3

INVITATION_ID_BYTES = 8
PROOF_BYTES = 16
TAG_BYTES = 8
FRESH_BYTES = 16
"""Random bytes of a nonce, before its tag."""


def join_key_of(secret: bytes) -> bytes:
    """The pre-shared key of connections that ask for membership. Members know it; it does not reveal the secret."""
    return _derived("mycelia 2026 swarm join key v1", secret)


def invitation_id_of(secret: bytes) -> bytes:
    return _derived("mycelia 2026 swarm invitation id v1", secret)[:INVITATION_ID_BYTES]


def proof_key_of(secret: bytes) -> bytes:
    """The key of proofs. Only the authority and the invited peer know it."""
    return _derived("mycelia 2026 swarm join proof v1", secret)


def proof_of(proof_key: bytes, swarm: bytes, joiner: bytes) -> bytes:
    """Shows that ``joiner`` holds the invitation. Members that pass a request on cannot put another peer into it."""
    return blake3(swarm + joiner, key=proof_key).digest(PROOF_BYTES)


def tagged_nonce(key: bytes, fresh: bytes) -> bytes:
    """The nonce of a dialler that uses ``key``. fresh: FRESH_BYTES random bytes, used once."""
    return fresh + blake3(fresh, key=_derived("mycelia 2026 swarm nonce tag v1", key)).digest(TAG_BYTES)


def key_of_nonce(nonce: bytes, keys: Iterable[bytes]) -> bytes | None:
    """The key with which a dialler made its nonce; None: it is none of these, or the nonce is not tagged."""
    fresh = nonce[:FRESH_BYTES]
    return next((key for key in keys if tagged_nonce(key, fresh) == nonce), None)


def _derived(context: str, data: bytes) -> bytes:
    return blake3(data, derive_key_context=context).digest()
