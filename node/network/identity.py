"""A node's identity: one Ed25519 key, from which its libp2p peer id follows.

An Ed25519 peer id contains its public key, so a peer's signature can be verified with its peer id alone. Nothing here
needs libp2p.
"""

import os
from dataclasses import dataclass, field
from functools import cached_property

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from mycelia.node.peer_id import ED25519_PREFIX, KEY_BYTES, is_ed25519

SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Identity:
    """A private key and what follows from it. ``repr`` leaves the seed out, so no log shows it."""

    seed: bytes = field(repr=False)
    """32 bytes, the Ed25519 secret."""

    @cached_property
    def _signing_key(self) -> SigningKey:
        return SigningKey(self.seed)

    @cached_property
    def peer_id(self) -> bytes:
        """38 bytes, the libp2p peer id in binary form."""
        return ED25519_PREFIX + bytes(self._signing_key.verify_key)

    def sign(self, payload: bytes) -> bytes:
        """A 64-byte Ed25519 signature of ``payload``."""
        return bytes(self._signing_key.sign(payload).signature)


def new_identity() -> Identity:
    """A fresh identity that is kept nowhere: for light clients and tests."""
    return Identity(os.urandom(KEY_BYTES))


def verify(owner_peer_id: bytes, payload: bytes, signature: bytes) -> bool:
    """Whether the owner of ``owner_peer_id`` signed ``payload``. Never raises, whatever a peer sent."""
    if not is_ed25519(owner_peer_id) or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        VerifyKey(owner_peer_id[len(ED25519_PREFIX) :]).verify(payload, signature)
    except BadSignatureError:
        return False
    return True
