"""The table of connected peers. libp2p reports connections; the rest of the node needs peers.

A direct connection is better than one through a relay. Of two of a kind, both sides prefer the same one: the one that
the peer with the smaller id dialled. The table lists the best first, and its address, subnet and round trip of a peer
are those of the best connection.

Invariant: a peer is in the table exactly while at least one connection with it is up, and ``on_up`` and ``on_down``
alternate for every peer, beginning with ``on_up``.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import trio
from libp2p.abc import IMuxedConn, INetConn, INetStream, INetwork, INotifee
from libp2p.connection_types import ConnectionType
from libp2p.network.connection.raw_connection import RawConnection
from multiaddr import Multiaddr

from mycelia.node.signals import Signal
from mycelia.proto.admission.subnets import is_local, subnet_of

RESTART_S = 5.0
"""Longer than two simultaneous dials, one from each side, take to succeed."""
REST_S = 5.0
"""Time for which a lost peer counts as leaving."""
SAME_SHARE, SAME_S = 0.1, 0.001
"""Two round trips that differ by less than either do not change where a prompt goes."""
MAX_LOST = 1_024
"""Lost peers that are remembered."""


_subnet_of = lru_cache(maxsize=1_024)(subnet_of)


@dataclass
class _Peer:
    since: float
    """When its first connection was made, in trio's time."""
    newest_at: float
    """When its last connection was made."""
    connections: dict[INetConn, trio.Event] = field(default_factory=dict)
    """Connection -> the event that is set at its end."""
    gone: trio.Event = field(default_factory=trio.Event)
    news: Signal = field(default_factory=Signal)
    """A connection has come or gone, or the peer has announced addresses."""
    round_trip_s: float | None = None
    told_s: float | None = None
    """The round trip that ``on_round_trip`` was called with last."""
    address: str = ""
    """The multiaddr of the peer's end of the best connection, by which every message is counted."""


def is_relayed(connection: INetConn | IMuxedConn) -> bool:
    return connection.get_connection_type() == ConnectionType.RELAYED


def peer_of(connection: INetConn) -> bytes:
    return connection.muxed_conn.peer_id.to_bytes()


def remote_address(connection: INetConn | IMuxedConn | RawConnection) -> str:
    """The multiaddr of the other end, or the empty string."""
    addresses = connection.get_transport_addresses()
    return str(addresses[0]) if addresses else ""


class PeerTable(INotifee):
    """The connected peers, as libp2p's notifee. Its callbacks never wait, so they delay nothing in libp2p."""

    def __init__(
        self,
        on_up: Callable[[bytes, str], None],
        on_down: Callable[[bytes], None],
        on_connection: Callable[[INetConn], None],
        on_round_trip: Callable[[bytes, float], None],
        on_restart: Callable[[bytes], None],
        is_announced: bool = False,
        on_moved: Callable[[bytes, str], None] = lambda peer, address: None,
        me: bytes = b"",
    ) -> None:
        """on_connection: called for every new connection, also when it is not the peer's first. on_restart: called
        when a peer connects whose last connection is RESTART_S old. A peer dials only when it knows of no connection or
        of none that is direct, so it has lost the state of the old one, which is dead or soon will be. is_announced:
        whether this node announces a public address. on_moved: called when the best connection of a peer leads to
        another subnet than before, because a better one came or the best one went. me: this node's peer id."""
        self._me = me
        self._peers: dict[bytes, _Peer] = {}
        self._on_up = on_up
        self._on_down = on_down
        self._on_connection = on_connection
        self._on_round_trip = on_round_trip
        self._on_restart = on_restart
        self._is_announced = is_announced
        self._on_moved = on_moved
        self._lost: OrderedDict[bytes, float] = OrderedDict()
        self.changed = Signal()
        """A peer has connected."""
        self.lost = Signal()
        """A peer was lost."""

    def __len__(self) -> int:
        return len(self._peers)

    def __contains__(self, peer: object) -> bool:
        return peer in self._peers

    def peers(self) -> list[bytes]:
        return sorted(self._peers)

    def connections(self, peer: bytes) -> list[INetConn]:
        """The peer's connections, the best first."""
        entry = self._peers.get(peer)
        if entry is None:
            return []
        return sorted(entry.connections, key=lambda one: (is_relayed(one), not self._is_preferred(one)))

    def _is_preferred(self, connection: INetConn) -> bool:
        return connection.muxed_conn.is_initiator == (self._me < peer_of(connection))

    def is_best(self, muxer: IMuxedConn) -> bool:
        """Whether new streams with its peer take this connection."""
        return any(one.muxed_conn is muxer for one in self.connections(muxer.peer_id.to_bytes())[:1])

    def is_direct(self, peer: bytes) -> bool:
        """Whether a connection with ``peer`` leads through no relay."""
        return not all(map(is_relayed, self.connections(peer)))

    def news(self, peer: bytes) -> trio.Event:
        """An event that is set when a connection with ``peer`` comes or goes, and when it announces addresses; set: it
        is not connected."""
        entry = self._peers.get(peer)
        if entry is not None:
            return entry.news.next
        gone = trio.Event()
        gone.set()
        return gone

    def note_announced(self, peer: bytes) -> None:
        """Notes that ``peer`` announced its addresses."""
        entry = self._peers.get(peer)
        if entry is not None:
            entry.news.notify()

    def remote_address(self, peer: bytes) -> str:
        """The multiaddr of the peer's end of the best connection; empty: not connected."""
        entry = self._peers.get(peer)
        return entry.address if entry else ""

    def teller_address(self, peer: bytes) -> str:
        """The multiaddr that decides which addresses ``peer`` may announce (``addresses.told_addresses``); empty:
        unknown.

        Behind a port proxy all strangers seem to have one private address. A node that announces a public address can
        be reached by strangers, so it counts a peer as in its own network only if it dialled the peer there."""
        address = self.remote_address(peer)
        if not self._is_announced or not is_local(subnet_of(address)):
            return address
        made = (one for one in self.connections(peer) if one.muxed_conn.is_initiator)
        return next(map(remote_address, made), "")

    def subnet(self, peer: bytes) -> str:
        """The subnet of the peer's end of a connection; empty: not connected."""
        return _subnet_of(self.remote_address(peer))

    def round_trip_s(self, peer: bytes) -> float | None:
        entry = self._peers.get(peer)
        return entry.round_trip_s if entry else None

    def record_round_trip(self, connection: IMuxedConn, seconds: float) -> None:
        """Notes a measured round trip, unless streams now take a better connection, and reports it if it differs."""
        peer = connection.peer_id.to_bytes()
        entry = self._peers.get(peer)
        if entry is None or (is_relayed(connection) and self.is_direct(peer)):
            return
        entry.round_trip_s = seconds
        if entry.told_s is None or abs(seconds - entry.told_s) > max(SAME_SHARE * entry.told_s, SAME_S):
            entry.told_s = seconds
            self._on_round_trip(peer, seconds)

    def connected_s(self, peer: bytes) -> float:
        """How long ``peer`` has been in the table; negative when it is not there."""
        entry = self._peers.get(peer)
        return trio.current_time() - entry.since if entry else -1.0

    def is_leaving(self, peer: bytes) -> bool:
        """Whether ``peer`` is in the table or left it less than REST_S ago."""
        return peer in self._peers or trio.current_time() - self._lost.get(peer, -math.inf) < REST_S

    async def wait_gone(self, peer: bytes) -> None:
        """Returns when no connection with ``peer`` is up, at once if none is."""
        entry = self._peers.get(peer)
        if entry is not None:
            await entry.gone.wait()

    async def wait_closed(self, connection: INetConn) -> None:
        """Returns when this connection is no longer in the table."""
        entry = self._peers.get(peer_of(connection))
        if entry is not None and connection in entry.connections:
            await entry.connections[connection].wait()

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        if conn.is_closed:
            return
        peer = peer_of(conn)
        entry, now = self._peers.get(peer), trio.current_time()
        if entry is None:
            entry = self._peers[peer] = _Peer(now, now)
            self._on_up(peer, remote_address(conn))
            self.changed.notify()
        is_better = not is_relayed(conn) and not self.is_direct(peer)
        is_first, is_late = not entry.connections, now - entry.newest_at > RESTART_S
        entry.connections[conn], entry.newest_at, before = trio.Event(), now, entry.address
        entry.address = next(map(remote_address, self.connections(peer)), "")
        self._on_connection(conn)
        entry.news.notify()
        if is_better and not is_first:
            self._on_moved(peer, remote_address(conn))
        elif is_late:
            self._on_restart(peer)
        elif not is_first and _subnet_of(entry.address) != _subnet_of(before):
            self._on_moved(peer, entry.address)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        peer = peer_of(conn)
        entry = self._peers.get(peer)
        if entry is None or conn not in entry.connections:
            return  # a connection that failed while it was being set up
        before = entry.address
        entry.connections.pop(conn).set()
        entry.address = next(map(remote_address, self.connections(peer)), "")
        entry.news.notify()
        if entry.connections and _subnet_of(entry.address) != _subnet_of(before):
            self._on_moved(peer, entry.address)
        if not entry.connections:
            del self._peers[peer]
            self._lost[peer] = trio.current_time()
            self._lost.move_to_end(peer)
            if len(self._lost) > MAX_LOST:
                self._lost.popitem(last=False)
            entry.gone.set()
            self.lost.notify()
            self._on_down(peer)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...
