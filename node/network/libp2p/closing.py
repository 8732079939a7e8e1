"""Functions that end libp2p's connections and streams, whatever libp2p raises about broken ones."""

import structlog
import trio
from libp2p.abc import INetConn, INetStream
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.stream.net_stream import NetStream

from mycelia.node.network.deadlines import shielded
from mycelia.node.network.libp2p.yamux_stream import YamuxStream

log = structlog.get_logger()

CLOSE_DEADLINE_S = 1.0
BROKEN = (BaseLibp2pError, OSError, ValueError, trio.BrokenResourceError, trio.ClosedResourceError)
"""The errors that libp2p's streams are documented or were seen to raise. The first covers end, reset and closed."""


async def close_connection(connection: INetConn) -> None:
    try:
        await connection.close()
    except BROKEN as exc:
        log.debug("closing a connection failed", error=repr(exc))


async def reset_stream(stream: INetStream) -> None:
    """Resets a stream within CLOSE_DEADLINE_S, also in a cancelled task: the peer must be notified, and libp2p's
    bookkeeping freed."""
    with shielded(CLOSE_DEADLINE_S):
        try:
            await stream.reset()
        except BROKEN as exc:
            log.debug("reset failed", error=repr(exc))


async def close_stream(stream: INetStream) -> None:
    """Ends this node's side after all written bytes, and drops what the peer still sends. Never raises."""
    try:
        with trio.fail_after(CLOSE_DEADLINE_S):
            await stream.close()
    except (*BROKEN, trio.TooSlowError):
        await reset_stream(stream)
    muxed = stream.muxed_stream if isinstance(stream, NetStream) else None
    if isinstance(muxed, YamuxStream):
        muxed.discard()  # (a peer that never ends its side must not fill this node's memory)
