"""One connection with each peer. Two nodes that dial each other at the same moment have two, and each costs pings and a
place for as long as it lasts.

Both sides prefer the same one (``PeerTable.connections``): new streams take it, and after a while each side moves its
gossip and control messages there. Then one side alone, the peer with the smaller id, closes the others, each when no
exchange is left on it. So the two never close different ones, and a peer that knows nothing of this keeps what it uses.
A relayed connection beside a direct one is no duplicate: ``upgrading.py`` leaves it.
"""

from functools import partial

import trio
from libp2p.abc import INetConn

from mycelia.node.network.libp2p.gossip.gossip import Gossip
from mycelia.node.network.libp2p.moving import close_idle, move_to_best
from mycelia.node.network.libp2p.peers import PeerTable, is_relayed
from mycelia.node.network.libp2p.streams import Streams

SETTLE_S = 10.0
"""How long duplicates are left alone: dials and hole punching that are under way end before, and longer than
``peers.RESTART_S``, after which a further connection means that the peer came again."""


class Duplicates:
    """Closes the superfluous connections of one node."""

    def __init__(self, me: bytes, table: PeerTable, streams: Streams, gossip: Gossip | None) -> None:
        self._me = me
        self._table = table
        self._streams = streams
        self._gossip = gossip
        self._kept: set[bytes] = set()
        """Peers with a running ``keep``."""

    async def keep(self, peer: bytes) -> None:
        """Returns when at most one connection of the best kind is left with ``peer``. Call it for every connection."""
        if peer in self._kept or not self._worse(peer):
            return
        self._kept.add(peer)
        try:
            while self._worse(peer):
                await trio.sleep(SETTLE_S)
                news = self._table.news(peer)
                await move_to_best(peer, self._streams, self._gossip)
                if self._me < peer:
                    await self._close_worse(peer)
                elif self._worse(peer):
                    await news.wait()
        finally:
            self._kept.discard(peer)

    def _worse(self, peer: bytes) -> list[INetConn]:
        """The connections beside the best one that are of its kind."""
        connections = self._table.connections(peer)
        return [one for one in connections[1:] if is_relayed(one) == is_relayed(connections[0])]

    async def _close_worse(self, peer: bytes) -> None:
        for connection in self._worse(peer):
            await close_idle(connection, self._table, partial(self._is_worse, peer, connection))

    def _is_worse(self, peer: bytes, connection: INetConn) -> bool:
        return connection in self._worse(peer)
