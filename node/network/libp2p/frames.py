"""Messages of libp2p's own protocols: protobufs, each after its length as a varint, with bounds of size and time."""

import math
from typing import TypeVar

import trio
from google.protobuf.message import DecodeError, Message
from libp2p.abc import INetStream
from libp2p.network.stream.net_stream import NetStream
from libp2p.utils.varint import encode_uvarint

from mycelia.node.network.libp2p.closing import BROKEN, close_stream
from mycelia.node.network.network import NetworkError
from mycelia.proto.wire.errors import RemoteError

FRAME_DEADLINE_S = 10.0
"""Time to read one frame after its first byte, and time to write one."""
_MAX_LENGTH_BYTES = 4
_CHUNK_BYTES = 16 * 1_024

MessageT = TypeVar("MessageT", bound=Message)


class Frames:
    """Frames of at most ``limit`` bytes on one stream. One task may read while another writes."""

    def __init__(self, stream: INetStream, limit: int) -> None:
        self._stream = stream
        # (without libp2p's own layer, as in streams.py)
        self._bytes = stream.muxed_stream if isinstance(stream, NetStream) else stream
        self._limit = limit
        self._buffer = bytearray()

    async def read(self, patience_s: float = math.inf) -> bytes | None:
        """The next frame; None: the stream ended before it. patience_s: how long to wait for its first byte. Raises
        NetworkError when it does not come in time or the stream breaks, and RemoteError for bytes that are no frame."""
        if not self._buffer and not await self._first_bytes(patience_s):
            return None
        if (found := self._take()) is not None:
            return found  # (the usual case costs no deadline)
        with trio.move_on_after(FRAME_DEADLINE_S):
            while (found := self._take()) is None:
                if not await self._fill():
                    raise NetworkError("the stream ended in a frame")
            return found
        raise NetworkError("the peer stopped in a frame")

    async def write(self, data: bytes) -> None:
        """Writes one frame. Raises NetworkError when the peer does not take it in time or the stream breaks."""
        try:
            with trio.fail_after(FRAME_DEADLINE_S):
                await self._bytes.write(encode_uvarint(len(data)) + data)
        except (*BROKEN, trio.TooSlowError) as exc:
            raise NetworkError(f"the peer does not take an answer: {type(exc).__name__}") from exc

    async def close(self) -> None:
        await close_stream(self._stream)

    async def _first_bytes(self, patience_s: float) -> bool:
        """Returns False at the end of the stream. Raises NetworkError when nothing comes in time."""
        if patience_s == math.inf:
            return await self._fill()
        with trio.move_on_after(patience_s):
            return await self._fill()
        raise NetworkError("the peer says nothing")

    async def _fill(self) -> bool:
        """Reads more bytes into the buffer. Returns False at the end of the stream."""
        try:
            data = await self._bytes.read(_CHUNK_BYTES)
        except BROKEN:
            return False  # (the end, a reset and a lost connection read alike)
        self._buffer += data
        return bool(data)

    def _take(self) -> bytes | None:
        """Takes the first frame from the buffer; None: it is incomplete."""
        found = length_of(bytes(self._buffer[:_MAX_LENGTH_BYTES]))
        if found is None:
            return None
        begin, length = found
        if length > self._limit:
            raise RemoteError(f"claims a frame of {length} bytes, over {self._limit}")
        if len(self._buffer) < begin + length:
            return None
        frame = bytes(self._buffer[begin : begin + length])
        del self._buffer[: begin + length]
        return frame


def length_of(data: bytes) -> tuple[int, int] | None:
    """The size of the length field at the beginning of ``data``, and the length of the frame after it; None: the field
    is incomplete. Raises RemoteError when the field is too long."""
    length = 0
    for place, byte in enumerate(data[:_MAX_LENGTH_BYTES]):
        length |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return place + 1, length
    if len(data) >= _MAX_LENGTH_BYTES:
        raise RemoteError("claims a frame of more than 256 MiB")
    return None


def parsed(message: MessageT, data: bytes, limit: int) -> MessageT:
    """Parses a stranger's bytes into the empty ``message`` and returns it. Raises RemoteError for more than ``limit``
    bytes and for bytes that are no such message."""
    name = type(message).__name__
    if len(data) > limit:
        raise RemoteError(f"{name} of {len(data)} bytes, over {limit}")
    try:
        message.ParseFromString(data)
    except DecodeError as exc:
        raise RemoteError(f"no {name}: {exc}") from exc
    return message
