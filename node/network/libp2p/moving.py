"""Leaving one of several connections with a peer: new streams take the best one (``PeerTable.connections``), gossip and
control messages move there, and the other one is closed when no exchange is left on it."""

from collections.abc import Callable

import structlog
import trio
from libp2p.abc import INetConn

from mycelia.node.network.libp2p.closing import BROKEN, close_connection
from mycelia.node.network.libp2p.gossip.gossip import Gossip
from mycelia.node.network.libp2p.negotiation import OPEN_DEADLINE_S
from mycelia.node.network.libp2p.peers import PeerTable, peer_of
from mycelia.node.network.libp2p.streams import Streams
from mycelia.node.network.libp2p.yamux import YamuxConnection
from mycelia.node.network.network import NetworkError
from mycelia.node.peer_id import peer_text

log = structlog.get_logger()

LINGER_S = 2.0
"""How long a connection must carry no stream before it is closed: the peer may still be about to use it."""


async def move_to_best(peer: bytes, streams: Streams, gossip: Gossip | None) -> None:
    """Move gossip and control messages to the best connection with ``peer``."""
    try:
        with trio.fail_after(OPEN_DEADLINE_S):
            if gossip is not None:
                await gossip.move(peer)
            await streams.move(peer)
    except (*BROKEN, NetworkError, trio.TooSlowError) as exc:
        log.debug("not_moved", peer=peer_text(peer), reason=repr(exc))


async def close_idle(connection: INetConn, table: PeerTable, is_superfluous: Callable[[], bool]) -> None:
    """Close a connection once it has carried no stream for ``LINGER_S``, unless ``is_superfluous`` becomes false.
    Returns when the table knows of the end."""
    muxer = connection.muxed_conn
    assert isinstance(muxer, YamuxConnection)
    while is_superfluous() and not muxer.is_closed:
        await muxer.wait_idle()
        await trio.sleep(LINGER_S)
        if not muxer.num_streams and is_superfluous():
            log.debug("superfluous_closed", peer=peer_text(peer_of(connection)))
            await close_connection(connection)
    if muxer.is_closed:
        await table.wait_closed(connection)
