"""Ending libp2p's connections and streams, whatever it raises about those that are broken already."""

import structlog
import trio
from libp2p.abc import INetConn, INetStream
from libp2p.exceptions import BaseLibp2pError

from node.network.deadlines import shielded

log = structlog.get_logger()

CLOSE_DEADLINE_S = 1.0


async def close_connection(connection: INetConn) -> None:
    try:
        await connection.close()
    except (BaseLibp2pError, OSError, trio.BrokenResourceError) as exc:
        log.debug("closing a connection failed", error=repr(exc))


async def reset_stream(stream: INetStream) -> None:
    """Also from a cancelled task, within CLOSE_DEADLINE_S."""
    with shielded(CLOSE_DEADLINE_S):
        try:
            await stream.reset()
        except (BaseLibp2pError, OSError, trio.BrokenResourceError) as exc:
            log.debug("reset failed", error=repr(exc))
