"""Direct connections in place of those through relays, which are slow and cost the relay.

While a peer is connected through relays only, this node tries to connect directly: it dials the public addresses that
the peer announces, of a member of its private swarm also those in this machine's own networks; and if the peer made the
connection, it asks the peer to dial at the same moment (``punching.py``). After each failure it waits for longer, in
the end an hour: between some kinds of routers there is no way, and the relay is used for ever.

When a direct connection is there, by whichever side's dial, new streams take it. Gossip and control messages move to
it, exchanges end where they began, and then the relayed connection is closed.
"""

import random
from collections import OrderedDict
from dataclasses import dataclass

import structlog
import trio
from libp2p.abc import INetConn
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.libp2p.gossip.gossip import Gossip
from mycelia.node.network.libp2p.host import Host
from mycelia.node.network.libp2p.moving import close_idle, move_to_best
from mycelia.node.network.libp2p.outbound import Origin
from mycelia.node.network.libp2p.peers import PeerTable, is_relayed
from mycelia.node.network.libp2p.punching import Punching
from mycelia.node.network.libp2p.streams import Streams
from mycelia.node.network.network import NetworkError
from mycelia.node.peer_id import peer_text

log = structlog.get_logger()

FIRST_S = 1.0
"""How long the first attempt waits for the peer's addresses."""
PAUSES_S = (5.0, 90.0, 300.0, 1_200.0, 3_600.0)
"""Pauses after the first and later failures. All but the first are longer than ``outbound.SILENT_S``."""
STABLE_S = 60.0
"""A direct connection that ends sooner counts as a failure."""
MAX_PARALLEL = 8
MAX_RECORDS = 1_024


@dataclass
class _Record:
    num_failed: int = 0
    due: float = 0.0


class Upgrades:
    """The supervisors of the peers of one node that are connected through relays. ``rng`` jitters the pauses."""

    def __init__(
        self,
        host: Host,
        table: PeerTable,
        punching: Punching,
        streams: Streams,
        gossip: Gossip | None,
        rng: random.Random,
    ) -> None:
        self._host = host
        self._table = table
        self.punching = punching
        self._streams = streams
        self._gossip = gossip
        self._rng = rng
        self._kept: set[bytes] = set()
        """Peers with a running ``keep``."""
        self._records: OrderedDict[bytes, _Record] = OrderedDict()
        """Peers with which an attempt failed, also after they disconnected."""
        self._limiter = trio.CapacityLimiter(MAX_PARALLEL)

    def start_over(self) -> None:
        """Forgets what failed: this machine has another line now."""
        self._records.clear()

    async def keep(self, peer: bytes) -> None:
        """Supervises a peer from its first connection through a relay to its last one. Call it for every such
        connection."""
        if peer in self._kept:
            return
        self._kept.add(peer)
        try:
            with trio.move_on_after(FIRST_S):
                await self._table.news(peer).wait()
            if not self._answered(peer):  # (the other side is to begin, so that they do not both dial)
                with trio.move_on_after(2 * FIRST_S):
                    await self._table.news(peer).wait()
            while self._relayed(peer):
                await trio.lowlevel.checkpoint()
                if self._table.is_direct(peer):
                    await self._leave_relay(peer)
                else:
                    await self._try_when_due(peer)
        finally:
            self._kept.discard(peer)
        await self._count_if_lost(peer)

    def _relayed(self, peer: bytes) -> list[INetConn]:
        return [connection for connection in self._table.connections(peer) if is_relayed(connection)]

    # --- trying ----------------------------------------------------------------------------------------------------

    async def _try_when_due(self, peer: bytes) -> None:
        news, record = self._table.news(peer), self._records.get(peer, _Record())
        if record.due <= trio.current_time() and self._has_way(peer):
            async with self._limiter:
                if not self._table.is_direct(peer) and not await self._is_made(peer):
                    self._count_failure(peer)
            return
        with trio.move_on_at(record.due if record.due > trio.current_time() else trio.current_time() + PAUSES_S[1]):
            await news.wait()

    def _has_way(self, peer: bytes) -> bool:
        return bool(self._announced(peer) or (self._answered(peer) and self.punching.own_addresses()))

    def _announced(self, peer: bytes) -> list[Multiaddr]:
        """The addresses at which the peer may be dialled directly."""
        told = self._host.addresses_of(peer)
        return [
            one
            for one in told
            if addresses.relay_of(one) is None and (addresses.is_tellable(one) or self._host.is_near_member(peer, one))
        ]

    def _answered(self, peer: bytes) -> INetConn | None:
        """The peer's connection through a relay that the peer made."""
        return next((one for one in self._relayed(peer) if not one.muxed_conn.is_initiator), None)

    async def _is_made(self, peer: bytes) -> bool:
        """Tries every way once. Returns whether the peer is connected directly."""
        try:
            if announced := self._announced(peer):
                await self._host.outbound.dial(peer, announced, Origin.TOLD)
            relayed = self._answered(peer)
            if relayed is not None and not self._table.is_direct(peer) and self.punching.own_addresses():
                await self.punching.punch(relayed)
        except NetworkError as exc:
            log.debug("no_direct_way", peer=peer_text(peer), reason=str(exc))
        return self._table.is_direct(peer)

    def _count_failure(self, peer: bytes) -> None:
        record = self._records.setdefault(peer, _Record())
        pause_s = PAUSES_S[min(record.num_failed, len(PAUSES_S) - 1)] * self._rng.uniform(0.75, 1.25)
        record.num_failed, record.due = record.num_failed + 1, trio.current_time() + pause_s
        self._records.move_to_end(peer)
        if len(self._records) > MAX_RECORDS:
            self._records.popitem(last=False)

    # --- moving ----------------------------------------------------------------------------------------------------

    async def _leave_relay(self, peer: bytes) -> None:
        """Moves everything to the direct connection and closes the relayed ones, unless the direct one is lost."""
        log.info("direct", peer=peer_text(peer), address=self._table.remote_address(peer))
        await move_to_best(peer, self._streams, self._gossip)
        for connection in self._relayed(peer):
            await close_idle(connection, self._table, lambda: self._table.is_direct(peer))
        if not self._table.is_direct(peer):
            self._count_failure(peer)

    async def _count_if_lost(self, peer: bytes) -> None:
        """Forgets the peer's failures if its direct connection lasts, and counts one more if not."""
        with trio.move_on_after(STABLE_S):
            while self._table.is_direct(peer):
                await self._table.news(peer).wait()
            self._count_failure(peer)
            return
        self._records.pop(peer, None)
