"""Framing with a peer that lies, stops, stalls or vanishes. The stream below is a fake with a script of bytes."""

import math

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.network.stream.exceptions import StreamEOF, StreamReset

from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p import streams
from mycelia.node.network.libp2p.streams import Libp2pStream
from mycelia.node.network.network import NetworkError
from mycelia.proto.admission.pace import Rate
from mycelia.proto.wire.codec import LENGTH_PREFIX, MAX_MESSAGE_BYTES, encode
from mycelia.proto.wire.errors import LimitExceeded, RemoteError
from mycelia.proto.wire.messages import Message, Text
from mycelia.proto.wire.refusals import Refusal
from tests.node.network.libp2p.network_helpers import hello, tokens

PEER = new_identity().peer_id


class FakeStream:
    """A stream that delivers ``incoming`` in pieces of at most ``piece`` bytes and then ends or is silent for ever."""

    def __init__(self, incoming: bytes = b"", piece: int = 7, silent: bool = False) -> None:
        self.incoming = incoming
        self.piece = piece
        self.silent = silent
        self.stuck = False
        self.broken = False
        self.written = b""
        self.largest_read = 0
        self.closed = False
        self.was_reset = False

    async def read(self, num_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self.largest_read = max(self.largest_read, num_bytes)
        if not self.incoming:
            if self.silent:
                await trio.sleep_forever()
            raise StreamEOF
        data = self.incoming[: min(num_bytes, self.piece)]
        self.incoming = self.incoming[len(data) :]
        return data

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self.stuck:
            await trio.sleep_forever()
        if self.broken:
            raise StreamReset
        self.written += data

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed = True

    async def reset(self) -> None:
        await trio.lowlevel.checkpoint()
        self.was_reset = True


class Case:
    def __init__(self, fake: FakeStream) -> None:
        self.fake = fake
        self.charges: list[Refusal] = []
        self.stream = Libp2pStream(fake, PEER, self.charge)  # type: ignore[arg-type]

    def charge(self, peer: bytes, reason: str, refusal: Refusal = Refusal.MALFORMED) -> None:
        assert peer == PEER and reason
        self.charges.append(refusal)


def framed(data: bytes) -> bytes:
    return LENGTH_PREFIX.pack(len(data)) + data


@settings(max_examples=200)
@given(st.binary(max_size=64), st.integers(1, 9))
def test_any_bytes_are_messages_or_a_refusal(data: bytes, piece: int) -> None:
    async def read() -> None:
        case = Case(FakeStream(data, piece))
        try:
            while True:
                await case.stream.receive()
        except RemoteError:
            assert len(case.charges) == 1
        except NetworkError:
            assert not case.charges

    trio.run(read)


async def test_messages_arrive_whole_and_in_order() -> None:
    sent: list[Message] = [hello("one"), tokens(2), hello("three")]
    case = Case(FakeStream(b"".join(framed(encode(message)) for message in sent)))
    assert [await case.stream.receive() for _ in sent] == sent
    with pytest.raises(NetworkError, match="ended the exchange"):
        await case.stream.receive()
    assert not case.charges


async def test_send_is_what_receive_reads() -> None:
    case = Case(FakeStream())
    await case.stream.send(hello())
    assert await Case(FakeStream(case.fake.written)).stream.receive() == hello()


@pytest.mark.parametrize("length", [MAX_MESSAGE_BYTES + 1, 16_000_000, 2**32 - 1])
async def test_an_oversize_claim_is_refused_without_reading_on(length: int) -> None:
    case = Case(FakeStream(LENGTH_PREFIX.pack(length) + b"x" * 1000))
    with pytest.raises(RemoteError):
        await case.stream.receive()
    assert len(case.fake.incoming) == LENGTH_PREFIX.size + 1000 - case.fake.piece, "one read, and no more"
    assert case.fake.was_reset
    assert case.charges == [Refusal.OVERSIZED]


@pytest.mark.parametrize("garbage", [b"", b"\xff\xff", b"\x00" * 100, encode(hello()) + b"\x00"])
async def test_garbage_is_charged(garbage: bytes) -> None:
    case = Case(FakeStream(framed(garbage)))
    with pytest.raises(RemoteError):
        await case.stream.receive()
    assert case.fake.was_reset
    assert case.charges == [Refusal.MALFORMED]


@pytest.mark.parametrize("cut", [1, 3, 4, 6])
async def test_a_truncated_message_is_a_broken_exchange(cut: int) -> None:
    case = Case(FakeStream(framed(encode(hello()))[:cut]))
    with pytest.raises(NetworkError):
        await case.stream.receive()
    assert not case.charges


async def test_a_peer_that_stops_inside_a_message_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    case = Case(FakeStream(framed(encode(hello()))[:6], silent=True))
    with pytest.raises(NetworkError, match="in the middle"):
        await case.stream.receive()


async def test_frames_that_say_nothing_are_read_at_a_pace(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "ANSWER", Rate(10.0, 20.0))
    fake = FakeStream(framed(encode(Text(text=""))) * 50, piece=64)
    stream = Libp2pStream(fake, PEER, lambda *args: None, pace=streams.answer_pace())  # type: ignore[arg-type]
    for number in range(50):
        await stream.receive()
        assert trio.current_time() >= (number - 20) / 10
    assert trio.current_time() < 5


async def test_silence_between_messages_is_allowed(autojump_clock: trio.testing.MockClock) -> None:
    case = Case(FakeStream(silent=True))
    with trio.move_on_after(10 * streams.READ_DEADLINE_S) as scope:
        await case.stream.receive()
    assert scope.cancelled_caught


async def test_a_cancelled_receive_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    data = framed(encode(hello()))
    case = Case(FakeStream(data[:6], silent=True))
    with trio.move_on_after(streams.READ_DEADLINE_S / 2):
        await case.stream.receive()
    case.fake.incoming = data[6:]
    assert await case.stream.receive() == hello()


async def test_a_peer_that_does_not_read_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    case = Case(FakeStream())
    case.fake.stuck = True
    with pytest.raises(NetworkError, match="does not read"):
        await case.stream.send(hello())
    assert case.fake.was_reset


async def test_a_broken_stream_is_a_network_error() -> None:
    case = Case(FakeStream())
    case.fake.broken = True
    with pytest.raises(NetworkError, match="is gone"):
        await case.stream.send(hello())


async def test_a_cancelled_send_resets_the_stream(autojump_clock: trio.testing.MockClock) -> None:
    case = Case(FakeStream())
    case.fake.stuck = True
    with trio.move_on_after(1):
        await case.stream.send(hello())
    assert case.fake.was_reset


async def test_a_message_over_the_limit_resets_the_stream() -> None:
    case = Case(FakeStream())
    with pytest.raises(LimitExceeded):
        await case.stream.send(hello("x" * MAX_MESSAGE_BYTES))
    assert case.fake.was_reset and not case.fake.written


async def test_memory_follows_what_arrives_not_what_is_claimed() -> None:
    case = Case(FakeStream(LENGTH_PREFIX.pack(MAX_MESSAGE_BYTES) + b"x" * 64, piece=math.inf))  # type: ignore[arg-type]
    with pytest.raises(NetworkError):
        await case.stream.receive()
    assert case.stream.num_buffered <= LENGTH_PREFIX.size + 64


async def test_close_and_reset_never_raise_and_happen_once() -> None:
    case = Case(FakeStream())
    await case.stream.aclose()
    await case.stream.reset()
    assert case.fake.closed
    assert not case.fake.was_reset
