"""Pings on quiet connections. They measure round trips and end connections whose other end is silent.

A stopped process or a dropped cable closes no socket. Without pings its peers would count it as connected for ever.

Any bytes from a peer prove that it is there, so one side's pings serve both: of two idle nodes the first to wake up
pings, and the other has then received something. The pings are Yamux's own, one frame each way.
"""

import random
from collections import deque

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
STARVED_S, MAX_STARVED = 1.0, 6
"""A ping without an answer counts only if this process was not kept from running for longer, and at most so many pings
in a row do not count."""
ROUND_TRIP_INTERVAL_S = 30.0
"""Interval at which round trips are measured, even when the peer is never silent."""

_ERRORS = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class Starvation:
    """Measures for how long this process could not run, for want of a processor or because the machine slept."""

    STEP_S, MIN_LATE_S = 0.25, 0.05

    def __init__(self) -> None:
        self._late: deque[tuple[float, float]] = deque(maxlen=256)
        """(the time of a delay, its length), the latest delays."""

    async def run(self) -> None:
        """Never returns."""
        while True:
            due = trio.current_time() + self.STEP_S
            await trio.sleep_until(due)
            self.note(trio.current_time(), trio.current_time() - due)

    def note(self, now: float, late_s: float) -> None:
        """A task ran ``late_s`` after its time. Mutates."""
        if late_s > self.MIN_LATE_S:
            self._late.append((now, late_s))

    def late_s(self, since: float) -> float:
        """Seconds for which the process could not run, since the time ``since``."""
        return sum(late_s for at, late_s in self._late if at >= since)


async def watch(connection: INetConn, table: PeerTable, starvation: Starvation) -> None:
    """Pings for as long as ``connection`` lives, and closes it when it no longer answers."""
    muxer = connection.muxed_conn
    assert isinstance(muxer, YamuxConnection), "no other muxer is offered"
    peer = peer_of(connection)
    while not (connection.is_closed or muxer.is_closed):  # (libp2p learns of the end a little later)
        if not await is_there(muxer, peer, table, starvation):
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


async def is_there(muxer: YamuxConnection, peer: bytes, table: PeerTable, starvation: Starvation) -> bool:
    """Sends one ping and returns whether the peer is there. Also True when the connection has ended, which libp2p
    notices by itself."""
    for _ in range(MAX_STARVED):
        asked_at = trio.current_time()
        try:
            with trio.fail_after(PING_DEADLINE_S):
                table.record_round_trip(muxer, await muxer.ping())
        except trio.TooSlowError:
            if muxer.last_received_at > asked_at:
                return True
            # (the answer may lie unread, or the question may still be here)
            if starvation.late_s(asked_at) < STARVED_S and trio.current_time() - asked_at < 2 * PING_DEADLINE_S:
                return False
            log.debug("ping_repeated", peer=peer_text(peer), late_s=round(starvation.late_s(asked_at), 1))
        except _ERRORS as exc:
            log.debug("ping failed", peer=peer_text(peer), error=repr(exc))
            return True
        else:
            return True
    return False
