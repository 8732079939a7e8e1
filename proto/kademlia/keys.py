"""The keys of the Kademlia table: multihashes, as other implementations of libp2p look them up and store them.

The keys of models are SHA-256, the only function that js-libp2p's servers know. Those of prefixes, which only nodes of
the swarm look up, are BLAKE3, so that servers can tell the two kinds apart and bound each.
"""

import hashlib

MODEL_NAME = "/mycelia/model/"
"""The beginning of the text that the key of a model is a hash of."""
_MODEL, _PREFIX = bytes.fromhex("1220"), bytes.fromhex("1e10")
"""The codes of the functions and the lengths of the hashes."""


def model_key(namespace: bytes, cell_suffix: str = "") -> bytes:
    """The key under which the nodes of a namespace, or of a cell of it, are found. cell_suffix: ``Cell.suffix``."""
    return _MODEL + hashlib.sha256(f"{MODEL_NAME}{namespace.hex()}{cell_suffix}".encode()).digest()


def prefix_key(rung: bytes) -> bytes:
    """The key of a rung of the prefix ladder. rung: ``ladder_key``, 16 bytes."""
    return _PREFIX + rung


def is_model_key(key: bytes) -> bool:
    return len(key) == 34 and key.startswith(_MODEL)


def is_prefix_key(key: bytes) -> bool:
    return len(key) == 18 and key.startswith(_PREFIX)
