"""Block hashes and the byte forms of tokens.

``h_i = SHA-256(K || tokens[:(i + 1) * STRIDE])``, first 8 bytes: one pass over the prompt, with a hash after every
``STRIDE`` tokens. Equal hashes mean equal whole prefixes (up to 64-bit collisions), so a set of block hashes is
prefix-closed and a peer's longest match is a walk. ``K`` comes from the namespace: nodes with another model, tokenizer
or swarm salt never produce comparable hashes.

64 bits are enough for a routing hint, which never decides reuse: the engine compares tokens. The hash must still be a
cryptographic one. K is public, so with a weak hash anybody could make prompts that collide with a popular one. Honest
nodes that cached those would announce the popular prefix, get its requests and look dishonest. SHA-256 is the fastest
strong hash here, because processors have instructions for it: 56 us for 8,192 tokens, against 88 us for BLAKE3 in the
same way and 200 us for BLAKE3 chained from block to block.
"""

import hashlib
import struct
import sys
from array import array
from collections.abc import Sequence
from functools import lru_cache

from blake3 import blake3

from mycelia.proto.wire.errors import RemoteError

STRIDE = 64
"""Tokens per block. On real traces 64 finds 96.8 % of the reusable tokens with a quarter of the entries of 16."""

HASH_BYTES = 8

_BLOCK = struct.Struct(f"{4 * STRIDE}s")


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Tokens as unsigned 32-bit little-endian integers, the one byte form of the wire and of block hashes.

    Almost free for what ``token_array`` returns; 5 ns a token for a list.
    """
    packed = tokens if isinstance(tokens, array) and tokens.typecode == "I" else array("I", tokens)
    if sys.byteorder == "big":
        packed = array("I", packed)
        packed.byteswap()
    return packed.tobytes()


def unpack_tokens(data: bytes) -> list[int]:
    """Inverse of ``pack_tokens``. Raises RemoteError when the length is not a multiple of 4."""
    return token_array(data).tolist()


def token_array(data: bytes) -> "array[int]":
    """The same as an array, for tokens that will be packed again. It equals no list. Raises RemoteError likewise."""
    if len(data) % 4:
        raise RemoteError("packed tokens are not a multiple of 4 bytes")
    packed = array("I", data)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed


def namespace_key(model_digest: bytes, kv_settings: str, salt: bytes = b"") -> bytes:
    """The 16-byte namespace of a model file: nodes share prefixes only within it.

    model_digest: hash of the GGUF file, which contains the tokenizer. kv_settings: canonical text of everything else
    that changes the KV cells. salt: the swarm's own.
    """
    hasher = blake3(derive_key_context="mycelia 2026 namespace v1")
    for part in (model_digest, kv_settings.encode(), salt):
        hasher.update(len(part).to_bytes(4, "big") + part)
    return hasher.digest(length=16)


@lru_cache(maxsize=256)
def _key_of(namespace: bytes) -> bytes:
    return blake3(namespace, derive_key_context="mycelia 2026 block hash v1").digest()


def block_hashes(namespace: bytes, tokens: Sequence[int]) -> "array[int]":
    """Hash of every whole block of ``tokens``, as unsigned 64-bit integers; entry i covers tokens[:(i + 1) * STRIDE].

    The last, partial block is not hashed. The array equals no list.
    """
    hasher = hashlib.sha256(_key_of(namespace))
    update, digest = hasher.update, hasher.digest
    packed = pack_tokens(tokens)
    whole = memoryview(packed)[: len(packed) // _BLOCK.size * _BLOCK.size]
    digests = []
    for (block,) in _BLOCK.iter_unpack(whole):
        update(block)
        digests.append(digest())
    words = array("Q", b"".join(digests))
    if sys.byteorder == "little":
        words.byteswap()
    return words[:: hasher.digest_size // HASH_BYTES]
