"""Admission of connections: those that other peers make, directly or through a relay, and those that this node makes.
``inbound_streams.py`` admits the streams on them.

A socket whose handshake is not over holds one of a few places for a few seconds. Each handshake costs 6 ms of processor
time, so the number that a subnet may begin is bounded, too. After the handshake a connection holds a place that is
counted by subnet. When no place is left, the idlest stranger loses its own (``proto/admission/places.py``). Some
places are kept free for peers that this node knows from earlier. Peers that its operator named get any place.

Frames are read at a bounded pace for each peer and for each subnet: a peer that floods has to wait.

libp2p's own limits lie above these and are never reached.
"""

import math
from collections.abc import Callable, Collection
from functools import partial
from weakref import WeakSet

import structlog
import trio
from libp2p.abc import IMuxedConn, IRawConnection, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.libp2p import entry_exchange
from mycelia.node.network.libp2p.peers import remote_address
from mycelia.node.network.libp2p.swarm_key import SwarmKeys
from mycelia.node.network.libp2p.yamux import YamuxConnection
from mycelia.node.network.network import NetworkSettings
from mycelia.node.peer_id import peer_text
from mycelia.proto.admission.pace import UNBOUNDED, Pace, Rate
from mycelia.proto.admission.places import Admission, Rank
from mycelia.proto.admission.subnets import Places, subnet_of
from mycelia.proto.swarm.roster import Purpose

log = structlog.get_logger()

MAX_CONNECTIONS_PER_PEER = 3
"""Two when both sides dial at once, and a third after a restart that nobody noticed, or through a relay before."""
KEPT_SHARE = 8
"""One in this many places for connections is kept for known peers."""
STRANGER_IDLE_S = 10.0
"""A connection without a hello or a stream for this long may lose its place also to one of its own subnet."""
SETTLED_S = 60.0
"""A node that is connected for this long has met others: where all places are taken, it may lose its own to a newcomer,
so that nodes to which all others come first can go on introducing them."""
MAX_HANDSHAKES, HANDSHAKE_S, UNDISTURBED_S = 16, 5.0, 2.0
"""Number of handshakes under way, and the time for one, Noise and Yamux together. When a subnet's places are taken,
its oldest handshake ends, if it had UNDISTURBED_S: on a machine that is overloaded, none would ever be completed
otherwise."""
HANDSHAKES_A_SUBNET, HANDSHAKES_IN_A_PRIVATE_NETWORK = Rate(2.0, 32.0), Rate(20.0, 256.0)

MAX_ENTERING, MAX_ENTERING_PER_PEER = 8, 1
"""Peers of a private swarm that are not let in and whose request is being answered."""

FRAMES_OF_A_PEER, FRAMES_OF_A_SUBNET, FRAMES_IN_A_PRIVATE_NETWORK = (
    Rate(12_000.0, 48_000.0),
    Rate(24_000.0, 96_000.0),
    Rate(120_000.0, 480_000.0),
)
"""Frames and packets a second; each costs 5 us. An opened stream counts as ``yamux.OPENING_WORK`` of them."""


class Inbound:
    """The connections of one host. The constructor replaces libp2p's functions at once."""

    def __init__(self, swarm: Swarm, settings: NetworkSettings, keys: SwarmKeys) -> None:
        self._swarm = swarm
        self._keys = keys
        self._access = settings.access
        self._entering = Places(MAX_ENTERING, MAX_ENTERING_PER_PEER)
        self._remembered = settings.remembered
        limit = settings.max_connections
        self._connections: Admission[IMuxedConn] = Admission(
            limit, MAX_CONNECTIONS_PER_PEER, limit // KEPT_SHARE, STRANGER_IDLE_S, SETTLED_S
        )
        self._handshakes: Admission[trio.CancelScope] = Admission(
            MAX_HANDSHAKES, MAX_HANDSHAKES, own_after_s=UNDISTURBED_S
        )
        self._pace = Pace(UNBOUNDED, HANDSHAKES_A_SUBNET, HANDSHAKES_IN_A_PRIVATE_NETWORK)
        self._frame_pace = Pace(FRAMES_OF_A_PEER, FRAMES_OF_A_SUBNET, FRAMES_IN_A_PRIVATE_NETWORK)
        self.wanted = {peer for text in settings.bootstrap if (peer := addresses.parse_bootstrap(text)[0])}
        """Peers that this node's operator wants it to connect with."""
        self.busy: list[Callable[[], Collection[bytes]]] = []
        """Functions that return peers with an exchange or a circuit under way."""
        self.punching: dict[tuple[str, int], tuple[ID, bool]] = {}
        """Address that this node dials while the peer there dials back (``punching.py``) -> that peer, and whether this
        side begins the handshake on the one connection that results."""
        self.punched: WeakSet[IMuxedConn] = WeakSet()
        """The connections that came about in this way: nobody can dial the address of their other end."""
        # libp2p's own holds its task and its inbound slot until the swarm ends, not until the connection ends: after
        # max_connections inbound connections in all, a node would accept no more.
        swarm._handle_inbound_connection = self._serve_socket  # type: ignore[method-assign, assignment]
        self._add_connection = swarm.add_conn
        swarm.add_conn = self._add_admitted  # type: ignore[method-assign]

    @property
    def num_handshakes(self) -> int:
        """Number of inbound sockets whose handshake is not over."""
        return len(self._handshakes)

    @property
    def num_connections(self) -> int:
        """Number of places that are taken."""
        return len(self._connections)

    def subnet(self, connection: IMuxedConn) -> str:
        return self._connections.subnet_of(connection)

    def is_wanted(self, connection: IMuxedConn) -> bool:
        """Whether the connection is with a peer in ``wanted``."""
        return self._connections.rank_of(connection) == Rank.KEPT

    def is_proven(self, connection: IMuxedConn) -> bool:
        """Whether the peer said hello, or is wanted."""
        return self._connections.rank_of(connection) >= Rank.PROVEN

    def said_hello(self, peer: bytes) -> None:
        """Notes that ``peer`` is a node: its connections no longer lose their places for being idle."""
        self._connections.raise_rank(peer, Rank.PROVEN)

    def used(self, peer: bytes) -> None:
        """Notes that ``peer`` uses its connection."""
        self._connections.use(peer, trio.current_time())

    async def serve_circuit(self, pipe: ReadWriteCloser, address: Multiaddr) -> None:
        """Serves a connection through a relay until it ends. address: this node's address at the relay."""
        await self._serve_raw(RawConnection(pipe, False, ConnectionType.RELAYED, [address]))

    async def _serve_socket(self, socket: ReadWriteCloser, address: Multiaddr) -> None:
        await self._serve_raw(RawConnection(socket, False))

    async def _serve_raw(self, raw: RawConnection) -> None:
        """Supervisor of an inbound connection, from its first byte to its end."""
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
        """The connection after its handshake; None: there is no place for the handshake, or it took too long. Raises
        any error that the peer causes."""
        subnet, now = subnet_of(remote_address(raw)), trio.current_time()
        turned_away: tuple[ISecureConn, Purpose] | None = None
        if self._pace.delay_s(b"", subnet, 1.0, now, patience_s=0.0) is None:
            return None
        with trio.CancelScope(deadline=now + HANDSHAKE_S) as scope:
            given_up = self._handshakes.admit(scope, b"", subnet, now)
            if given_up is None:
                return None
            for other in given_up:
                other.cancel()
            try:
                opened, purpose = await self._keys.accepted(raw)
                secured = await self._secured(opened)
                if purpose is Purpose.MEMBERS and self._keys.lets_in(secured.get_remote_peer().to_bytes()):
                    return await self._muxed(secured)
                turned_away = secured, purpose
            finally:
                self._handshakes.release(scope)
        if turned_away is not None:
            await self._answer_entry(*turned_away, subnet)
        return None

    async def _answer_entry(self, secured: ISecureConn, purpose: Purpose, subnet: str) -> None:
        """Answers the one request of a peer that is not let in, if there is a place. Raises any error that the peer
        causes."""
        peer = secured.get_remote_peer().to_bytes()
        if self._access is None or not self._entering.take(peer, subnet):
            return
        try:
            await entry_exchange.answer(secured, peer, purpose, self._access)
        finally:
            self._entering.free(peer, subnet)

    async def handshaken(self, raw: IRawConnection) -> IMuxedConn:
        """A connection that this node dialled while the peer dialled back, after Noise and Yamux. Raises any error that
        the peer causes."""
        return await self._muxed(await self._secured(raw))

    async def _secured(self, raw: IRawConnection) -> ISecureConn:
        peer, begins = self.punching.get(raw.get_remote_address() or ("", 0), (None, False))
        return await self._swarm.upgrader.upgrade_security(raw, begins, peer)

    async def _muxed(self, secured: ISecureConn) -> IMuxedConn:
        muxer = await self._swarm.upgrader.upgrade_connection(secured, secured.get_remote_peer())
        peer, _ = self.punching.get(secured.get_remote_address() or ("", 0), (None, False))
        if muxer.peer_id == peer:
            self.punched.add(muxer)
        return muxer

    async def _add_admitted(self, muxed_conn: IMuxedConn, direction: str = "unknown") -> SwarmConn:
        """Adds a connection, made by either side, if it gets a place. Called when the peer id is known. Raises
        SwarmException."""
        assert isinstance(muxed_conn, YamuxConnection)
        peer = muxed_conn.peer_id.to_bytes()
        if not self._keys.lets_in(peer):
            await muxed_conn.close()
            raise SwarmException("the peer is no member of this private swarm")
        subnet, is_wanted = subnet_of(remote_address(muxed_conn)), peer in self.wanted
        given_up = self._connections.admit(
            muxed_conn,
            peer,
            subnet,
            trio.current_time(),
            is_wanted,
            is_wanted or self._is_remembered(peer),
            frozenset().union(*(busy() for busy in self.busy)),
        )
        if given_up is None:
            await muxed_conn.close()
            raise SwarmException("there is no room for one more connection")
        muxed_conn.on_end = lambda: self._release(muxed_conn)
        muxed_conn.pace = partial(self._wait_for_pace, peer, subnet)
        for other in given_up:
            log.debug("connection_given_up", peer=peer_text(other.peer_id.to_bytes()))
            self._swarm.manager.run_task(other.close)
        try:
            return await self._add_connection(muxed_conn, direction)
        except BaseException:
            self._release(muxed_conn)
            raise

    async def _wait_for_pace(self, peer: bytes, subnet: str, work: int) -> None:
        if delay_s := self._frame_pace.delay_s(peer, subnet, work, trio.current_time(), math.inf):
            await trio.sleep(delay_s)

    def _release(self, connection: IMuxedConn) -> None:
        self._connections.release(connection)

    def _is_remembered(self, peer: bytes) -> bool:
        end = f"/p2p/{peer_text(peer)}"
        return any(address.endswith(end) for address in self._remembered())
