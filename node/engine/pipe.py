"""The pipes between the node and its engine process: the child's stdin and stdout.

A frame is a 4-byte little-endian length and that many bytes of MessagePack, a message of ``ipc.py``. Both ends have the
same version; the bounds only ensure that a stray write cannot make a reader wait for gigabytes.
"""

import os
import threading
from typing import BinaryIO

import msgspec

from mycelia.node.engine.ipc import FromChild, ToChild
from mycelia.proto.wire.errors import LimitExceeded, LocalError

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""Enough for a conversation of several megabytes, or for the tokens of a full cache."""

_HEADER_BYTES = 4

_encoder = msgspec.msgpack.Encoder()
to_child = msgspec.msgpack.Decoder(ToChild)
_from_child = msgspec.msgpack.Decoder(FromChild)


def encode(message: ToChild | FromChild) -> bytes:
    """A whole frame. Raises LimitExceeded for a frame that the reader would refuse."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise LimitExceeded(f"{len(body)} bytes are too much for one engine message, {MAX_FRAME_BYTES} are allowed")
    return len(body).to_bytes(_HEADER_BYTES, "little") + body


class FrameBuffer:
    """Cuts the child's output into messages, independent of how the pipe splits it."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes | bytearray) -> list[FromChild]:
        """The messages that ``data`` completes. Raises LocalError for bytes that are not a frame."""
        self._data += data
        messages, start = [], 0
        while len(self._data) - start >= _HEADER_BYTES:
            body = start + _HEADER_BYTES
            length = _body_length(self._data[start:body])
            if len(self._data) < body + length:
                break
            messages.append(_parse(self._data[body : body + length]))
            start = body + length
        del self._data[:start]
        return messages


def _parse(body: bytes | bytearray) -> FromChild:
    try:
        message: FromChild = _from_child.decode(body)
    except msgspec.MsgspecError as exc:
        raise LocalError(f"the engine process sent nonsense: {exc}") from exc
    return message


def _body_length(header: bytes | bytearray) -> int:
    length = int.from_bytes(header, "little")
    if length > MAX_FRAME_BYTES:
        raise LocalError(f"an engine message claims {length} bytes")
    return length


def read_message(stream: BinaryIO) -> ToChild | None:
    """The next message to the child, blocking; None at the end of the stream, also in the middle of a frame."""
    header = stream.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES:
        return None
    length = _body_length(header)
    body = stream.read(length)
    if len(body) < length:
        return None
    message: ToChild = to_child.decode(body)
    return message


class Replies:
    """The pipe to the parent, for any thread. ``put`` collects messages; ``send`` and ``flush`` write them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._buffer = bytearray()

    def put(self, message: FromChild) -> None:
        with self._lock:
            self._buffer += encode(message)

    def send(self, message: FromChild) -> None:
        self.put(message)
        self.flush()

    def flush(self) -> None:
        with self._lock:
            view = memoryview(bytes(self._buffer))
            self._buffer.clear()
            while view:
                try:
                    view = view[os.write(self._fd, view) :]
                except BrokenPipeError:
                    os._exit(0)  # The parent is gone.
