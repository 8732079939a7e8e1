"""Negotiation of a stream's protocol in one round trip: https://github.com/multiformats/multistream-select.

libp2p's own negotiation sends each line by itself, waits for each answer and reads its length byte by byte. Here both
lines go out at once, and two lines that arrive at once are answered at once. Anything else is left to libp2p's code.
A caller that knows the peer's protocols need not even wait for the answer: the lines go out with the first message.
"""

from collections.abc import Awaitable, Callable, Mapping

from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.utils import encode_delim

from mycelia.node.network.libp2p.yamux_stream import YamuxStream

MULTISTREAM = encode_delim(b"/multistream/1.0.0")
MAX_LINE_BYTES = 127
"""The longest line with a length of one byte. Longer ones are left to libp2p's code."""
OPEN_DEADLINE_S = 10.0
"""Time to agree on the protocol of a stream that this node opens."""

Handler = Callable[[INetStream], Awaitable[None]]


class NotSupportedError(Exception):
    """The peer does not speak the protocol."""


def proposal(protocol: str) -> bytes:
    """The opener's first bytes. A peer that speaks ``protocol`` answers with the same bytes."""
    return MULTISTREAM + encode_delim(protocol.encode())


async def select(stream: INetStream, protocol: str) -> None:
    """Negotiates as the opener. Waits as long as the peer takes. Raises NotSupportedError and the stream's errors."""
    wanted = proposal(protocol)
    await stream.write(wanted)
    answer = b""
    while len(answer) < len(wanted):
        answer += await stream.read(len(wanted) - len(answer))
        if not wanted.startswith(answer):
            raise NotSupportedError(f"the peer does not speak {protocol}")


async def accept(
    stream: INetStream, muxed: YamuxStream, handlers: Mapping[TProtocol | None, Handler | None]
) -> tuple[TProtocol, Handler] | None:
    """Negotiates as the other side: answers the two lines at the beginning of ``stream`` and returns the protocol that
    they ask for. Returns None, with nothing read, when the lines are incomplete or ask for something else. Raises the
    stream's errors."""
    lines = await muxed.peek()
    asked = asked_for(lines)
    handler = handlers.get(asked[0]) if asked else None
    if asked is None or handler is None:
        return None
    protocol, end = asked
    await stream.read(end)
    await stream.write(lines[:end])
    return protocol, handler


def asked_for(lines: bytes) -> tuple[TProtocol, int] | None:
    """The protocol in the two lines at the beginning of a stranger's bytes, and where the lines end; None: they are
    incomplete or no proposal. Never raises."""
    begin = len(MULTISTREAM)
    if not lines.startswith(MULTISTREAM) or len(lines) == begin or lines[begin] > MAX_LINE_BYTES:
        return None
    end = begin + 1 + lines[begin]
    line = lines[begin + 1 : end]
    if len(lines) < end or not line.endswith(b"\n"):
        return None
    return TProtocol(line[:-1].decode(errors="replace")), end
