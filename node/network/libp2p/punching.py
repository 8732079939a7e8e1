"""Hole punching: a direct connection between two nodes that nobody can dial, each behind a router.

The protocol is libp2p's DCUtR, https://github.com/libp2p/specs/blob/master/relay/DCUtR.md. The node that was dialled
through a relay opens a stream on that connection, and both say at which address their dials will seem to come from.
They then dial each other at the same moment, each from its listening port. The first packet of each side opens its own
router for the packets of the other: TCP's simultaneous open makes one connection of the two dials. On it, the node that
opened the stream answers in the handshakes, and the other begins them, as libp2p in other languages expects.

A peer may name any address. Only public ones are dialled, few of them, and under the limits of all addresses that come
from peers (``Outbound.take_told``), so a node sends a stranger's target no more packets than it does for announced
addresses. Requests are limited by peer and subnet.

libp2p's own module is not used: it logs, dials addresses of any kind at any number, and its roles and retries cannot
be separated from its own loop.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import structlog
import trio
from libp2p.abc import INetConn, INetStream
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.deadlines import shielded
from mycelia.node.network.libp2p.circuits import ERRORS, hear, say
from mycelia.node.network.libp2p.closing import reset_stream
from mycelia.node.network.libp2p.host import Host
from mycelia.node.network.libp2p.peers import PeerTable, is_relayed, peer_of
from mycelia.node.network.network import NetworkError
from mycelia.node.peer_id import peer_text
from mycelia.proto.admission.pace import Pace, Rate

log = structlog.get_logger()

PROTOCOL = "/libp2p/dcutr"
MAX_ADDRESSES = 4
"""Addresses of a peer that are dialled, of the first MAX_TOLD that it names."""
NUM_ROUNDS = 3
"""Number of attempts in a row: the first two may miss the moment."""
ROUND_S = 4.0
"""Time of one attempt. The kernel repeats an unanswered packet after 1 and 3 s."""
REDIAL_S, MAX_REDIALS = 0.1, 10
"""Pause after a refused dial, and their number: some routers answer until they are open."""
REQUESTS, REQUESTS_IN_A_PRIVATE_NETWORK = Rate(1.0, 24.0), Rate(20.0, 256.0)
"""Attempts a second on the word of the peers in one subnet."""
REQUESTS_OF_A_PEER = Rate(1 / 20, 6.0)


class Punching:
    """The attempts of one node, asked for by peers or by itself."""

    def __init__(self, host: Host, table: PeerTable) -> None:
        self._host = host
        self._table = table
        self._me = host.settings.identity.peer_id
        self._under_way: dict[bytes, tuple[trio.CancelScope, bool]] = {}
        """Peer -> the attempt with it, and whether this node asked for it."""
        self._pace = Pace(REQUESTS_OF_A_PEER, REQUESTS, REQUESTS_IN_A_PRIVATE_NETWORK)
        host.serve(PROTOCOL, self._serve)

    def own_addresses(self) -> list[Multiaddr]:
        """The addresses from which this node's dials will seem to come; empty: its router cannot be opened."""
        return self._host.observed.punchable(self._host.listening_ports())

    async def punch(self, relayed: INetConn) -> bool:
        """Asks the peer that made this connection, through a relay, to punch, up to NUM_ROUNDS times. Returns whether
        it is connected directly. Raises NetworkError when the peer does not take part."""
        peer = peer_of(relayed)
        with self._only(peer, is_own=True):
            for _ in range(NUM_ROUNDS):
                try:
                    await self._ask(relayed, peer)
                except (*ERRORS, trio.TooSlowError) as exc:
                    raise NetworkError(f"{peer_text(peer)} does not punch: {exc!r}") from exc
                if self._table.is_direct(peer):
                    break
        return self._table.is_direct(peer)

    async def _ask(self, relayed: INetConn, peer: bytes) -> None:
        """One attempt. Raises NetworkError, TooSlowError and ERRORS."""
        stream = await self._host.outbound.open_on(relayed, PROTOCOL)
        try:
            theirs = HolePunch()
            asked_at = trio.current_time()
            await say(stream, self._connect())
            await hear(stream, theirs)
            round_trip_s = trio.current_time() - asked_at
            if theirs.type != HolePunch.CONNECT:
                raise NetworkError("no CONNECT")
            dialled = dialable(theirs.ObsAddrs)
            if not dialled:
                raise NetworkError("no address that may be dialled")
            with self._expected(peer, dialled, begins=False) as free:
                await say(stream, HolePunch(type=HolePunch.SYNC))
                await trio.sleep(round_trip_s / 2)  # (the SYNC arrives there)
                await self._dial(peer, free)
        finally:
            await reset_stream(stream)

    async def _serve(self, stream: INetStream) -> None:
        """Takes part in the attempts of a peer that this node dialled through a relay."""
        connection = stream.muxed_conn
        peer = connection.peer_id.to_bytes()
        is_given = is_relayed(connection) and connection.is_initiator and self.own_addresses()
        if not is_given or not self._may_serve(peer):
            await reset_stream(stream)
            return
        with self._only(peer, is_own=False):
            for _ in range(NUM_ROUNDS):
                message = HolePunch()
                await hear(stream, message)
                dialled = dialable(message.ObsAddrs)
                if message.type != HolePunch.CONNECT or not dialled:
                    break
                await say(stream, self._connect())
                await hear(stream, message)
                if message.type != HolePunch.SYNC:
                    break
                with self._expected(peer, dialled, begins=True) as free:
                    await self._dial(peer, free)
                if self._table.is_direct(peer):
                    break
        await reset_stream(stream)

    def _may_serve(self, peer: bytes) -> bool:
        """Whether an attempt that ``peer`` asks for may begin. If both ask at once, the one with the lower id may."""
        if peer in self._under_way and self._under_way[peer][1] and self._me < peer:
            return False
        return self._pace.delay_s(peer, self._table.subnet(peer), 1.0, trio.current_time(), patience_s=0.0) is not None

    @contextmanager
    def _only(self, peer: bytes, is_own: bool) -> Iterator[None]:
        """Ends the attempt that is under way with ``peer``, if any: on one connection the roles must not change."""
        if before := self._under_way.pop(peer, None):
            before[0].cancel()
        with trio.CancelScope() as scope:
            self._under_way[peer] = scope, is_own
            try:
                yield
            finally:
                if self._under_way.get(peer, (None,))[0] is scope:
                    del self._under_way[peer]

    def _connect(self) -> HolePunch:
        return HolePunch(type=HolePunch.CONNECT, ObsAddrs=[address.to_bytes() for address in self.own_addresses()])

    @contextmanager
    def _expected(self, peer: bytes, dialled: Iterable[Multiaddr], begins: bool) -> Iterator[list[Multiaddr]]:
        """Notes the addresses, of which each can be expected of one peer only. Returns those that were free. begins:
        whether this side begins the handshake."""
        expected, noted = self._host.inbound.punching, {}
        for address in dialled:
            key = addresses.host_of(str(address)), addresses.port_of(str(address))
            if key not in expected:
                expected[key], noted[key] = (ID(peer), begins), address
        try:
            yield list(noted.values())
        finally:
            for key in noted:
                del expected[key]

    async def _dial(self, peer: bytes, dialled: Iterable[Multiaddr]) -> None:
        """Dials all addresses at once, until the peer is connected directly or ROUND_S have passed."""
        with trio.move_on_after(ROUND_S):
            async with trio.open_nursery() as nursery:
                for address in dialled:
                    nursery.start_soon(self._keep_dialling, peer, address)
                while peer in self._table and not self._table.is_direct(peer):
                    await self._table.news(peer).wait()
                nursery.cancel_scope.cancel()

    async def _keep_dialling(self, peer: bytes, address: Multiaddr) -> None:
        """Supervisor of the dials of one address."""
        try:
            self._host.outbound.take_told(address)
            for _ in range(MAX_REDIALS):
                try:
                    await self._dial_once(address)
                    return
                except OpenConnectionError as exc:
                    log.debug("punch_refused", peer=peer_text(peer), address=str(address), reason=str(exc))
                await trio.sleep(REDIAL_S)
        except Exception as exc:  # noqa: BLE001  the other end may cause any error
            log.debug("punch_failed", peer=peer_text(peer), address=str(address), reason=repr(exc))

    async def _dial_once(self, address: Multiaddr) -> None:
        """Dials from the listening port. Raises OpenConnectionError when no socket opened, and any error that the peer
        causes."""
        swarm, family = self._host.swarm, str(address).split("/")[1]
        source = ("::" if family == "ip6" else "0.0.0.0"), self._host.listening_ports()[family]  # noqa: S104
        raw = await self._host.transport.dial_with_source(address, source)
        try:
            muxer = await self._host.inbound.handshaken(raw)
            # (not cancelled by the news of its own success. Inbound: its other end is no address to dial again)
            with shielded(ROUND_S):
                await swarm.add_conn(muxer, direction="inbound")
        except BaseException:
            with shielded(1.0):
                await raw.close()
            raise


def dialable(named: Iterable[bytes]) -> list[Multiaddr]:
    """The addresses of a stranger's message that are dialled. Never raises."""
    usable = addresses.in_dial_order(addresses.readable(named), addresses.MAX_TOLD)
    return [address for address in usable if addresses.is_plain_public(address)][:MAX_ADDRESSES]
