"""Logit biases in their packed form: per token 4 bytes of id and 4 bytes of bias, sorted by id."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mycelia.proto.wire.bounds import MAX_BIASES
from mycelia.proto.wire.errors import LocalError

MOST = 100.0
"""The largest bias: it makes every other token impossible, the smallest one excludes a token."""
_RECORD = np.dtype([("token", "<u4"), ("bias", "<f4")])


def pack_biases(biases: Mapping[int, float]) -> bytes:
    """Token -> bias, packed; biases of 0 are left out, others cut to +-``MOST``. Raises LocalError."""
    if not biases:
        return b""
    wanted = sorted((token, bias) for token, bias in biases.items() if bias)
    if len(wanted) > MAX_BIASES:
        raise LocalError(f"{len(wanted)} tokens with a bias are too many: at most {MAX_BIASES}")
    if any(not 0 <= token < 2**32 for token, _ in wanted):
        raise LocalError("token ids are whole numbers from 0 to 4294967295")
    packed = np.array(wanted, _RECORD)
    packed["bias"] = np.clip(packed["bias"], -MOST, MOST)
    _check(packed)
    return packed.tobytes()


def unpack_biases(packed: bytes) -> NDArray[np.void]:
    """The fields ``token`` and ``bias`` of each record. Raises LocalError for bytes that are no biases."""
    if len(packed) % _RECORD.itemsize:
        raise LocalError("packed biases are not a multiple of 8 bytes")
    biases = np.frombuffer(packed, _RECORD)
    _check(biases)
    return biases


def _check(biases: NDArray[np.void]) -> None:
    tokens, values = biases["token"], biases["bias"]
    if np.any(tokens[1:] <= tokens[:-1]):
        raise LocalError("the tokens of biases are not in order")
    if not np.all((np.abs(values) <= MOST) & (values != 0)):  # (also false for NaN)
        raise LocalError(f"a bias is a number from {-MOST:.0f} to {MOST:.0f}")
