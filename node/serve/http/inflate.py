"""Compressed request bodies: gzip, deflate and zstd.

A body is inflated as a whole, in one call that ends as soon as the result exceeds its limit. So a bomb costs no more
than a body of the largest size, and at most one window of a decompressor is in memory at a time.
"""

import io
import zlib

from mycelia.node.serve.http.errors import HttpError

ENCODINGS = "gzip, deflate, zstd"
"""The value of Accept-Encoding in a refusal (RFC 9110, section 12.5.3)."""
MAX_ZSTD_WINDOW = 8 << 20
"""The most that RFC 9659 allows for this use."""


def inflated(data: bytes, encoding: str, most: int) -> bytes:
    """``data`` without the encoding that a Content-Encoding header names. Raises HttpError for an unknown encoding, for
    bytes that do not have it, and for a result of more than ``most`` bytes."""
    names = [name for part in encoding.lower().split(",") if (name := part.strip()) not in ("", "identity")]
    if not names:
        return data
    if len(names) > 1 or names[0] not in _READERS:
        message = f"a body encoded as {encoding[:64]!r} is not read: send it plain, or with one of {ENCODINGS}"
        raise HttpError(415, message, more_headers={"accept-encoding": ENCODINGS})
    try:
        result = _READERS[names[0]](data, most + 1)
    except (zlib.error, ValueError) as exc:
        raise HttpError(400, f"the body is not {names[0]}: {exc}") from None
    if len(result) > most:
        raise HttpError(413, f"the body has more than {most} bytes without its {names[0]} encoding")
    return result


def _gzip(data: bytes, most: int) -> bytes:
    return _zlib(data, most, zlib.MAX_WBITS | 16)


def _deflate(data: bytes, most: int) -> bytes:
    """Some programs leave out the zlib header that the standard asks for."""
    has_header = len(data) > 1 and data[0] & 0x0F == zlib.DEFLATED and int.from_bytes(data[:2], "big") % 31 == 0
    return _zlib(data, most, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)


def _zlib(data: bytes, most: int, window_bits: int) -> bytes:
    reader = zlib.decompressobj(window_bits)
    result = reader.decompress(data, most)
    if len(result) < most and not reader.eof:
        raise ValueError("it ends early")
    if reader.unused_data:
        raise ValueError("it goes on after its end")
    return result


def _zstd(data: bytes, most: int) -> bytes:
    import zstandard  # (few clients need it)

    try:
        size = zstandard.get_frame_parameters(data).content_size
        reader = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).stream_reader(io.BytesIO(data))
        result = bytes(reader.read(most))
    except zstandard.ZstdError as exc:
        raise ValueError(exc) from None
    if size != zstandard.CONTENTSIZE_UNKNOWN and len(result) < min(size, most):
        raise ValueError("it ends early")
    return result


_READERS = {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "zstd": _zstd}
