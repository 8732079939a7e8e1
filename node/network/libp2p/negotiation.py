"""Which protocol a stream speaks, agreed on in one round trip: https://github.com/multiformats/multistream-select.

libp2p's own negotiation sends each line by itself, waits for each answer and reads its length byte by byte. Here both
lines go out at once, and one that came at once is answered at once. What arrives otherwise is left to libp2p's. A
caller that knows what the peer speaks need not even wait for that answer: the lines go out with the first message.
"""

from collections.abc import Awaitable, Callable, Mapping

from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.utils import encode_delim

from mycelia.node.network.libp2p.yamux import YamuxStream

MULTISTREAM = encode_delim(b"/multistream/1.0.0")
MAX_LINE_BYTES = 127
"""Longer names than a one-byte length can tell are left to libp2p's."""
OPEN_DEADLINE_S = 10.0
"""Until the protocol of a stream that this node opens is agreed on."""

Handler = Callable[[INetStream], Awaitable[None]]


class NotSupportedError(Exception):
    """The peer does not speak the protocol."""


def proposal(protocol: str) -> bytes:
    """What the opener says first. The peer says the same, if it speaks ``protocol``."""
    return MULTISTREAM + encode_delim(protocol.encode())


async def select(stream: INetStream, protocol: str) -> None:
    """As the opener. Raises NotSupportedError, and what the stream raises. Waits for as long as the peer takes."""
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
    """As the other side: the protocol that both lines at the beginning of ``stream`` ask for, answered, or None with
    nothing read: then they are not all there, or ask for something else. Raises what the stream raises."""
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
    """What the two lines at the beginning of ``lines``, a stranger's bytes, ask for and where they end; None: they are
    not all there, or no proposal. Never raises."""
    begin = len(MULTISTREAM)
    if not lines.startswith(MULTISTREAM) or len(lines) == begin or lines[begin] > MAX_LINE_BYTES:
        return None
    end = begin + 1 + lines[begin]
    line = lines[begin + 1 : end]
    if len(lines) < end or not line.endswith(b"\n"):
        return None
    return TProtocol(line[:-1].decode(errors="replace")), end
