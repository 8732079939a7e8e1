"""The exchange of a private swarm with a peer that is not let in: one request, one answer, the end.

It takes place inside Noise, so both peer ids are proven, and before a multiplexer, so nothing else of the node can be
reached: the dialler proposes PROTOCOL where it would propose Yamux. Any other proposal is answered with ``na``.
"""

import trio
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.peer.id import ID
from libp2p.transport.exceptions import MuxerUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader
from libp2p.utils import encode_delim
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from mycelia.node.network.libp2p.closing import BROKEN
from mycelia.node.network.libp2p.negotiation import MULTISTREAM, proposal
from mycelia.node.network.network import NetworkError
from mycelia.node.network.swarm_access import SwarmAccess
from mycelia.node.peer_id import peer_text
from mycelia.proto.swarm.roster import Purpose
from mycelia.proto.wire.codec import LENGTH_PREFIX, decode, encode
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import Message

PROTOCOL = "/mycelia/join/1"
MAX_MESSAGE_BYTES = 262_144
"""Longer than the largest roster."""
MAX_LINE_BYTES = 1_024
REQUEST_S = 5.0
"""Time in which a peer that is not let in has to make its request."""
ANSWER_S = 15.0
"""Time for the answer, for which a member may have to ask the swarm's admin."""


def is_turned_away(exc: BaseException) -> bool:
    """Whether a dial failed because the peer did not want to multiplex, as one that does not let this node in."""
    return isinstance(exc.__cause__, MuxerUpgradeFailure)


async def ask_entry(upgrader: TransportUpgrader, raw: IRawConnection, peer: bytes, request: Message) -> Message:
    """The answer of ``peer`` to ``request``. Closes the connection. Raises NetworkError and errors of the handshake."""
    try:
        with trio.fail_after(ANSWER_S + REQUEST_S):
            secured = await upgrader.upgrade_security(raw, True, ID(peer))
            lines = proposal(PROTOCOL)
            await secured.write(lines)
            if await _exactly(secured, len(lines)) != lines:
                raise NetworkError(f"{peer_text(peer)} does not speak {PROTOCOL}")
            await _send(secured, request)
            return await _receive(secured)
    except (RemoteError, *BROKEN) as exc:
        raise NetworkError(f"{peer_text(peer)} does not answer: {exc}") from exc
    finally:
        with trio.CancelScope(shield=True):
            await raw.close()


async def answer(secured: ISecureConn, peer: bytes, purpose: Purpose, access: SwarmAccess) -> None:
    """Serves the exchange to ``peer``. Raises any error that the peer causes."""
    with trio.fail_after(REQUEST_S):
        await _accept(secured)
        request = await _receive(secured)
    with trio.fail_after(ANSWER_S):
        reply = await access.answer(request, peer, purpose)
        if reply is not None:
            await _send(secured, reply)


async def _accept(secured: ISecureConn) -> None:
    """Negotiates PROTOCOL as the side that was dialled. Raises RemoteError when the peer wants something else."""
    header, wanted = encode_delim(b"/multistream/1.0.0"), proposal(PROTOCOL).removeprefix(MULTISTREAM)
    if await _line(secured) != header:
        raise RemoteError("no negotiation")
    await secured.write(header)
    if await _line(secured) != wanted:
        await secured.write(encode_delim(b"na"))
        raise RemoteError("the peer is not let in, and asked for something else")
    await secured.write(wanted)


async def _line(secured: ISecureConn) -> bytes:
    return encode_delim((await read_varint_prefixed_bytes_limited(secured, MAX_LINE_BYTES)).removesuffix(b"\n"))


async def _send(secured: ISecureConn, message: Message) -> None:
    data = encode(message)
    await secured.write(LENGTH_PREFIX.pack(len(data)) + data)


async def _receive(secured: ISecureConn) -> Message:
    (length,) = LENGTH_PREFIX.unpack(await _exactly(secured, LENGTH_PREFIX.size))
    if length > MAX_MESSAGE_BYTES:
        raise RemoteError(f"claims a message of {length} bytes, over {MAX_MESSAGE_BYTES}")
    return decode(await _exactly(secured, length))


async def _exactly(secured: ISecureConn, num_bytes: int) -> bytes:
    """Memory grows with arrived bytes, not with the claimed number. Raises NetworkError at the end."""
    data = bytearray()
    while len(data) < num_bytes:
        part = await secured.read(min(num_bytes - len(data), 65_536))
        if not part:
            raise NetworkError("the peer ended the exchange")
        data += part
    return bytes(data)
