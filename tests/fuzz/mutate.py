"""Hostile bytes made from valid messages: everything that CBOR can express and the wire does not allow.

There are two ways to spoil a message. ``spoil_bytes`` changes the encoding directly: bits, cuts, splices, false
lengths. ``spoil_value`` takes the message apart and writes it again with mistakes: other types, other numbers, keys
twice, out of order or missing, long integers, indefinite lengths, tags, deep nesting. ``bomb`` starts from nothing and
makes much structure in few bytes.

Every function draws only from the ``random.Random`` that it is given.
"""

import math
import random
import struct
from collections.abc import Callable

MAX_BOMB_BYTES = 1_048_576
_ODD_INTEGERS = (-1, -(2**63), -(2**64), 23, 24, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
_ODD_FLOATS = (math.nan, math.inf, -math.inf, -0.0, 0.0, 1.0, 1e-310, 1e18, 1e300, -1e6, 0.1)
_MAX_ADDED = 2_000
_LENGTHS = (0, 1, 23, 24, 255, 256, 16_777_216, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_TAGS = (0, 1, 2, 3, 4, 5, 24, 25, 28, 29, 30, 35, 36, 37, 52, 100, 256, 258, 260, 261, 1004, 43_000, 55_799, 2**32)


# --- bytes ---------------------------------------------------------------------------------------------------------


def head(major: int, argument: int, width: int | None = None) -> bytes:
    """The first bytes of a CBOR item. width: in bytes (0, 1, 2, 4, 8), for another than the shortest form."""
    if width is None:
        width = next(w for w, bound in ((0, 24), (1, 2**8), (2, 2**16), (4, 2**32), (8, 2**64)) if argument < bound)
    if width == 0:
        return bytes((major << 5 | argument,))
    return bytes((major << 5 | 24 + (1, 2, 4, 8).index(width),)) + argument.to_bytes(width, "big")


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice(
        (rng.randrange(256), 0x00, 0x1B, 0x5F, 0x7F, 0x9F, 0xBF, 0xC2, 0xF9, 0xFF)
    )


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 9)]


def _insert(data: bytearray, rng: random.Random) -> None:
    data[(at := rng.randrange(len(data) + 1)) : at] = rng.randbytes(rng.randrange(1, 9))


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    piece = bytes(data[at : at + rng.randrange(1, 33)])
    data[at:at] = piece * rng.choice((1, 2, 30))


def _lie(data: bytearray, rng: random.Random) -> None:
    """Makes a byte the head of a string or container with a false length."""
    at = rng.randrange(len(data))
    width = rng.choice((1, 2, 4, 8))
    length = rng.choice(_LENGTHS) & (1 << 8 * width) - 1
    data[at : at + 1] = head(rng.randrange(2, 6), length, width)


_BYTE_WAYS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _flip, _overwrite, _cut, _remove, _insert, _repeat, _lie,
)  # fmt: skip


def spoil_bytes(data: bytes, rng: random.Random) -> bytes:
    """``data`` with one to three changes."""
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if spoiled:
            rng.choice(_BYTE_WAYS)(spoiled, rng)
    return bytes(spoiled)


def splice(one: bytes, other: bytes, rng: random.Random) -> bytes:
    """The beginning of one message and the end of another."""
    return one[: rng.randrange(len(one) + 1)] + other[rng.randrange(len(other) + 1) :]


# --- values --------------------------------------------------------------------------------------------------------


def spoil_value(value: object, rng: random.Random, wrongness: float) -> bytes:
    """Writes the message ``value`` (as cbor2 returns it) again, with mistakes at a share of its places."""
    return b"".join(_Writer(rng, wrongness).write(value, 0))


class _Writer:
    """Writes one value, with mistakes at a share ``wrongness`` of its places. Its additions are bounded: a list in a
    list in a list, each repeated, would never end."""

    def __init__(self, rng: random.Random, wrongness: float) -> None:
        self._rng = rng
        self._wrongness = wrongness
        self._room = _MAX_ADDED

    def write(self, value: object, depth: int) -> list[bytes]:
        rng = self._rng
        if rng.random() < self._wrongness:
            value = self._odd(value)
        is_odd = rng.random() < self._wrongness
        prefix = [head(6, rng.choice(_TAGS))] if is_odd and rng.random() < 0.2 else []
        match value:
            case bool() | None:
                return [*prefix, b"\xf6" if value is None else b"\xf5" if value else b"\xf4"]
            case int():
                return [*prefix, _write_integer(value, rng, is_odd)]
            case float():
                return [*prefix, _write_float(value, rng, is_odd)]
            case bytes() | str():
                return [*prefix, *_write_string(value, rng, is_odd)]
            case list():
                items = [piece for item in value for piece in self.write(item, depth + 1)]
                return [*prefix, *_enclose(4, len(value), items, rng, is_odd)]
            case dict():
                pairs = [
                    b"".join(_write_key(key, rng, self._wrongness / 4) + self.write(item, depth + 1))
                    for key, item in value.items()
                ]
                if is_odd and pairs:
                    pairs = rng.choice((pairs[::-1], pairs[:-1], pairs[1:], [*pairs, rng.choice(pairs)]))
                return [*prefix, *_enclose(5, len(pairs), pairs, rng, is_odd)]
        raise AssertionError(f"cbor2 made a {type(value).__name__}")

    def _odd(self, value: object) -> object:
        """Something else instead of ``value``, or more of it."""
        rng, way = self._rng, self._rng.randrange(9)
        if way == 0:
            return rng.choice(_ODD_INTEGERS)
        if way == 1:
            return rng.choice(_ODD_FLOATS)
        if way == 2:
            return rng.choice((None, True, False, [], {}, b"", "", [value], {1: value}, {0: value}))
        if way == 3:
            return 2 ** rng.randrange(65, 600) * rng.choice((1, -1))
        if way == 4 and self._pays(50):
            for _ in range(rng.choice((3, 7, 8, 9, 40))):
                value = [value] if rng.random() < 0.5 else {1: value}
            return value
        if way == 5 and isinstance(value, bytes | str):
            return value * rng.choice((2, 17, 100)) if len(value) < 1_000 else value[:-1]
        if way == 6 and isinstance(value, list) and self._pays(10 * len(value)):
            return value * rng.choice((2, 9))
        if way == 7 and isinstance(value, dict):
            return {**value, rng.choice((0, 5, 15, 23, 24, 300, -1, 2**40)): rng.choice((0, "", b"x", [], 1.5))}
        return rng.choice(
            ("\x00", "é", "\U0001f600" * 5, b"\xff", rng.randbytes(16), rng.randrange(2**31), rng.random())
        )

    def _pays(self, cost: int) -> bool:
        self._room -= cost
        return self._room >= 0


def _write_key(key: int, rng: random.Random, wrongness: float) -> list[bytes]:
    if rng.random() >= wrongness:
        return [head(0, key) if key >= 0 else head(1, -1 - key)]
    return [
        rng.choice(
            (
                head(0, key ^ 1 if key >= 0 else 0),
                head(0, 5, 8),
                b"\x61\x31",
                b"\x20",
                b"\x80",
                b"\xf9\x3c\x00",
                b"\xf6",
            )
        )
    ]


def _write_integer(value: int, rng: random.Random, is_odd: bool) -> bytes:
    magnitude = -1 - value if value < 0 else value
    if magnitude >= 2**64:
        packed = magnitude.to_bytes((magnitude.bit_length() + 7) // 8, "big")
        return head(6, 3 if value < 0 else 2) + head(2, len(packed)) + packed
    return head(int(value < 0), magnitude, 8 if is_odd and rng.random() < 0.8 else None)


def _write_float(value: float, rng: random.Random, is_odd: bool) -> bytes:
    """The shortest form that keeps the value, or any other form."""
    forms = []
    for initial, layout in ((b"\xf9", ">e"), (b"\xfa", ">f"), (b"\xfb", ">d")):
        try:
            packed = struct.pack(layout, value)
        except OverflowError:
            continue
        if value != value or struct.unpack(layout, packed)[0] == value or is_odd:
            forms.append(initial + packed)
    return rng.choice(forms) if is_odd else forms[0]


def _write_string(value: bytes | str, rng: random.Random, is_odd: bool) -> list[bytes]:
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    major = 2 if isinstance(value, bytes) else 3
    if not is_odd:
        return [head(major, len(data)), data]
    way = rng.randrange(5)
    if way == 0:
        return [head(major, len(data), 8), data]
    if way == 1:
        return [head(major, rng.choice(_LENGTHS)), data]
    if way == 2:
        return [bytes((major << 5 | 31,)), head(major, len(data)), data, b"\xff"]
    if way == 3:
        return [head(5 - major, len(data)), data]
    return [head(major, len(data) + 2), data, b"\xed\xa0"]


def _enclose(major: int, length: int, pieces: list[bytes], rng: random.Random, is_odd: bool) -> list[bytes]:
    if not is_odd or rng.random() < 0.4:
        return [head(major, length), *pieces]
    way = rng.randrange(4)
    if way == 0:
        return [head(major, length, 8), *pieces]
    if way == 1:
        return [bytes((major << 5 | 31,)), *pieces, b"\xff"]
    if way == 2:
        return [head(major, rng.choice(_LENGTHS)), *pieces]
    return [head(major, max(0, length + rng.choice((-1, 1)))), *pieces]


# --- from nothing --------------------------------------------------------------------------------------------------

_CRUMBS = (
    b"\x00", b"\x80", b"\xa0", b"\x81\x80", b"\xa1\x01\x01", b"\xa1\x01\xa0", b"\x40", b"\x41a", b"\x60", b"\x61a",
    b"\x62\xc4\x80", b"\xf6", b"\xf9\x3c\x00", b"\x1b" + b"\x7f" * 8, b"\xfb" + b"\x3f" * 8, b"\xc1\x00", b"\x9f\xff",
    b"\xa3\x01\x1a\x7f\xff\xff\xff\x02\x44abcd\x03\xfb" + b"\xbf" * 8,
)  # fmt: skip


def bomb(rng: random.Random) -> bytes:
    """Many small items, deep nesting, or a very large claimed length; sometimes as the field of a message."""
    way = rng.randrange(4)
    if way == 0:
        depth = rng.choice((9, 100, 10_000))
        return rng.choice((b"\x81", b"\xa1\x01", b"\x9f", b"\xbf\x01", b"\xd8\x1c")) * depth
    opening = b"\xa2\x00" + head(0, rng.randrange(17)) + b"\x01" if rng.random() < 0.7 else b""
    if way == 1:
        return opening + head(rng.randrange(2, 6), rng.choice(_LENGTHS)) + rng.randbytes(rng.randrange(64))
    crumb = rng.choice(_CRUMBS)
    size = rng.choice((1_000, 4_000, 4_000, 9_000, 40_000, MAX_BOMB_BYTES if rng.random() < 0.1 else 20_000))
    count = (size - 16) // len(crumb)
    if way == 2:
        return opening + head(4, count) + crumb * count
    keys = b"".join([head(0, i) + crumb for i in range(min(count, 9_000))])
    return opening + head(5, min(count, 9_000)) + keys
