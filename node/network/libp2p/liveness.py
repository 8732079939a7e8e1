"""Pings on quiet connections. They measure round trips and end connections whose other end is silent.

A stopped process or a dropped cable closes no socket. Without pings its peers would count it as connected for ever.

Any bytes from a peer prove that it is there, so one side's pings serve both: of two idle nodes the first to wake up
pings, and the other has then received something. The pings are Yamux's own, one frame each way.
"""

import random

import structlog
import trio
from libp2p.abc import INetConn
from libp2p.exceptions import BaseLibp2pError

from mycelia.node.network.libp2p.closing import close_connection
from mycelia.node.network.libp2p.peers import PeerTable, peer_of
from mycelia.node.network.libp2p.yamux import YamuxConnection
from mycelia.node.peer_id import peer_text

log = structlog.get_logger()

PING_INTERVAL_S = 4.0
"""Longest silence before a ping. With the deadline, a silent peer is dropped after 5 to 9 s."""
PING_SPREAD = 0.25
"""Share of the interval that is drawn at random each time, so that the two sides seldom ping at once."""
PING_DEADLINE_S = 5.0
ROUND_TRIP_INTERVAL_S = 30.0
"""Interval at which round trips are measured, even when the peer is never silent."""

_ERRORS = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


async def watch(connection: INetConn, table: PeerTable) -> None:
    """Pings for as long as ``connection`` lives, and closes it when it no longer answers."""
    muxer = connection.muxed_conn
    assert isinstance(muxer, YamuxConnection), "no other muxer is offered"
    peer = peer_of(connection)
    while not (connection.is_closed or muxer.is_closed):  # (libp2p learns of the end a little later)
        if not await _is_there(muxer, peer, table):
            log.info("peer is silent", peer=peer_text(peer))
            break
        await wait_quiet(muxer)
    await close_connection(connection)


async def wait_quiet(muxer: YamuxConnection) -> None:
    """Returns when the peer was silent for a while, or when its round trip is to be measured again."""
    measured_at = trio.current_time()
    patience_s = PING_INTERVAL_S * random.uniform(1 - PING_SPREAD, 1)  # noqa: S311  jitter
    while not muxer.is_closed:
        due = min(muxer.last_received_at + patience_s, measured_at + ROUND_TRIP_INTERVAL_S)
        if due <= trio.current_time():
            return
        with trio.move_on_at(due):
            await muxer.wait_closed()


async def _is_there(muxer: YamuxConnection, peer: bytes, table: PeerTable) -> bool:
    """Sends one ping and returns whether the peer is there. Also True when the connection has ended, which libp2p
    notices by itself."""
    while True:
        asked_at = trio.current_time()
        try:
            with trio.fail_after(PING_DEADLINE_S):
                table.record_round_trip(peer, await muxer.ping())
        except trio.TooSlowError:
            # This process may have been stopped (a suspended laptop): then the answer may lie unread.
            if trio.current_time() - asked_at >= 2 * PING_DEADLINE_S:
                continue
            return muxer.last_received_at > asked_at
        except _ERRORS as exc:
            log.debug("ping failed", peer=peer_text(peer), error=repr(exc))
        return True
