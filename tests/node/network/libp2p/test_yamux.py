"""This node's Yamux with libp2p's own over real Noise, and with peers that break the protocol."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamEOF, MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import Yamux
from trio.testing import MemoryReceiveStream, MemorySendStream, lockstep_stream_pair, memory_stream_pair

from mycelia.node.network.libp2p import yamux, yamux_stream
from mycelia.node.network.libp2p.noise import NoisePackets
from mycelia.node.network.libp2p.yamux import YamuxConnection
from mycelia.node.network.libp2p.yamux_stream import WINDOW_BYTES
from mycelia.node.network.line import Line
from tests.node.network.libp2p.network_helpers import PATIENCE_S, eventually

Memory = trio.StapledStream[MemorySendStream, MemoryReceiveStream]
AnyMuxer = YamuxConnection | Yamux


class Wire(ReadWriteCloser):
    """A memory stream in the form of libp2p's sockets. Counts writes and reads at most ``piece`` bytes at once."""

    def __init__(self, stream: Memory, piece: int) -> None:
        self._stream = stream
        self._piece = piece
        self.num_writes = 0

    async def read(self, n: int | None = None) -> bytes:
        try:
            return bytes(await self._stream.receive_some(min(n or self._piece, self._piece)))
        except trio.ClosedResourceError:
            return b""

    async def write(self, data: bytes) -> None:
        self.num_writes += 1
        await self._stream.send_all(data)

    async def close(self) -> None:
        await self._stream.aclose()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


@dataclass
class Ends:
    """Two finished Noise sessions and the wire below the first."""

    dialler: SecureSession
    listener: SecureSession
    wire: Wire


async def sessions(piece: int = 1 << 20, pair: tuple[Memory, Memory] | None = None) -> Ends:
    keys = [create_new_key_pair(bytes([n] * 32)) for n in (1, 2)]
    transports = [Transport(pair, noise_privkey=create_noise_key_pair().private_key) for pair in keys]
    one, two = pair or memory_stream_pair()
    wire = Wire(one, piece)
    done: list[SecureSession] = []

    async def listen() -> None:
        session = await transports[1].secure_inbound(RawConnection(Wire(two, piece), False))
        assert isinstance(session, SecureSession)
        done.append(session)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        dialler = await transports[0].secure_outbound(RawConnection(wire, True), ID.from_pubkey(keys[1].public_key))
    assert isinstance(dialler, SecureSession)
    return Ends(dialler, done[0], wire)


@asynccontextmanager
async def running(*muxers: AnyMuxer) -> AsyncIterator[None]:
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for muxer in muxers:
                nursery.start_soon(muxer.start)
            for muxer in muxers:
                await muxer.event_started.wait()
            yield
            for muxer in muxers:
                await muxer.close()


def of(kind: Callable[..., AnyMuxer], session: SecureSession) -> AnyMuxer:
    return kind(session, session.get_remote_peer())


@asynccontextmanager
async def ours(piece: int = 1 << 20) -> AsyncIterator[tuple[YamuxConnection, YamuxConnection, Wire]]:
    ends = await sessions(piece)
    one, two = (YamuxConnection(session, session.get_remote_peer()) for session in (ends.dialler, ends.listener))
    async with running(one, two):
        yield one, two, ends.wire


async def echo(muxer: AnyMuxer) -> None:
    """Sends back the bytes of one stream until its end."""
    stream = await muxer.accept_stream()
    try:
        while True:
            await stream.write(await stream.read(10_000))
    except MuxedStreamEOF:
        await stream.close()


@pytest.mark.parametrize(("dialler", "listener"), [(YamuxConnection, Yamux), (Yamux, YamuxConnection)])
async def test_streams_with_libp2ps_own_implementation(
    dialler: Callable[..., AnyMuxer], listener: Callable[..., AnyMuxer]
) -> None:
    ends = await sessions()
    one, two = of(dialler, ends.dialler), of(listener, ends.listener)
    data = bytes(range(256)) * (3 * WINDOW_BYTES // 256)  # several windows: both sides have to return room
    async with running(one, two), trio.open_nursery() as nursery:
        for opener, other in ((one, two), (two, one)):
            nursery.start_soon(echo, other)
            stream = await opener.open_stream()
            nursery.start_soon(stream.write, data)
            answer = bytearray()
            while len(answer) < len(data):
                answer += await stream.read(1 << 16)
            assert answer == data
            await stream.close()
            with pytest.raises(MuxedStreamEOF):
                await stream.read(1)
        own = one if isinstance(one, YamuxConnection) else two
        assert isinstance(own, YamuxConnection)
        assert 0 < await ping(own) < PATIENCE_S


async def test_a_bounded_line_slows_one_end_and_counts_both(autojump_clock: trio.testing.MockClock) -> None:
    async with ours() as (one, two, _):
        one.line, two.line = Line(20_000.0), Line()
        began, received = trio.current_time(), bytearray()
        stream = await one.open_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, bytes(200_000))
            other = await two.accept_stream()
            while len(received) < 200_000:
                received += await other.read(1 << 16)
        took_s = trio.current_time() - began
        assert 5 < took_s < 11, "the last packet need not wait"
        assert 200_000 < one.line.sent_bytes < 210_000 and 200_000 < two.line.received_bytes < 210_000


@pytest.mark.parametrize("other", [Yamux, YamuxConnection])
async def test_a_reset_reads_as_the_end(other: Callable[..., AnyMuxer]) -> None:
    ends = await sessions()
    one, two = YamuxConnection(ends.dialler, ends.dialler.get_remote_peer()), of(other, ends.listener)
    async with running(one, two):
        stream = await one.open_stream()
        await stream.write(b"x")
        accepted = await two.accept_stream()
        assert await accepted.read(1) == b"x"
        await accepted.reset()
        with pytest.raises(MuxedStreamEOF):
            await stream.read(1)
        with pytest.raises(MuxedStreamError):
            await stream.write(b"x")
        await eventually(lambda: not one.num_streams)


async def ping(connection: YamuxConnection) -> float:
    """The round trip in seconds. Raises MuxedConnUnavailable at the end of the connection."""
    took_s: list[float] = []

    async with trio.open_nursery() as nursery:

        async def until_closed() -> None:
            await connection.wait_closed()
            nursery.cancel_scope.cancel()

        def on_answer(seconds: float) -> None:
            took_s.append(seconds)
            nursery.cancel_scope.cancel()

        connection.send_ping(on_answer)
        nursery.start_soon(until_closed)
    if not took_s:
        raise MuxedConnUnavailable("the connection is closed")
    return took_s[0]


async def test_what_is_said_at_one_moment_goes_out_at_once() -> None:
    async with ours() as (one, two, wire):
        streams = [await one.open_stream() for _ in range(8)]
        before = wire.num_writes
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stream.write, b"a prompt")
        for _ in streams:
            accepted = await two.accept_stream()
            assert await accepted.read() == b"a prompt"
        assert wire.num_writes - before <= 2


async def test_frames_may_arrive_in_any_pieces() -> None:
    async with ours(piece=3) as (one, two, _), trio.open_nursery() as nursery:
        nursery.start_soon(echo, two)
        stream = await one.open_stream()
        await stream.write(bytes(5_000))
        received = 0
        while received < 5_000:
            received += len(await stream.read())
        await stream.close()


async def test_a_cancelled_write_tears_nothing() -> None:
    async with ours() as (one, two, _):
        stream = await one.open_stream()
        with trio.move_on_after(0.05) as scope:
            await stream.write(bytes(10 * WINDOW_BYTES))
        assert scope.cancelled_caught
        await stream.reset()
        assert 0 < await ping(one) < PATIENCE_S
        assert not two.is_closed


async def test_a_stream_that_nobody_reads_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yamux_stream, "WINDOW_DEADLINE_S", 0.05)
    async with ours() as (one, _, _):
        stream = await one.open_stream()
        with pytest.raises(MuxedStreamError, match="does not read"):
            await stream.write(bytes(WINDOW_BYTES + 1))
        assert 0 < await ping(one) < PATIENCE_S


async def test_both_ends_send_at_once_over_a_wire_that_holds_nothing() -> None:
    ends = await sessions(pair=cast(tuple[Memory, Memory], lockstep_stream_pair()))
    one, two = (YamuxConnection(session, session.get_remote_peer()) for session in (ends.dialler, ends.listener))
    data, num_streams = bytes(100_000), 8
    received: list[int] = []

    async def send(sender: YamuxConnection) -> None:
        stream = await sender.open_stream()
        await stream.write(data)

    async def receive(receiver: YamuxConnection) -> None:
        stream = await receiver.accept_stream()
        num_bytes = 0
        while num_bytes < len(data):
            num_bytes += len(await stream.read())
        received.append(num_bytes)

    async with running(one, two):
        async with trio.open_nursery() as nursery:
            for _ in range(num_streams):
                for sender, receiver in ((one, two), (two, one)):
                    nursery.start_soon(send, sender)
                    nursery.start_soon(receive, receiver)
        assert received == [len(data)] * 2 * num_streams


async def test_a_socket_that_takes_no_bytes_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yamux, "WRITE_DEADLINE_S", 0.05)
    ends = await sessions()
    one = YamuxConnection(ends.dialler, ends.dialler.get_remote_peer())

    async def stuck(data: bytes) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(ends.wire, "write", stuck)
    async with running(one):
        with pytest.raises(MuxedConnUnavailable):
            await ping(one)
        with pytest.raises(MuxedConnUnavailable):
            await one.accept_stream()
        with pytest.raises(MuxedStreamError):
            await one.open_stream()


def frame(kind: int, flags: int, stream_id: int, length: int, version: int = 0) -> bytes:
    return yamux_stream.HEADER.pack(version, kind, flags, stream_id, length)


HOSTILE = {
    "another version": frame(yamux_stream.PING, yamux_stream.SYN, 0, 1, version=1),
    "an unknown kind": frame(9, 0, 0, 0),
    "a stream of ours": frame(yamux_stream.WINDOW, yamux_stream.SYN, 3, 0),
    "a stream twice": 2 * frame(yamux_stream.WINDOW, yamux_stream.SYN, 2, 0),
    "the connection as a stream": frame(yamux_stream.WINDOW, yamux_stream.SYN, 0, 0),
    "a huge frame": frame(yamux_stream.DATA, yamux_stream.SYN, 2, WINDOW_BYTES + 1),
    "over the window": frame(yamux_stream.DATA, yamux_stream.SYN, 2, WINDOW_BYTES)
    + bytes(WINDOW_BYTES)
    + frame(0, 0, 2, 1),
}


async def send(stranger: NoisePackets, data: bytes) -> None:
    await stranger.send_rest(stranger.send_at_once(data))


@asynccontextmanager
async def with_stranger() -> AsyncIterator[tuple[YamuxConnection, NoisePackets]]:
    """A connection, and its other end as packets that a test sends."""
    ends = await sessions()
    one = YamuxConnection(ends.dialler, ends.dialler.get_remote_peer())
    async with running(one):
        yield one, NoisePackets(ends.listener)


@pytest.mark.parametrize("what", HOSTILE)
async def test_breaking_the_protocol_ends_the_connection(what: str) -> None:
    async with with_stranger() as (one, stranger):
        await send(stranger, HOSTILE[what])
        with trio.fail_after(PATIENCE_S):
            await one.wait_closed()
        assert not one.num_streams


async def test_a_forged_packet_ends_the_connection() -> None:
    async with with_stranger() as (one, stranger):
        await stranger.raw.write(b"\x00\x20" + bytes(32))
        await one.wait_closed()


async def test_a_peer_may_have_so_many_streams_and_no_more() -> None:
    async with with_stranger() as (one, stranger):
        count = 2 * yamux.MAX_STREAMS
        for stream_id in range(2, 2 * count + 4, 2):
            await send(stranger, frame(yamux_stream.WINDOW, yamux_stream.SYN, stream_id, 0))
        refused = b""
        while len(refused) < yamux_stream.HEADER.size:
            refused += await stranger.receive()
        assert yamux_stream.HEADER.unpack_from(refused)[2] == yamux_stream.RST
        assert one.num_streams <= count and not one.is_closed


async def test_what_nobody_reads_any_more_is_not_kept() -> None:
    async with ours() as (one, two, _):
        mine = await one.open_stream()
        await mine.write(b"question")
        theirs = await two.accept_stream()
        await theirs.read()
        await mine.close()
        mine.discard()
        await theirs.write(bytes(100_000))
        await ping(two)  # (the answer arrives after the data)
        await ping(one)
        assert not mine.num_unread
        await one.close()
        with pytest.raises(MuxedConnUnavailable):
            await ping(one)


async def test_frames_for_streams_that_are_over_are_dropped() -> None:
    async with with_stranger() as (one, stranger):
        await send(
            stranger, frame(yamux_stream.DATA, 0, 77, 3) + b"abc" + frame(yamux_stream.PING, yamux_stream.SYN, 0, 5)
        )
        assert await stranger.receive() == frame(yamux_stream.PING, yamux_stream.ACK, 0, 5)
        assert not one.is_closed
