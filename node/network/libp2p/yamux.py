"""Yamux, the protocol that carries many streams over one connection, optimized for many small frames.

Peers may run any implementation of https://github.com/hashicorp/yamux/blob/master/spec.md. A frame of 100 bytes costs
both ends together 0.09 ms of processor time; with libp2p's own implementation it is 0.35 ms. Here one task of each
connection reads all bytes that have arrived and passes them to the streams, and one writes all that are queued.

Theory. Every stream has a window for each direction: the number of bytes that the sender may still send, WINDOW_BYTES
at first. The receiver returns the room once it has read half of a window. A stream's first frame carries SYN or, from
the other side, ACK. FIN ends one direction, RST both.

Invariants: a stream is in ``_streams`` exactly until both of its directions are over; ``_outgoing`` holds whole frames
in order, and no more than MAX_OUTGOING_BYTES beyond what one writer adds; a stream buffers at most WINDOW_BYTES.
"""

import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
import trio
from libp2p.abc import ISecureConn
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamError,
)

from mycelia.node.network.libp2p.noise import NoisePackets
from mycelia.node.network.libp2p.yamux_stream import (
    ACK,
    DATA,
    GO_AWAY,
    HEADER,
    PING,
    RST,
    SYN,
    WINDOW,
    WINDOW_BYTES,
    Connection,
    ProtocolError,
    YamuxStream,
)
from mycelia.node.network.line import Line
from mycelia.node.peer_id import peer_text
from mycelia.node.signals import Signal

log = structlog.get_logger()

MAX_OUTGOING_BYTES = 64 * 1_024
"""Queued bytes above which writers wait for the socket."""
MAX_PACKET_BYTES = 64 * 1_024
"""Bytes of one write, which has to end within WRITE_DEADLINE_S."""
MAX_REPLIES = 4_096
"""Unsent replies to the peer's frames above which no more of its frames are read."""
MAX_STREAMS = 256
"""Streams that one side may have open."""
WRITE_DEADLINE_S = 5.0
"""The connection ends when the peer takes no bytes for this long, since nothing more can be sent on it."""
OPENING_WORK, PACED_WORK = 60, 512
"""The cost of serving a stream that the peer opens, and the cost after which ``pace`` is called, both in frames."""
FLUSH_DEADLINE_S = 0.25
"""Time to send the queued frames when a connection is closed."""

_NORMAL, _PROTOCOL_ERROR = 0, 1
_ERRORS = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class YamuxConnection(Connection):
    """All streams with one peer. ``start`` must be running while it is used."""

    def __init__(
        self, secured_conn: ISecureConn, peer_id: ID, is_initiator: bool | None = None, on_close: object = None
    ) -> None:
        assert isinstance(secured_conn, SecureSession), "Noise is the only security offered"
        self.peer_id = peer_id
        self.secured_conn = secured_conn
        self.event_started = trio.Event()
        self.last_received_at = trio.current_time()
        """When the last bytes of the peer arrived, on trio's clock."""
        self._packets = NoisePackets(secured_conn)
        self._is_initiator = secured_conn.is_initiator if is_initiator is None else is_initiator
        self._next_id = 1 if self._is_initiator else 2
        self._streams: dict[int, YamuxStream] = {}
        self._pings: dict[int, tuple[float, Callable[[float], None]]] = {}
        """Number of a ping without an answer -> when it was sent, and what to call with the seconds that it took."""
        self._num_pings = 0
        self._accept, self._accepted = trio.open_memory_channel[YamuxStream](MAX_STREAMS)
        self._incoming = bytearray()
        self._body: tuple[YamuxStream | None, int, int] | None = None
        """An incomplete data frame: its stream (None: it is over), the number of its missing bytes, and its flags."""
        self._outgoing = bytearray()
        self._num_replies = 0
        """An upper bound of the number of replies in ``_outgoing``."""
        self._has_outgoing = trio.Event()
        self._has_room = Signal()
        self._ended = trio.Event()
        self._fewer = Signal()
        """A stream is over."""
        self.on_end: Callable[[], None] = lambda: None
        """Called at the end of the connection, perhaps more than once."""
        self.pace: Callable[[int], Awaitable[None]] | None = None
        """Called with the cost that the peer has caused since the last call. Nothing is read until it returns."""
        self._work = 0
        self.line: Line | None = None
        """Counts and slows the bytes of the connection; None: they stay in the local network."""

    @property
    def num_streams(self) -> int:
        """The number of streams of which at least one direction is open."""
        return len(self._streams)

    @property
    def is_initiator(self) -> bool:
        return self._is_initiator

    @property
    def local_address(self) -> tuple[str, int]:
        """The IP address and port of this machine that the connection uses; ("", 0): unknown, or a circuit."""
        return self._packets.local_address

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set() and not self._ended.is_set()

    @property
    def is_closed(self) -> bool:
        return self._ended.is_set()

    async def start(self) -> None:
        """Reads and writes until the connection ends. Never raises for the peer's errors."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, nursery.cancel_scope)
                self.event_started.set()
                await self._read()
                await self._flush()
                nursery.cancel_scope.cancel()
        finally:
            self._end()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + FLUSH_DEADLINE_S):
                await self._close_socket()

    async def close(self) -> None:
        """Sends GO_AWAY and ends the connection, within FLUSH_DEADLINE_S."""
        if not self._ended.is_set():
            self.queue(GO_AWAY, 0, 0, _NORMAL)
            await self._flush()
        self._end()
        await self._close_socket()

    async def wait_closed(self) -> None:
        await self._ended.wait()

    async def wait_idle(self) -> None:
        """Returns when no stream is open, also at the end of the connection."""
        await trio.lowlevel.checkpoint()
        while self._streams and not self._ended.is_set():
            await self._fewer.wait()

    async def open_stream(self) -> YamuxStream:
        """A new stream, of which the peer learns with its first frame. Raises MuxedStreamError."""
        await trio.lowlevel.checkpoint()
        if self._ended.is_set():
            raise MuxedStreamError("the connection is closed")
        if sum(stream_id % 2 == self._next_id % 2 for stream_id in self._streams) >= MAX_STREAMS:
            raise MuxedStreamError(f"{MAX_STREAMS} streams with this peer are open")
        stream = self._streams[self._next_id] = YamuxStream(self, self._next_id, SYN)
        self._next_id += 2
        return stream

    async def accept_stream(self) -> YamuxStream:
        """The next stream that the peer opened. Raises MuxedConnUnavailable at the end of the connection."""
        try:
            return await self._accepted.receive()
        except trio.EndOfChannel as exc:
            raise MuxedConnUnavailable("the connection is closed") from exc

    def send_ping(self, on_answer: Callable[[float], None]) -> int:
        """Sends a ping and returns its number. on_answer: called with the seconds until the answer, unless
        ``forget_ping`` comes first. Never raises; at the end of the connection there is no answer."""
        nonce, self._num_pings = self._num_pings, (self._num_pings + 1) % 2**32
        self._pings[nonce] = time.perf_counter(), on_answer
        self.queue(PING, SYN, 0, nonce)
        return nonce

    def forget_ping(self, nonce: int) -> None:
        """Gives up the answer to a ping, if it has not come."""
        self._pings.pop(nonce, None)

    # --- writing ---------------------------------------------------------------------------------------------------

    def queue(self, kind: int, flags: int, stream_id: int, length: int, data: bytes = b"") -> None:
        if not self._ended.is_set():
            self._outgoing += HEADER.pack(0, kind, flags, stream_id, length)
            self._outgoing += data
            self._has_outgoing.set()

    async def room(self) -> None:
        """Waits until at most MAX_OUTGOING_BYTES are queued. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        while len(self._outgoing) > MAX_OUTGOING_BYTES and not self._ended.is_set():
            await self._has_room.wait()

    async def _flush(self) -> None:
        with trio.move_on_after(FLUSH_DEADLINE_S):
            while self._outgoing and not self._ended.is_set():
                await self._has_room.wait()

    async def _write(self, connection: trio.CancelScope) -> None:
        try:
            with trio.CancelScope() as stuck:
                await self._write_packets(stuck)
            reason = "the peer takes no bytes"
        except _ERRORS as exc:
            reason = repr(exc)
        log.debug("connection cannot be written", peer=peer_text(self.peer_id.to_bytes()), reason=reason)
        connection.cancel()

    async def _write_packets(self, stuck: trio.CancelScope) -> None:
        """Writes queued frames until ``stuck`` is cancelled. Its deadline is set while the socket takes no bytes."""
        while True:
            await self._has_outgoing.wait()
            data = bytes(self._outgoing[:MAX_PACKET_BYTES])
            if rest := self._packets.send_at_once(data):
                stuck.deadline = trio.current_time() + WRITE_DEADLINE_S
                await self._packets.send_rest(rest)
                stuck.deadline = math.inf
            if self.line is not None:
                await self.line.sent(len(data))
            # (not earlier: a writer that waits for room waits until the socket has taken the bytes)
            del self._outgoing[: len(data)]
            if not self._outgoing:
                self._num_replies = 0
                self._has_outgoing = trio.Event()
            self._has_room.notify()

    # --- reading ---------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while data := await self._packets.receive():
                self.last_received_at = trio.current_time()
                if self.line is not None:
                    await self.line.received(len(data))
                self._incoming += data
                self._take_frames()
                await self._room_for_replies()
                if self.pace is not None and (work := self._work + self._packets.num_opened) >= PACED_WORK:
                    self._work = self._packets.num_opened = 0
                    await self.pace(work)
        except ProtocolError as exc:
            log.debug("yamux protocol broken", peer=peer_text(self.peer_id.to_bytes()), reason=str(exc))
            self.queue(GO_AWAY, 0, 0, _PROTOCOL_ERROR)
        except _ERRORS as exc:
            log.debug("connection lost", peer=peer_text(self.peer_id.to_bytes()), error=repr(exc))

    async def _room_for_replies(self) -> None:
        """Waits while too many replies are unsent: otherwise a peer that asks and never reads would fill the memory.
        Reading waits for no other kind of room: two ends that both wait for it would never read again."""
        while self._num_replies > MAX_REPLIES and not self._ended.is_set():
            await self._has_room.wait()

    def is_open(self, stream: YamuxStream) -> bool:
        # (a peer that breaks the protocol may have opened another stream with the same number)
        return self._streams.get(stream.stream_id) is stream

    def forget(self, stream: YamuxStream) -> None:
        if self.is_open(stream):
            del self._streams[stream.stream_id]
            self._fewer.notify()

    def count_reply(self) -> None:
        self._num_replies += 1

    def _reply(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        self.count_reply()
        self.queue(kind, flags, stream_id, length)

    def _take_frames(self) -> None:
        """Handles all frames that have arrived. Passes on an incomplete data frame's bytes, too: memory holds only
        bytes that arrived, whatever length the peer claims."""
        buffer, start = self._incoming, 0
        while True:
            if self._body is not None:
                stream, left, flags = self._body
                piece = buffer[start : start + left]
                start += len(piece)
                if stream is not None and piece:
                    stream.on_data(piece)
                if len(piece) < left:
                    self._body = (stream, left - len(piece), flags)
                    break
                self._body = None
                if stream is not None:
                    stream.on_flags(flags)
            if len(buffer) - start < HEADER.size:
                break
            version, kind, flags, stream_id, length = HEADER.unpack_from(buffer, start)
            start += HEADER.size
            self._work += 1
            if version != 0:
                raise ProtocolError(f"version {version}")
            if kind in (DATA, WINDOW):
                self._on_stream_frame(kind, flags, stream_id, length)
            elif kind == PING:
                self._on_ping(flags, length)
            elif kind == GO_AWAY:
                raise MuxedConnUnavailable("the peer said good-bye")
            else:
                raise ProtocolError(f"frame of kind {kind}")
        del buffer[:start]

    def _on_stream_frame(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        stream = self._streams.get(stream_id)
        if flags & SYN:
            stream = self.on_opened(stream_id)
        if kind == DATA:
            if length > WINDOW_BYTES:
                raise ProtocolError(f"a frame of {length} bytes")
            if stream is not None:
                stream.on_length(length)
            self._body = (stream, length, flags)
        elif stream is not None:
            stream.on_room(length)
            stream.on_flags(flags)

    def on_opened(self, stream_id: int) -> YamuxStream | None:
        """Accepts a stream that the peer opens; None: it has too many. Raises ProtocolError for a wrong number."""
        if stream_id % 2 == self._next_id % 2 or stream_id in self._streams or not stream_id:
            raise ProtocolError(f"opens stream {stream_id}")
        self._work += OPENING_WORK
        stream = YamuxStream(self, stream_id, ACK)
        if len(self._streams) < 2 * MAX_STREAMS:
            with suppress(trio.WouldBlock):
                self._accept.send_nowait(stream)
                self._streams[stream_id] = stream
                return stream
        self._reply(WINDOW, RST, stream_id, 0)
        return None

    def _on_ping(self, flags: int, nonce: int) -> None:
        if flags & SYN:
            self._reply(PING, ACK, 0, nonce)
        elif nonce in self._pings:
            sent_at, on_answer = self._pings.pop(nonce)
            on_answer(time.perf_counter() - sent_at)

    # --- the end ---------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        self._ended.set()
        self.on_end()
        self._accept.close()
        for stream in list(self._streams.values()):
            stream.end()
        self._pings.clear()
        self._has_room.notify()
        self._fewer.notify()

    async def _close_socket(self) -> None:
        try:
            await self._packets.aclose()
        except _ERRORS as exc:
            log.debug("closing a socket failed", error=repr(exc))
