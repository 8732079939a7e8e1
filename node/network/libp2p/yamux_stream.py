"""One stream of a Yamux connection: its two windows, its unread bytes and the ends of its directions.

The theory and the invariants are in ``yamux.py``.
"""

import struct
from abc import abstractmethod

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from multiaddr import Multiaddr

from mycelia.node.signals import Signal

WINDOW_BYTES = 256 * 1_024
"""The protocol's first window. It also bounds the memory of a stream that is not read."""
MAX_FRAME_BYTES = 32 * 1_024
WINDOW_DEADLINE_S = 5.0
"""The longest wait for a peer that does not read this stream although its connection takes bytes."""

HEADER = struct.Struct("!BBHII")
DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


class ProtocolError(Exception):
    """The peer broke the protocol, so the connection ends."""


class Connection(IMuxedConn):
    """The part of a connection that its streams use, and what its socket answers."""

    secured_conn: ISecureConn

    @abstractmethod
    def queue(self, kind: int, flags: int, stream_id: int, length: int, data: bytes = b"") -> None:
        """Queues a frame, which is sent as soon as the socket takes it. Does nothing after the connection's end."""

    @abstractmethod
    async def room(self) -> None:
        """Waits until there is room for more frames."""

    @abstractmethod
    def count_reply(self) -> None:
        """Counts a frame that answers one of the peer's."""

    @abstractmethod
    def is_open(self, stream: "YamuxStream") -> bool:
        """Whether the stream is known to the connection."""

    @abstractmethod
    def forget(self, stream: "YamuxStream") -> None:
        """Removes the stream, of which both directions are over."""

    def get_transport_addresses(self) -> list[Multiaddr]:
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        return self.secured_conn.get_connection_type()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.secured_conn.get_remote_address()


class YamuxStream(IMuxedStream):
    """One stream. One task may write while another reads."""

    def __init__(self, connection: "Connection", stream_id: int, first_flag: int) -> None:
        self.muxed_conn = connection
        self.stream_id = stream_id
        self._connection = connection
        self._flag_due = first_flag
        """SYN or ACK until the first frame is queued, then 0."""
        self._send_window = self._receive_window = WINDOW_BYTES
        self._num_unannounced = 0
        self._buffer = bytearray()
        self._changed = Signal()
        """Data, room or the end has arrived."""
        self.is_read_over = False
        """Whether no more bytes will arrive. The buffer may still hold unread ones."""
        self.is_write_over = False
        self._is_discarded = False

    async def read(self, n: int | None = None) -> bytes:
        """Between one and ``n`` bytes; None or -1: all that have arrived. Raises MuxedStreamEOF at the end, also after
        a reset or the loss of the connection."""
        if n == 0:
            return b""
        if self._buffer or self.is_read_over:
            await trio.lowlevel.checkpoint()
        while not self._buffer:
            if self.is_read_over:
                raise MuxedStreamEOF("the stream is over")
            await self._changed.wait()
        data = bytes(self._buffer) if n is None or n < 0 else bytes(self._buffer[:n])
        del self._buffer[: len(data)]
        self._num_unannounced += len(data)
        if self._num_unannounced >= WINDOW_BYTES // 2 and not self.is_read_over:
            self._receive_window += self._num_unannounced
            self._queue(WINDOW, 0, self._num_unannounced)
            self._num_unannounced = 0
        return data

    @property
    def num_unread(self) -> int:
        """The number of bytes that have arrived and were not read."""
        return len(self._buffer)

    async def peek(self) -> bytes:
        """The bytes that the next ``read`` returns, which stay unread; empty at the end."""
        await trio.lowlevel.checkpoint()
        while not self._buffer and not self.is_read_over:
            await self._changed.wait()
        return bytes(self._buffer)

    async def write(self, data: bytes) -> None:
        """Writes all of ``data``. Returns when the connection has room for more, which is before the peer has received
        it. Raises MuxedStreamError."""
        sent = 0
        while sent < len(data):
            if self.is_write_over:
                if self.is_read_over:
                    raise MuxedStreamReset("the stream is over")
                raise MuxedStreamClosed("closed for writing")
            if self._send_window:
                chunk = data[sent : sent + min(self._send_window, MAX_FRAME_BYTES)]
                self._send_window -= len(chunk)
                sent += len(chunk)
                self._queue(DATA, 0, len(chunk), chunk)
                await self._connection.room()
            else:
                await self._wait_window()

    async def _wait_window(self) -> None:
        with trio.move_on_after(WINDOW_DEADLINE_S):
            while not self._send_window and not self.is_write_over:
                await self._changed.wait()
            return
        raise MuxedStreamError("the peer does not read this stream")

    async def close(self) -> None:
        """Ends the direction to the peer. Never raises."""
        await trio.lowlevel.checkpoint()
        if not self.is_write_over:
            self.is_write_over = True
            self._queue(WINDOW, FIN, 0)
            self._forget_if_over()

    def discard(self) -> None:
        """Drops unread and later bytes. The peer can send no more than the window allows."""
        self._is_discarded = True
        self._buffer.clear()

    async def reset(self) -> None:
        """Ends both directions and drops the unread bytes. Never raises."""
        await trio.lowlevel.checkpoint()
        if self._connection.is_open(self) and self._flag_due != SYN:
            self._connection.count_reply()  # (a peer can cause resets by opening streams that are refused)
            self._queue(WINDOW, RST, 0)
        self._buffer.clear()
        self.end()

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("use trio's cancel scopes")

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._connection.get_remote_address()

    async def __aenter__(self) -> "YamuxStream":
        return self

    # --- for the connection -----------------------------------------------------------------------------------------

    def on_data(self, data: bytes | bytearray) -> None:
        if not self.is_read_over and not self._is_discarded:
            self._buffer += data
            self._changed.notify()

    def on_length(self, num_bytes: int) -> None:
        """Takes a data frame's length before its bytes. Raises ProtocolError when the window has no room for it."""
        self._receive_window -= num_bytes
        if self._receive_window < 0:
            raise ProtocolError("sent more than the window allows")

    def on_room(self, num_bytes: int) -> None:
        self._send_window += num_bytes
        self._changed.notify()

    def on_flags(self, flags: int) -> None:
        if flags & RST:
            self.end()
        elif flags & FIN:
            self.is_read_over = True
            self._forget_if_over()
            self._changed.notify()

    def end(self) -> None:
        """Ends both directions. Bytes that have arrived can still be read."""
        self.is_read_over = self.is_write_over = True
        self._forget_if_over()
        self._changed.notify()

    def _forget_if_over(self) -> None:
        if self.is_read_over and self.is_write_over:
            self._connection.forget(self)

    def _queue(self, kind: int, flags: int, length: int, data: bytes = b"") -> None:
        if flags and self._flag_due == ACK:  # (libp2p's own code ignores flags beside ACK)
            self._connection.queue(WINDOW, ACK, self.stream_id, 0)
            self._flag_due = 0
        self._connection.queue(kind, flags | self._flag_due, self.stream_id, length, data)
        self._flag_due = 0
