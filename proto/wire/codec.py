"""Bytes to Message and back, with every limit of the wire.

Invariant: ``decode`` of any bytes returns a Message or raises RemoteError, never another error. The message's structure
costs at most 1 MiB of memory; strings cost up to seven times their length more (four bytes a character, and copies).
``make fuzz`` checks this.

The encoding is deterministic CBOR (RFC 8949, 4.2). ``decode`` encodes the message again and requires the same bytes.
This also rejects trailing bytes, non-minimal integers, integers for floats and left-out fields, so that a message has
one byte form only. Fields that a later version added are left out while they have their default (``versions.py``). Tags
are refused before cbor2 acts on them: its built-in decoders would compile regular expressions and build huge decimals
for a peer. Long messages are walked through first: a megabyte of empty maps took 145 MB and seconds to refuse.
"""

import re
import struct
from typing import Any, NoReturn

import cbor2
import msgspec

from mycelia.proto.wire.biases import unpack_biases
from mycelia.proto.wire.errors import LimitExceeded, LocalError, RemoteError
from mycelia.proto.wire.messages import Ask, Control, Generate, Gossip, Message, Sampling
from mycelia.proto.wire.versions import LEFT_OUT

MAX_MESSAGE_BYTES = 1_048_576
"""Largest message on a direct stream: a prompt of 131,072 packed tokens, or the largest chat, and some room."""
MAX_GOSSIP_BYTES = 2 * 16_384 + 512
"""Largest message on a gossip topic: a delta's two packed fields and its head."""
MAX_DEPTH = 8
MAX_ITEMS = 9_500
"""CBOR items in one message, keys included. A full Reconcile has 9,220, the most that the bounds of any kind allow."""
MAX_CONTAINERS = 1_050
"""Maps and arrays in one message. An Ask with 1,024 turns has 1,028, the most that the bounds of any kind allow."""
_MAX_KEY = 23
_LEAVES = frozenset((bytes, str, int, float, bool))
"""Values that need no function call each: a full Reconcile has 4,097 of them."""
_SHORT_BYTES = 4_096
"""Messages up to this length are not walked through first: none costs more than 0.8 MB, and most are shorter."""

LENGTH_PREFIX = struct.Struct(">I")
"""On a stream every message follows its length in bytes, big-endian."""


def _refuse_tag(*_: object) -> NoReturn:
    raise RemoteError("CBOR tags are not part of the wire format")


_RULES = "shortest integers and lengths, floats as floats (0.0 is f90000), keys in order, fields with defaults left out"

_BUILTIN_TAGS = (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799)
_TAG_DECODERS = dict.fromkeys(_BUILTIN_TAGS, _refuse_tag)


def _to_wire(value: Any) -> Any:
    """msgspec's builtins in the wire's shape: key "3" becomes 3."""
    if isinstance(value, dict):
        return {int(key): item if type(item) in _LEAVES else _to_wire(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_wire(item) for item in value]
    return value


def _from_wire(value: Any) -> Any:
    """The inverse of ``_to_wire``. cbor2 has already enforced MAX_DEPTH."""
    if isinstance(value, dict):
        if any(type(key) is not int or key < 0 for key in value):
            raise RemoteError("map keys must be unsigned integers")
        return {str(key): item if type(item) in _LEAVES else _from_wire(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_wire(item) for item in value]
    return value


class _Walk:
    """A walk through encoded bytes that builds nothing. Raises RemoteError, or IndexError at the end of the bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._items_left = MAX_ITEMS
        self._containers_left = MAX_CONTAINERS

    def item(self, at: int, depth: int = 0) -> int:
        """The end of the item that begins at ``at``."""
        initial = self._data[at]
        kind, argument = initial >> 5, initial & 31
        at += 1
        if argument >= 24:
            num_bytes = 1 << (argument - 24)
            if num_bytes > 8:
                raise RemoteError("indefinite lengths are not part of the wire format")
            argument = int.from_bytes(self._data[at : at + num_bytes], "big")
            at += num_bytes
        self._items_left -= 1
        if kind in (2, 3):
            return at + argument
        if kind in (4, 5):
            self._containers_left -= 1
            if argument > self._items_left or self._containers_left < 0 or depth >= MAX_DEPTH:
                raise RemoteError("more items than any message has")
            return self._map(at, argument, depth) if kind == 5 else self._array(at, argument, depth)
        return at

    def _array(self, at: int, length: int, depth: int) -> int:
        for _ in range(length):
            at = self.item(at, depth + 1)
        return at

    def _map(self, at: int, length: int, depth: int) -> int:
        last = -1
        for _ in range(length):
            key = self._data[at]
            if not last < key <= _MAX_KEY:
                raise RemoteError("map keys must be small unsigned integers in order")
            last = key
            self._items_left -= 1
            at = self.item(at + 1, depth + 1)
        return at


def encode(message: Message) -> bytes:
    """The one byte form of ``message``. Raises LimitExceeded if it is longer than MAX_MESSAGE_BYTES."""
    # (keys are already in order of definition; ``canonical`` adds only the shortest form of floats)
    has_floats = not isinstance(message, Control | Gossip)
    value = msgspec.to_builtins(message, builtin_types=(bytes,))
    _leave_out(value, type(message))
    if isinstance(message, Generate | Ask):
        _leave_out(value["4"], Sampling)
    data: bytes = cbor2.dumps(_to_wire(value), canonical=has_floats)
    if len(data) > MAX_MESSAGE_BYTES:
        raise LimitExceeded(f"a {type(message).__name__} of {len(data)} bytes is over {MAX_MESSAGE_BYTES}")
    return data


def _leave_out(value: dict[str, Any], kind: type) -> None:
    for name, default in LEFT_OUT.get(kind, {}).items():
        if value[name] == default:
            del value[name]


def fits(message: Message) -> bool:
    """Whether ``encode`` accepts the message. Takes as long as ``encode``."""
    try:
        encode(message)
    except LimitExceeded:
        return False
    return True


def decode(data: bytes, limit: int = MAX_MESSAGE_BYTES) -> Message:
    """The message that ``data`` encodes. Raises RemoteError for anything else, also above ``limit`` bytes."""
    if len(data) > limit:
        raise RemoteError(f"message of {len(data)} bytes is over the limit of {limit}")
    try:
        if len(data) > _SHORT_BYTES and _Walk(data).item(0) != len(data):
            raise RemoteError("bytes after the message")
        message = _parse(data)
        if encode(message) != data:
            raise RemoteError(f"not in deterministic encoding: {_RULES}")
    except RemoteError:
        raise
    except Exception as exc:
        # cbor2 raises many kinds of errors on hostile input (also TypeError, OverflowError, UnicodeDecodeError). Here
        # they all mean that the peer sent bytes that are no message.
        raise RemoteError(f"not a message: {type(exc).__name__}: {str(exc)[:200]}") from exc
    return message


def _parse(data: bytes) -> Message:
    """A separate function, so that cbor2's objects are freed before the message is encoded again."""
    value = cbor2.loads(
        data,
        tag_hook=_refuse_tag,
        semantic_decoders=_TAG_DECODERS,
        max_depth=MAX_DEPTH,
        allow_indefinite=False,
        allow_duplicate_keys=False,
    )
    message: Message = msgspec.convert(_from_wire(value), Message, builtin_types=(bytes,))
    return message


_SAMPLING_NAMES = {info.encode_name: info.name for info in msgspec.structs.fields(Sampling)}


def check_sampling(sampling: Sampling) -> None:
    """Raises LocalError, which names the field, for options that no peer would accept."""
    try:
        msgspec.convert(msgspec.to_builtins(sampling, builtin_types=(bytes,)), Sampling, builtin_types=(bytes,))
        "".join((sampling.grammar, *sampling.stop)).encode()
        if sampling.logit_bias:
            unpack_biases(sampling.logit_bias)
    except UnicodeEncodeError as exc:
        raise LocalError("stop and grammar must be Unicode text, without lone surrogates") from exc
    except msgspec.ValidationError as exc:
        what, _, place = str(exc).partition(" - at ")
        key = re.search(r"[0-9]+", place)
        name = _SAMPLING_NAMES.get(key[0], "") if key else ""
        raise LocalError(f"{name or 'sampling'}: {what[:1].lower()}{what[1:]}".replace("`", "")) from exc
