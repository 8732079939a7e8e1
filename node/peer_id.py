"""Peer ids as text. The id of an Ed25519 key is the identity multihash of that key, so it contains the key."""

from functools import lru_cache

import base58

from mycelia.proto.wire.errors import LocalError

ED25519_PREFIX = bytes.fromhex("002408011220")
"""The identity multihash (00 24) of the protobuf (08 01 12 20) of a 32-byte Ed25519 key."""
KEY_BYTES = 32


def is_ed25519(peer: bytes) -> bool:
    """Whether ``peer`` has the form of an Ed25519 peer id."""
    return len(peer) == len(ED25519_PREFIX) + KEY_BYTES and peer.startswith(ED25519_PREFIX)


@lru_cache(maxsize=1_024)
def peer_text(peer: bytes) -> str:
    """The usual base58 text of a peer id, as in multiaddrs."""
    return base58.b58encode(peer).decode()


def id_text(value: bytes) -> str:
    """A peer id as its usual text; a shorter id, of a request or a client, in hexadecimal."""
    return peer_text(value) if len(value) > 16 else value.hex()


def peer_from_text(text: str) -> bytes:
    """The inverse of ``peer_text``. Raises LocalError."""
    try:
        peer = base58.b58decode(text)
    except ValueError as exc:
        raise LocalError(f"{text!r} is not a peer id") from exc
    if not is_ed25519(peer):
        raise LocalError(f"{text!r} is not the peer id of an Ed25519 key (those begin with 12D3Koo)")
    return peer
