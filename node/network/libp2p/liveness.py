"""Pings on quiet connections. They measure round trips and end connections whose other end is silent.

A stopped process or a dropped cable closes no socket. Without pings its peers would count it as connected for ever.

Any bytes from a peer prove that it is there, so one side's pings serve both: of two idle nodes the one that dialled
pings, and the other has then received something. The pings are Yamux's own, one frame each way.

One task looks at all connections, a few times a second. A deadline for each connection would cost a resting node an
eighth of its processor time: nearly all of them pass only because bytes came meanwhile.
"""

import random
from collections.abc import Callable
from functools import partial

import structlog
import trio
from libp2p.abc import INetConn

from mycelia.node.network.libp2p.closing import close_connection
from mycelia.node.network.libp2p.peers import PeerTable, peer_of
from mycelia.node.network.libp2p.starvation import STARVED_S, Starvation
from mycelia.node.network.libp2p.yamux import YamuxConnection
from mycelia.node.network.supervise import supervised
from mycelia.node.peer_id import peer_text

log = structlog.get_logger()

PING_INTERVAL_S, LONGEST_PING_INTERVAL_S = 4.0, 16.0
"""Longest silence before a ping: of a node with few connections, and of any. With the deadline, a silent peer is
dropped after 5 to 9 s, or 21 s."""
PINGS_PER_S = 3.0
"""A node with so many connections that it would ping more often waits longer. Pings every 4 s on 48 connections took a
third of a resting node's processor time."""
PING_SPREAD = 0.1
"""Share of the interval that is drawn at random each time. The side that dialled takes the earlier half of it, so that
the two sides seldom ping at once."""
PING_DEADLINE_S = 5.0
MAX_STARVED = 6
"""A ping without an answer does not count if this process was starved, but at most so many in a row."""
ROUND_TRIP_INTERVAL_S = 30.0
"""Interval at which round trips are measured, even when the peer is never silent."""
STEP_S = 0.25
"""Time between two looks of a node with few connections; others look less often, as they ping. What would be late at
the next look is done at this one."""


def ping_interval_s(num_connections: int) -> float:
    """The longest silence before a ping."""
    return min(max(PING_INTERVAL_S, num_connections / PINGS_PER_S), LONGEST_PING_INTERVAL_S)


def step_s(interval_s: float) -> float:
    """Time between two looks of a node that pings after a silence of ``interval_s``."""
    return STEP_S * interval_s / PING_INTERVAL_S


class Pulse:
    """Whether one peer is there. Call ``look`` every ``step_s``."""

    def __init__(self, muxer: YamuxConnection, on_round_trip: Callable[[float], None]) -> None:
        """on_round_trip: called with the seconds that each answered ping took."""
        self._muxer = muxer
        self._on_round_trip = on_round_trip
        self._asked_at: float | None = None
        """When the ping was sent that has no answer yet; None: all were answered."""
        self._nonce = 0
        self._num_starved = 0
        """Number of pings in a row that did not count."""
        self._due_at = 0.0
        """When to measure the round trip again."""
        self._patience = 0.0
        """Share of the ping interval to wait."""

    def look(self, now: float, starvation: Starvation, interval_s: float = PING_INTERVAL_S) -> bool:
        """Pings the peer if it is time to. Returns False when the peer is silent. now: trio's clock. interval_s: the
        longest silence before a ping."""
        if self._muxer.is_closed:
            return True
        next_at = now + step_s(interval_s)
        if self._asked_at is None:
            if min(self._muxer.last_received_at + self._patience * interval_s, self._due_at) < next_at:
                self._ping(now)
            return True
        if next_at <= self._asked_at + PING_DEADLINE_S:
            return True
        self._muxer.forget_ping(self._nonce)
        if self._muxer.last_received_at > self._asked_at:
            self._rest(now)
            return True
        # (the answer may lie unread, or the question may still be here)
        late_s = starvation.late_s(self._asked_at)
        self._num_starved += 1
        is_starved = late_s >= STARVED_S or now - self._asked_at >= 2 * PING_DEADLINE_S
        if not is_starved or self._num_starved >= MAX_STARVED:
            return False
        log.debug("ping_repeated", peer=peer_text(self._muxer.peer_id.to_bytes()), late_s=round(late_s, 1))
        self._ping(now)
        return True

    def _ping(self, now: float) -> None:
        self._asked_at = now
        self._nonce = self._muxer.send_ping(self._on_answer)

    def _on_answer(self, seconds: float) -> None:
        self._on_round_trip(seconds)
        self._rest(self._muxer.last_received_at)

    def _rest(self, now: float) -> None:
        self._asked_at, self._num_starved = None, 0
        self._due_at = now + ROUND_TRIP_INTERVAL_S
        early = PING_SPREAD / 2 if self._muxer.is_initiator else 0.0
        self._patience = 1 - early - random.uniform(0.0, PING_SPREAD / 2)  # noqa: S311  jitter


class Liveness:
    """Watches the connections of one node."""

    def __init__(self, table: PeerTable, starvation: Starvation) -> None:
        """starvation: told by ``run`` how late it runs."""
        self._table = table
        self._starvation = starvation
        self._pulses: dict[INetConn, Pulse] = {}

    async def watch(self, connection: INetConn) -> None:
        """Has ``connection`` watched while it lives, and closes it at its end."""
        muxer = connection.muxed_conn
        assert isinstance(muxer, YamuxConnection), "no other muxer is offered"
        pulse = self._pulses[connection] = Pulse(muxer, partial(self._table.record_round_trip, muxer))
        pulse.look(trio.current_time(), self._starvation)
        try:
            await muxer.wait_closed()
        finally:
            self._pulses.pop(connection, None)
        await close_connection(connection)  # (libp2p learns of the end a little later)

    async def run(self) -> None:
        """Closes connections with silent peers. Never returns."""
        async with trio.open_nursery() as nursery:
            while True:
                wait_s = ping_interval_s(len(self._pulses))
                due = trio.current_time() + step_s(wait_s)
                await trio.sleep_until(due)
                now = trio.current_time()
                self._starvation.note(now, now - due)
                silent = [one for one, pulse in self._pulses.items() if not pulse.look(now, self._starvation, wait_s)]
                for connection in silent:
                    del self._pulses[connection]
                    log.info("peer_silent", peer=peer_text(peer_of(connection)))
                    nursery.start_soon(supervised, close_connection, connection)
