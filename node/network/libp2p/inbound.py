"""Connections: which a node takes, of those that others make and those that it makes itself. What is opened on them is
in ``inbound_streams.py``. A connection may also come through a relay.

A socket whose handshake is not over holds one of few places for a few seconds, and how many handshakes a household may
begin is bounded too, since each costs 6 ms of processor time. Who got through it holds a place by household; when there
is none left, the idlest stranger gives up its own (``proto/admission/places.py``). Some are kept free for peers that
this node knows from earlier, and those that it was told to connect with get any.

What a peer sends is read at a pace, by the frame, and so is what a household sends: whoever floods waits.

libp2p's own limits lie above these and are never reached.
"""

import math
from collections.abc import Callable, Collection
from functools import partial

import structlog
import trio
from libp2p.abc import IMuxedConn
from libp2p.connection_types import ConnectionType
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.libp2p.peers import remote_address
from mycelia.node.network.libp2p.swarm_key import keyed
from mycelia.node.network.libp2p.yamux import YamuxConnection
from mycelia.node.network.network import NetworkSettings
from mycelia.node.peer_id import peer_text
from mycelia.proto.admission.households import household_of
from mycelia.proto.admission.pace import UNBOUNDED, Pace, Rate
from mycelia.proto.admission.places import Admission, Rank

log = structlog.get_logger()

MAX_CONNECTIONS_PER_PEER = 3
"""Both sides may dial at once, and a third comes after a restart that nobody noticed."""
KEPT_SHARE = 8
"""One in so many places for connections is kept for peers that are known."""
STRANGER_IDLE_S = 10.0
"""After so long without a hello and without a stream a connection gives up its place also to its own household."""
MAX_HANDSHAKES, HANDSHAKE_S = 16, 5.0
"""Noise and Yamux together. When a household's places are taken, its oldest handshake ends."""
HANDSHAKES_A_HOUSEHOLD, HANDSHAKES_IN_A_PRIVATE_NETWORK = Rate(2.0, 32.0), Rate(20.0, 256.0)

FRAMES_OF_A_PEER, FRAMES_OF_A_HOUSEHOLD, FRAMES_IN_A_PRIVATE_NETWORK = (
    Rate(12_000.0, 48_000.0),
    Rate(24_000.0, 96_000.0),
    Rate(120_000.0, 480_000.0),
)
"""Frames and packets a second, each of 5 us, and streams that are opened as ``yamux.OPENING_WORK`` of them."""


class Inbound:
    """One host's. Takes libp2p's place at once, when it is made."""

    def __init__(self, swarm: Swarm, settings: NetworkSettings) -> None:
        self._swarm = swarm
        self._swarm_key = settings.swarm_key
        self._remembered = settings.remembered
        limit = settings.max_connections
        self._connections: Admission[IMuxedConn] = Admission(
            limit, MAX_CONNECTIONS_PER_PEER, limit // KEPT_SHARE, STRANGER_IDLE_S
        )
        self._handshakes: Admission[trio.CancelScope] = Admission(MAX_HANDSHAKES, MAX_HANDSHAKES)
        self._pace = Pace(UNBOUNDED, HANDSHAKES_A_HOUSEHOLD, HANDSHAKES_IN_A_PRIVATE_NETWORK)
        self._frame_pace = Pace(FRAMES_OF_A_PEER, FRAMES_OF_A_HOUSEHOLD, FRAMES_IN_A_PRIVATE_NETWORK)
        self.wanted = {addresses.parse_peer(text)[0] for text in settings.bootstrap}
        """Peers that this node was told to connect with."""
        self.busy: list[Callable[[], Collection[bytes]]] = []
        """Each tells of peers that have something under way with this node or through it."""
        # Holds its task and its inbound slot until the swarm ends, not the connection: after max_connections
        # inbound connections in all, a node would accept no more.
        swarm._handle_inbound_connection = self._serve_socket  # type: ignore[method-assign, assignment]
        self._add_connection = swarm.add_conn
        swarm.add_conn = self._add_admitted  # type: ignore[method-assign]

    @property
    def num_handshakes(self) -> int:
        """Sockets of others whose handshake is not over."""
        return len(self._handshakes)

    @property
    def num_connections(self) -> int:
        """Places that are taken."""
        return len(self._connections)

    def household(self, connection: IMuxedConn) -> str:
        return self._connections.household_of(connection)

    def is_wanted(self, connection: IMuxedConn) -> bool:
        """Whether it is one with a peer that this node was told to connect with."""
        return self._connections.rank_of(connection) == Rank.KEPT

    def is_proven(self, connection: IMuxedConn) -> bool:
        """Whether the peer said hello, or is wanted."""
        return self._connections.rank_of(connection) >= Rank.PROVEN

    def said_hello(self, peer: bytes) -> None:
        """``peer`` is a node: its connections do not go for being idle."""
        self._connections.raise_rank(peer, Rank.PROVEN)

    def used(self, peer: bytes) -> None:
        """``peer`` does something with its connection."""
        self._connections.use(peer, trio.current_time())

    async def serve_circuit(self, pipe: ReadWriteCloser, address: Multiaddr) -> None:
        """Who comes through a relay, for as long as the connection lasts. address: this node's own there."""
        await self._serve_raw(RawConnection(pipe, False, ConnectionType.RELAYED, [address]))

    async def _serve_socket(self, socket: ReadWriteCloser, address: Multiaddr) -> None:
        await self._serve_raw(RawConnection(socket, False))

    async def _serve_raw(self, raw: RawConnection) -> None:
        """Supervisor of a connection that another made, from its first byte to its end."""
        try:
            muxer = await self._upgraded(raw)
            if muxer is not None:
                await self._swarm.add_conn(muxer, direction="inbound")
                assert isinstance(muxer, YamuxConnection)
                await muxer.wait_closed()
        except Exception as exc:  # noqa: BLE001
            log.debug("inbound connection failed", error=repr(exc))
        finally:
            with trio.CancelScope(shield=True):
                await raw.close()

    async def _upgraded(self, raw: RawConnection) -> IMuxedConn | None:
        """None: there is no place for its handshake, or it took too long. Raises whatever the peer makes of it."""
        household, now = household_of(remote_address(raw)), trio.current_time()
        if self._pace.delay_s(b"", household, 1.0, now, patience_s=0.0) is None:
            return None
        with trio.CancelScope(deadline=now + HANDSHAKE_S) as scope:
            given_up = self._handshakes.admit(scope, b"", household, now)
            if given_up is None:
                return None
            for other in given_up:
                other.cancel()
            try:
                upgrader = self._swarm.upgrader
                secured = await upgrader.upgrade_security(keyed(raw, self._swarm_key), False)
                return await upgrader.upgrade_connection(secured, secured.get_remote_peer())
            finally:
                self._handshakes.release(scope)
        return None

    async def _add_admitted(self, muxed_conn: IMuxedConn, direction: str = "unknown") -> SwarmConn:
        """Every connection comes by here, whoever made it, once it is known who the peer is. Raises SwarmException."""
        assert isinstance(muxed_conn, YamuxConnection)
        peer = muxed_conn.peer_id.to_bytes()
        household, is_wanted = household_of(remote_address(muxed_conn)), peer in self.wanted
        given_up = self._connections.admit(
            muxed_conn,
            peer,
            household,
            trio.current_time(),
            is_wanted,
            is_wanted or self._is_remembered(peer),
            frozenset().union(*(busy() for busy in self.busy)),
        )
        if given_up is None:
            await muxed_conn.close()
            raise SwarmException("there is no room for one more connection")
        muxed_conn.on_end = lambda: self._release(muxed_conn)
        muxed_conn.pace = partial(self._wait_for_pace, peer, household)
        for other in given_up:
            log.debug("connection_given_up", peer=peer_text(other.peer_id.to_bytes()))
            self._swarm.manager.run_task(other.close)
        try:
            return await self._add_connection(muxed_conn, direction)
        except BaseException:
            self._release(muxed_conn)
            raise

    async def _wait_for_pace(self, peer: bytes, household: str, work: int) -> None:
        if delay_s := self._frame_pace.delay_s(peer, household, work, trio.current_time(), math.inf):
            await trio.sleep(delay_s)

    def _release(self, connection: IMuxedConn) -> None:
        self._connections.release(connection)

    def _is_remembered(self, peer: bytes) -> bool:
        end = f"/p2p/{peer_text(peer)}"
        return any(address.endswith(end) for address in self._remembered())
