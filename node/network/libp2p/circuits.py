"""Circuits: connections to nodes that cannot be dialled, through a peer that both ends can dial. What both sides of
the protocol share; ``relay_server.py`` passes circuits on, ``relaying.py`` uses them.

The protocol is libp2p's circuit relay v2, https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md. A node
behind a router *reserves* a place at a peer, its relay, and announces the address there. To dial it, a peer opens a
stream to the relay, which opens one to the node and then copies bytes both ways. The two ends use these streams like a
socket, with Noise and Yamux: the relay can neither read their messages nor pretend to be one of them.
"""

import trio
from google.protobuf.message import DecodeError, Message
from libp2p.abc import INetStream
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited

from mycelia.node.network.libp2p.closing import BROKEN, reset_stream

HOP_PROTOCOL = "/libp2p/circuit/relay/0.2.0/hop"
STOP_PROTOCOL = "/libp2p/circuit/relay/0.2.0/stop"
MAX_MESSAGE_BYTES = 4_096
STEP_DEADLINE_S = 5.0
"""Time for each message that makes a reservation, a circuit or a direct connection."""
RESERVATION_S = 3_600.0

ERRORS = (*BROKEN, DecodeError)
"""What the other side can cause while a circuit is made or used."""


class Pipe(ReadWriteCloser):
    """A stream that replaces a connection's socket."""

    def __init__(self, stream: INetStream) -> None:
        assert isinstance(stream, NetStream)
        # (not named ``stream``, where NoisePackets looks for a socket)
        self._net_stream = stream

    async def read(self, n: int | None = None) -> bytes:
        """Empty at the end. Raises ConnectionClosedError."""
        try:
            return await self._net_stream.muxed_stream.read(n)
        except MuxedStreamEOF:
            return b""
        except ERRORS as exc:
            raise ConnectionClosedError(f"the circuit broke: {exc!r}") from exc

    async def write(self, data: bytes) -> None:
        """Raises ConnectionClosedError."""
        try:
            await self._net_stream.muxed_stream.write(data)
        except ERRORS as exc:
            raise ConnectionClosedError(f"the circuit broke: {exc!r}") from exc

    async def close(self) -> None:
        await reset_stream(self._net_stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        return None  # (the only known address is the relay's)


async def say(stream: INetStream, message: Message) -> None:
    with trio.fail_after(STEP_DEADLINE_S):
        await stream.write(encode_varint_prefixed(message.SerializeToString()))


async def hear(stream: INetStream, message: Message, deadline_s: float | None = None) -> None:
    """Reads the next message. Raises TooSlowError and the errors of the stream and the parser."""
    with trio.fail_after(STEP_DEADLINE_S if deadline_s is None else deadline_s):
        message.ParseFromString(await read_varint_prefixed_bytes_limited(stream, MAX_MESSAGE_BYTES))
