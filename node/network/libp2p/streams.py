"""Messages over libp2p streams: length-prefixed frames with a deadline for every step and limits for incoming messages.

A reader cannot distinguish the end of a stream, a reset and a lost connection. Therefore every exchange has a final
frame, and a stream that ends before it is a failure.
"""

import math
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
import trio
from libp2p.abc import IMuxedConn, IMuxedStream, INetStream
from libp2p.network.stream.net_stream import NetStream

from mycelia.node.network.events import EventQueue
from mycelia.node.network.libp2p import negotiation
from mycelia.node.network.libp2p.closing import BROKEN, close_stream, reset_stream
from mycelia.node.network.libp2p.host import Host
from mycelia.node.network.network import NetworkError, Received, StreamHandler
from mycelia.node.peer_id import peer_text
from mycelia.node.signals import Signal
from mycelia.proto.admission.pace import UNBOUNDED, Pace, Rate
from mycelia.proto.wire.codec import LENGTH_PREFIX, MAX_MESSAGE_BYTES, decode, encode
from mycelia.proto.wire.errors import LimitExceeded, RemoteError
from mycelia.proto.wire.messages import Control, Demand, Hello, Links, Message, Models, Trace, Uses
from mycelia.proto.wire.refusals import Refusal

log = structlog.get_logger()

CONTROL_PROTOCOL = "/mycelia/control/1"
WRITE_DEADLINE_S = 5.0
"""Time for each WRITE_STEP_BYTES. A slow link may take longer for a large message, but its bytes have to progress."""
WRITE_STEP_BYTES = 32 * 1_024
READ_DEADLINE_S = 10.0
"""Time for each read inside a message. Between messages a stream may be silent for as long as the caller waits."""
DRAIN_DEADLINE_S = 2.0
READ_AHEAD_BYTES = 4_096
"""Bytes that one read asks for at least, so that the length and a small message after it need one call, not two."""
CONTROL_OF_A_PEER, CONTROL_OF_A_SUBNET, CONTROL_OF_A_PRIVATE_NETWORK = (
    Rate(100.0, 400.0),
    Rate(150.0, 1_200.0),
    Rate(2_000.0, 8_000.0),
)
"""Tokens per second for control messages, each about 0.3 ms of processor time: one token for a message and one for each
of its kilobytes. A message that reconciles 1,024 digests takes 9 ms and 29 tokens."""
EXCHANGES_OF_A_PEER, EXCHANGES_OF_A_SUBNET, EXCHANGES_OF_A_PRIVATE_NETWORK = (
    Rate(400.0, 2_048.0),
    Rate(400.0, 4_096.0),
    Rate(4_000.0, 16_384.0),
)
"""Tokens per second for messages in exchanges that peers open, counted alike. A prompt of 512 kB takes 513 tokens."""
FREE_ANSWERS = Trace, Links, Models, Uses, Demand
"""Answers that cost their asker nothing else, neither work nor a share of an engine. Their bytes count as if the asker
had sent them: a question has 30 bytes, and its answer up to 330 kB."""
ANSWER = Rate(1_000.0, 4_096.0)
"""The same for one answer of a peer, in an exchange that this node opened: an entry node may send any number of frames
without text, and of routes, which take 1 ms each."""
EXCHANGE_PATIENCE_S = 5.0
"""An exchange is reset when its next message would have to wait for longer."""
OWN_CONTROL = Rate(40.0, 100.0)
"""Control messages per second that this node sends to one peer. Earlier versions ban peers that send more than 50."""
MAX_OPENED_PER_PEER = 40
"""Exchanges that this node may have open with one peer. A peer accepts 64 streams of any kind: the rest is for control
messages, gossip, lookups and circuits."""
OPENING_PATIENCE_S = 2.0
"""How long ``open`` waits for an exchange to end when MAX_OPENED_PER_PEER are open."""


class Charge(Protocol):
    """A function that reports an offence of a peer."""

    def __call__(self, peer: bytes, reason: str, refusal: Refusal = Refusal.MALFORMED) -> None: ...


class Libp2pStream:
    """A MessageStream over one libp2p stream. One task may send while another receives."""

    def __init__(
        self,
        stream: INetStream,
        peer: bytes,
        charge: Charge,
        proposal: bytes = b"",
        pace: Callable[[int], Awaitable[None]] | None = None,
        pay: Callable[[Message, int], None] = lambda message, length: None,
        on_end: "Callable[[Libp2pStream], None]" = lambda stream: None,
        is_forgiving: bool = False,
    ) -> None:
        """proposal: bytes that the first frame follows, and that the peer has to answer with the same bytes. pace:
        called with the length of each message before it is read; it waits for the sender's turn or raises NetworkError.
        pay: called with each message before it is sent, and its length.
        on_end: called once, when this side closes or resets the stream. is_forgiving: see ``Network.serve``."""
        self._pace = pace
        self._pay = pay
        self._on_end = on_end
        self._stream = stream
        # Bypasses libp2p's own layer, which takes a lock, and so a scheduling round, for each look at its state.
        self._bytes: INetStream | IMuxedStream = stream.muxed_stream if isinstance(stream, NetStream) else stream
        self._peer = peer
        self._charge = charge
        self._is_forgiving = is_forgiving
        self._buffer = bytearray()
        self._over = False
        self._to_say = self._to_hear = proposal

    @property
    def peer(self) -> bytes:
        return self._peer

    @property
    def muxed_conn(self) -> IMuxedConn:
        return self._stream.muxed_conn

    @property
    def num_buffered(self) -> int:
        """Bytes that arrived and do not yet form a whole message."""
        return len(self._buffer)

    async def send(self, message: Message) -> None:
        sent = False
        try:
            data = encode(message)
            self._pay(message, len(data))
            await self._write(self._to_say + LENGTH_PREFIX.pack(len(data)) + data)
            self._to_say = b""
            sent = True
        finally:
            if not sent:
                await self.reset()  # part of a frame may have been sent: the peer could not read what follows

    async def _write(self, frame: bytes) -> None:
        """Raises NetworkError."""
        view = memoryview(frame)
        try:
            for start in range(0, len(view), WRITE_STEP_BYTES):
                with trio.move_on_after(WRITE_DEADLINE_S) as step:
                    await self._bytes.write(bytes(view[start : start + WRITE_STEP_BYTES]))
                if step.cancelled_caught:
                    raise NetworkError(f"{peer_text(self._peer)} does not read what it is sent")
        except BROKEN as exc:
            raise NetworkError(f"{peer_text(self._peer)} is gone: {type(exc).__name__}") from exc

    async def receive(self) -> Message:
        if self._to_hear:
            await self._hear()
        await self._fill(LENGTH_PREFIX.size, wait=True)
        (length,) = LENGTH_PREFIX.unpack_from(self._buffer)
        if length > MAX_MESSAGE_BYTES:
            await self._refuse(f"claims a message of {length} bytes, over {MAX_MESSAGE_BYTES}", Refusal.OVERSIZED)
        end = LENGTH_PREFIX.size + length
        if self._pace is not None:
            await self._pace(length)
        await self._fill(end, wait=False)
        data = bytes(self._buffer[LENGTH_PREFIX.size : end])
        del self._buffer[:end]  # (not earlier: after a cancellation the caller can call again)
        try:
            return decode(data)
        except RemoteError as exc:
            if self._is_forgiving:
                raise
            await self._refuse(str(exc))
            raise AssertionError("unreachable") from exc

    async def aclose(self) -> None:
        if self._over:
            return
        self._end()
        await close_stream(self._stream)

    async def drain(self) -> None:
        """Ends this side and waits until the peer has read everything and ended its own, at most DRAIN_DEADLINE_S. Only
        for a stream on which the peer sends nothing. Never raises."""
        with trio.move_on_after(DRAIN_DEADLINE_S):
            try:
                await self._bytes.close()
                while await self._bytes.read(READ_AHEAD_BYTES):
                    pass
            except BROKEN as exc:
                log.debug("drained", peer=peer_text(self._peer), reason=repr(exc))
        await self.reset()

    async def reset(self) -> None:
        if not self._over:
            self._end()
            await reset_stream(self._stream)

    def _end(self) -> None:
        self._over = True
        self._on_end(self)

    async def _hear(self) -> None:
        """Reads the answer to the proposal. Raises NetworkError, also for a wrong or late answer."""
        while len(self._buffer) < len(self._to_hear) and self._to_hear.startswith(self._buffer):
            await self._fill(len(self._buffer) + 1, wait=False)
        if not self._buffer.startswith(self._to_hear):
            await self.reset()
            raise NetworkError(f"{peer_text(self._peer)} does not speak the protocol")
        del self._buffer[: len(self._to_hear)]
        self._to_hear = b""

    async def _refuse(self, reason: str, refusal: Refusal = Refusal.MALFORMED) -> None:
        self._charge(self._peer, reason, refusal)
        await self.reset()
        raise RemoteError(f"{peer_text(self._peer)}: {reason}", refusal)

    async def _fill(self, num_bytes: int, wait: bool) -> None:
        """Reads until the buffer holds ``num_bytes``. Memory grows with arrived bytes, not with claimed lengths. wait:
        the first byte may take any time."""
        while len(self._buffer) < num_bytes:
            patient = wait and not self._buffer
            wanted = max(num_bytes - len(self._buffer), READ_AHEAD_BYTES)
            try:
                if patient:
                    data = await self._bytes.read(wanted)
                else:
                    with trio.fail_after(READ_DEADLINE_S):
                        data = await self._bytes.read(wanted)
            except trio.TooSlowError as exc:
                raise NetworkError(f"{peer_text(self._peer)} stopped in the middle of a message") from exc
            except BROKEN as exc:
                raise NetworkError(f"{peer_text(self._peer)} ended the exchange: {type(exc).__name__}") from exc
            if not data:
                raise NetworkError(f"{peer_text(self._peer)} ended the exchange")
            self._buffer += data


def answer_pace() -> Callable[[int], Awaitable[None]]:
    """The pace of one answer that a peer sends: what comes faster than ANSWER waits unread."""
    paid_at = 0.0

    async def wait(length: int) -> None:
        nonlocal paid_at
        now = trio.current_time()
        paid_at = max(paid_at, now) + (1 + length / 1_024) / ANSWER.per_s
        if (delay_s := paid_at - now - ANSWER.burst / ANSWER.per_s) > 0:
            await trio.sleep(delay_s)

    return wait


class _Outbox:
    """The one outbound control stream of a peer."""

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.stream: Libp2pStream | None = None


class Streams:
    """Opens and serves exchanges, and sends and receives control messages, on one long-lived stream each way."""

    def __init__(self, host: Host, events: EventQueue, charge: Charge) -> None:
        self._host = host
        self._events = events
        self._charge = charge
        self._outboxes: dict[bytes, _Outbox] = {}
        self._control_pace = Pace(CONTROL_OF_A_PEER, CONTROL_OF_A_SUBNET, CONTROL_OF_A_PRIVATE_NETWORK)
        self._exchange_pace = Pace(EXCHANGES_OF_A_PEER, EXCHANGES_OF_A_SUBNET, EXCHANGES_OF_A_PRIVATE_NETWORK)
        self._own_pace = Pace(OWN_CONTROL, UNBOUNDED, UNBOUNDED)
        self.exchanges: set[Libp2pStream] = set()
        """The open exchanges, opened by either side. Read-only."""
        self._num_opened: Counter[bytes] = Counter()
        """Peer -> number of open exchanges that this node opened."""
        self._ended = Signal()
        """An exchange that this node opened is over."""
        host.inbound.busy.append(lambda: {stream.peer for stream in self.exchanges})
        host.streams.one_each.add(CONTROL_PROTOCOL)
        host.serve(CONTROL_PROTOCOL, self.serve_control)

    async def open(self, peer: bytes, protocol: str, waits: bool = True) -> Libp2pStream:
        with trio.move_on_after(OPENING_PATIENCE_S):
            while self._num_opened[peer] >= MAX_OPENED_PER_PEER:
                await self._ended.wait()
        if self._num_opened[peer] >= MAX_OPENED_PER_PEER:
            raise NetworkError(f"{MAX_OPENED_PER_PEER} exchanges with {peer_text(peer)} are open already")
        self._num_opened[peer] += 1
        try:
            raw = await self._host.outbound.open(peer, protocol, waits=waits)
        except BaseException:
            self._count_ended(peer)
            raise
        proposal = b"" if waits else negotiation.proposal(protocol)

        def on_end(stream: Libp2pStream) -> None:
            self.exchanges.discard(stream)
            self._count_ended(peer)

        stream = Libp2pStream(raw, peer, self._charge, proposal, pace=answer_pace(), on_end=on_end)
        self.exchanges.add(stream)
        return stream

    def _count_ended(self, peer: bytes) -> None:
        self._num_opened -= Counter([peer])  # (which deletes a count of zero)
        self._ended.notify()

    def serve(self, protocol: str, handler: StreamHandler, is_forgiving: bool = False) -> None:
        async def serve_stream(raw: INetStream) -> None:
            stream = self._wrap(raw, self._exchange_pace, EXCHANGE_PATIENCE_S, is_forgiving)
            self.exchanges.add(stream)
            try:
                await handler(stream)
                await stream.aclose()
            except (NetworkError, RemoteError, LimitExceeded) as exc:
                log.debug("exchange broke off", protocol=protocol, peer=peer_text(stream.peer), reason=str(exc))
            except Exception:
                log.exception("stream handler failed", protocol=protocol, peer=peer_text(stream.peer))
            finally:
                await stream.reset()  # (does nothing after aclose; without it the peer would wait for ever)

        self._host.serve(protocol, serve_stream)

    async def send(self, peer: bytes, message: Control) -> None:
        """Sends a control message. Opens a new stream, once, if the old one broke since the last message."""
        if peer not in self._host.table:
            raise NetworkError(f"not connected to {peer_text(peer)}")
        outbox = self._outboxes.setdefault(peer, _Outbox())
        async with outbox.lock:
            await trio.sleep(self._own_pace.delay_s(peer, "", 1.0, trio.current_time(), math.inf) or 0.0)
            for last_attempt in (outbox.stream is None, True):
                try:
                    if outbox.stream is None:
                        raw = await self._host.outbound.open(peer, CONTROL_PROTOCOL)
                        outbox.stream = Libp2pStream(raw, peer, self._charge)
                    await outbox.stream.send(message)
                    return
                except NetworkError:
                    outbox.stream = None
                    if last_attempt:
                        raise
                except BaseException:
                    outbox.stream = None  # (cancelled in the middle of a frame: send() has reset the stream)
                    raise

    async def move(self, peer: bytes) -> None:
        """Has the next control message open a new stream if the present one is not on the best connection. None is lost
        or overtaken."""
        outbox = self._outboxes.get(peer)
        if outbox is not None:
            async with outbox.lock:
                if outbox.stream is not None and not self._host.table.is_best(outbox.stream.muxed_conn):
                    stream, outbox.stream = outbox.stream, None
                    await stream.drain()

    def forget(self, peer: bytes) -> None:
        self._outboxes.pop(peer, None)

    def _wrap(self, raw: INetStream, pace: Pace, patience_s: float, is_forgiving: bool = False) -> Libp2pStream:
        peer, subnet = raw.muxed_conn.peer_id.to_bytes(), self._host.inbound.subnet(raw.muxed_conn)

        async def wait(length: int) -> None:
            tokens = 1 + length / 1_024
            delay_s = pace.delay_s(peer, subnet, tokens, trio.current_time(), patience_s)
            if delay_s is None:
                raise NetworkError(f"{peer_text(peer)} asks too much at once")
            if delay_s:
                await trio.sleep(delay_s)

        def pay(message: Message, length: int) -> None:
            if isinstance(message, FREE_ANSWERS):
                pace.delay_s(peer, subnet, length / 1_024, trio.current_time(), math.inf)

        return Libp2pStream(
            raw, peer, self._charge, pace=wait, pay=pay, on_end=self.exchanges.discard, is_forgiving=is_forgiving
        )

    async def serve_control(self, raw: INetStream) -> None:
        """Serves a peer's control stream. Messages over the rate stay unread: the peer waits, and none is lost."""
        stream = self._wrap(raw, self._control_pace, math.inf)
        try:
            while True:
                message = await stream.receive()
                if not isinstance(message, Control):
                    self._charge(stream.peer, f"{type(message).__name__} does not belong on a control stream")
                    return
                if isinstance(message, Hello):
                    self._host.inbound.said_hello(stream.peer)
                await self._events.put_wait(Received(stream.peer, message))
        except (NetworkError, RemoteError):
            return  # (the peer closed its side, or receive() has charged it)
        finally:
            await stream.reset()
