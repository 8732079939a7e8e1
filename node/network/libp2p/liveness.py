"""Pings every connection that is quiet: measures round trips and ends connections whose other end is silent.

A stopped process or a dropped cable closes no socket. Without this, its peers would believe in it for ever.

Whatever a peer says proves that it is there, so the pings of one side answer for both: of two idle nodes the one that
wakes up first asks, and the other has then heard of it. The pings are Yamux's own, one frame each way.
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
"""Longest silence before a ping; with the deadline, a silent peer is dropped after 5 to 9 s."""
PING_SPREAD = 0.25
"""Share of it that is drawn at random each time, so that the two sides seldom ask at once."""
PING_DEADLINE_S = 5.0
ROUND_TRIP_INTERVAL_S = 30.0
"""A round trip is measured this often, also while the peer is never silent."""

_ERRORS = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


async def watch(connection: INetConn, table: PeerTable) -> None:
    """Runs as long as ``connection`` lives; closes it when it no longer answers."""
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
    """Until the peer has said nothing for a while, or its round trip is to be measured again."""
    measured_at = trio.current_time()
    patience_s = PING_INTERVAL_S * random.uniform(1 - PING_SPREAD, 1)  # noqa: S311  jitter
    while not muxer.is_closed:
        due = min(muxer.last_received_at + patience_s, measured_at + ROUND_TRIP_INTERVAL_S)
        if due <= trio.current_time():
            return
        with trio.move_on_at(due):
            await muxer.wait_closed()


async def _is_there(muxer: YamuxConnection, peer: bytes, table: PeerTable) -> bool:
    """One ping. True also when the connection has ended, which libp2p notices by itself."""
    while True:
        asked_at = trio.current_time()
        try:
            with trio.fail_after(PING_DEADLINE_S):
                table.record_round_trip(peer, await muxer.ping())
        except trio.TooSlowError:
            # Were we the ones who slept (a stopped process, a suspended laptop)? Then the answer may lie unread.
            if trio.current_time() - asked_at >= 2 * PING_DEADLINE_S:
                continue
            return muxer.last_received_at > asked_at
        except _ERRORS as exc:
            log.debug("ping failed", peer=peer_text(peer), error=repr(exc))
        return True
