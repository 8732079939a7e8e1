"""The connections and streams that this node opens. Addresses are dialled directly or through a relay, at most one at a
time for each peer. Streams are opened on existing connections."""

import math
import random
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from enum import Enum, auto

import trio
from libp2p.abc import INetConn, INetStream, IRawConnection
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from mycelia.node.errors import Attempt
from mycelia.node.network import addresses
from mycelia.node.network.deadlines import shielded
from mycelia.node.network.libp2p import entry_exchange, negotiation
from mycelia.node.network.libp2p.closing import CLOSE_DEADLINE_S, close_connection, reset_stream
from mycelia.node.network.libp2p.dial_errors import explained, is_silent, root_cause
from mycelia.node.network.libp2p.peers import PeerTable, is_relayed, peer_of
from mycelia.node.network.libp2p.starvation import STARVED_S, Starvation
from mycelia.node.network.libp2p.swarm_key import SwarmKeys
from mycelia.node.network.names import NO_FAMILY, NameFailure, Names, SystemResolver
from mycelia.node.network.network import DialError, NetworkError, NetworkSettings
from mycelia.node.peer_id import peer_text
from mycelia.proto.admission.limits import Limits, TokenBucket
from mycelia.proto.wire.messages import Message

DIAL_DEADLINE_S = 5.0
ADDRESS_TTL_S = 7_200
HEAD_START_S, BEFORE_RELAYS_S = 0.25, 1.5
"""Time that one address of a peer is tried before the next one is tried as well, and before the first one at a relay: a
circuit is there at once, and would win over a direct connection."""
SILENT_S, MAX_SILENT = 60.0, 1_024
"""How long an address that did not answer is not dialled again, unless the operator named it; and the number of such
addresses."""
MAX_DIAL_ADDRESSES = 6
MAX_PARALLEL_DIALS = 16
"""Number of dials at once of origin TOLD. As many dials of the other two origins may run beside them."""
MAX_LOOPBACK_DIALS = 4
"""Number of dials at once of origin TOLD on this machine, whose nodes share its processor. With 16, most handshakes of
100 nodes that started together took longer than their deadline."""
TOLD_RATE, TOLD_BURST = 4.0, 128.0
"""Addresses from peers that are dialled per second. A lookup in a swarm that just started dials some dozens."""
ADDRESS_RATE, ADDRESS_BURST = 1 / 30, 3.0
"""Dials per second of one address from peers, for all peer ids together: strangers cannot make a node flood it."""


class Origin(Enum):
    """The reason for a dial."""

    OWN = auto()
    """The operator of this node named the peer. The connection always gets a place."""
    REMEMBERED = auto()
    TOLD = auto()
    """Peers announced the address. Their limits apply, and a name may not lead into this node's own network."""


class Outbound:
    """The outgoing connections and streams of one host. The constructor replaces libp2p's dial at once."""

    def __init__(
        self,
        host: BasicHost,
        swarm: Swarm,
        table: PeerTable,
        settings: NetworkSettings,
        wanted: set[bytes],
        keys: SwarmKeys,
        starvation: Starvation,
    ) -> None:
        """wanted: peers whose connections always get a place. Dials of origin OWN add their peer to it."""
        self._host = host
        self._swarm = swarm
        self._table = table
        self._starvation = starvation
        self._me = settings.identity.peer_id
        self._keys = keys
        self._access = settings.access
        self._wanted = wanted
        self._dials: dict[tuple[bytes, bool], trio.Event] = {}
        """(peer, whether its address comes from peers) -> the event at the end of the dial."""
        self._num_making: Counter[bytes] = Counter()
        """Relay -> number of circuits that are being made through it."""
        self._own_limiter = trio.CapacityLimiter(MAX_PARALLEL_DIALS)
        self._told_limiter = trio.CapacityLimiter(MAX_PARALLEL_DIALS)
        self._loopback_limiter = trio.CapacityLimiter(MAX_LOOPBACK_DIALS)
        self._told = TokenBucket(TOLD_RATE, TOLD_BURST, 0.0)
        self._told_addresses: Limits[str] = Limits(ADDRESS_RATE, ADDRESS_BURST)
        self._silent: OrderedDict[str, float] = OrderedDict()
        """Address that did not answer -> when it may be dialled again on the word of peers."""
        self.names = Names(SystemResolver(), random.SystemRandom())
        self.carrier: Outbound | None = None
        """Opens the circuits through relays that are not in this host's private swarm, see ``carrier.py``."""
        self.users = [table]
        """The tables of peers whose connections may lead through this host's relays."""
        self.open_circuit: Callable[[bytes, bytes], Awaitable[ReadWriteCloser]] = _no_circuits
        """(relay, peer) -> the pipe that replaces a socket to the peer. Raises NetworkError."""
        # libp2p dials for every stream that it opens, also to a peer that was just disconnected. This node would not
        # notice the loss: the new connection would be there before the end of the old one is reported.
        swarm.dial_peer = self._not_dialled  # type: ignore[method-assign]

    async def dial(self, peer: bytes, candidates: Sequence[Multiaddr], origin: Origin = Origin.OWN) -> None:
        """Connects, unless connected; a peer that is connected through a relay, directly, if an address allows it.
        Raises a DialError that says what was tried if the peer is then not connected at all.

        libp2p's own dial tries only one of the TCP addresses that it knows. This one tries them all, each a head start
        after the one before or as soon as that one failed (RFC 8305), and keeps the first connection."""
        failures: list[Attempt] = []
        is_told = origin is Origin.TOLD
        async with self._only_dial(peer, is_told), self._told_limiter if is_told else self._own_limiter:
            with self._as_wanted(peer, origin):
                async with trio.open_nursery() as nursery:
                    usable = addresses.in_dial_order(candidates, MAX_DIAL_ADDRESSES)
                    await self._try_all(peer, addresses.by_family(usable), origin, failures, nursery)
            if peer in self._table:
                return
        told = [one for one in failures if not one.says.startswith(NO_FAMILY)] or failures
        raise DialError(peer_text(peer), list(dict.fromkeys(told)))

    async def _try_all(
        self,
        peer: bytes,
        candidates: Sequence[Multiaddr],
        origin: Origin,
        failures: list[Attempt],
        nursery: trio.Nursery,
    ) -> None:
        """Begins to dial each address, in ``nursery``."""
        is_over, is_direct = trio.Event(), False
        for address in candidates:
            if is_direct and addresses.relay_of(address) is not None:
                with trio.move_on_after(BEFORE_RELAYS_S - HEAD_START_S):
                    await is_over.wait()
            if self._table.is_direct(peer):
                break
            if peer in self._table and addresses.relay_of(address) is not None:
                continue
            is_over, is_direct = trio.Event(), addresses.relay_of(address) is None
            nursery.start_soon(self._try, peer, address, origin, failures, is_over, nursery)
            with trio.move_on_after(HEAD_START_S):
                await is_over.wait()

    async def _try(
        self,
        peer: bytes,
        address: Multiaddr,
        origin: Origin,
        failures: list[Attempt],
        is_over: trio.Event,
        nursery: trio.Nursery,
    ) -> None:
        """Dials one address, or all that a name leads to. A success cancels ``nursery``; a failure is added to
        ``failures``."""
        text, now = str(address), trio.current_time()
        try:
            if addresses.is_name(address):
                await self._try_all(peer, await self._meant(address, origin), origin, failures, nursery)
                return
            if origin is not Origin.OWN and self._silent.get(text, -math.inf) > now:
                raise NetworkError("did not answer a moment ago")
            is_told = origin is Origin.TOLD
            async with self._loopback_limiter if is_told and addresses.is_loopback(address) else nullcontext():
                with trio.fail_after(DIAL_DEADLINE_S):
                    await self._dial_admitted(peer, address, is_told)
        except Exception as exc:  # noqa: BLE001  supervisor of a dial: the other end may cause any error
            failures.append(Attempt(addresses.place_of(address), *explained(exc)))
            if is_silent(exc) and self._starvation.late_s(now) < STARVED_S:
                self._note_silent(text, now)
        else:
            self._host.get_peerstore().add_addrs(ID(peer), [address], ADDRESS_TTL_S)
            nursery.cancel_scope.cancel()
        finally:
            is_over.set()

    def forget_silent(self) -> None:
        """Dials all addresses again: this machine's own line may have been at fault."""
        self._silent.clear()

    def _note_silent(self, address: str, now: float) -> None:
        self._silent[address] = now + SILENT_S
        self._silent.move_to_end(address)
        if len(self._silent) > MAX_SILENT:
            self._silent.popitem(last=False)

    async def _meant(self, name: Multiaddr, origin: Origin) -> list[Multiaddr]:
        """The addresses behind a name. Its owner can let it lead to any address, so only one that strangers may tell is
        used of a name that the operator did not give. Raises NameFailure, and NetworkError for names that strangers
        tell too often."""
        if origin is Origin.TOLD:
            self.take_told(name)
        found = await self.names.hosts(name)
        if origin is Origin.OWN:
            return found
        if not (meant := [one for one in found if addresses.is_tellable(one)]):
            raise NameFailure("the name does not lead to an address that others may tell")
        return meant[:1]

    async def _dial_admitted(self, peer: bytes, address: Multiaddr, is_told: bool) -> None:
        """Dials, and again after a peer of this private swarm, which did not let this node in, told what is new. Raises
        any error, as do the other dialling methods below."""
        try:
            await self._dial_address(peer, address, is_told)
        except SwarmException as exc:
            if self._access is None or not entry_exchange.is_turned_away(exc):
                raise
            if not await self._access.learn(await self.ask_entry(peer, address, self._access.request())):
                raise NetworkError("does not let this node in: it is not on the list of members") from None
            await self._dial_address(peer, address, is_told)

    async def ask_entry(self, peer: bytes, address: Multiaddr, request: Message) -> Message:
        """The answer of a peer of a private swarm that does not let this node in. Raises any error."""
        circuit = addresses.relay_of(address)
        if circuit is None:
            transport = self._swarm.transport_manager.transport_for_dialing(address)
            if transport is None:
                raise NetworkError(f"cannot dial {address}")
            raw = await transport.dial(address)
            return await entry_exchange.ask_entry(self._swarm.upgrader, raw, peer, request)
        async with self._circuit(peer, address, *circuit, is_told=False) as raw:
            return await entry_exchange.ask_entry(self._swarm.upgrader, raw, peer, request)

    @contextmanager
    def _as_wanted(self, peer: bytes, origin: Origin) -> Iterator[None]:
        if origin is not Origin.OWN or peer in self._wanted:
            yield
            return
        self._wanted.add(peer)
        try:
            yield
        finally:
            self._wanted.discard(peer)

    async def _dial_address(self, peer: bytes, address: Multiaddr, is_told: bool) -> None:
        circuit = addresses.relay_of(address)
        if circuit is None:
            await self._dial_socket(peer, address, is_told)
            return
        async with self._circuit(peer, address, *circuit, is_told=is_told) as raw:
            await self._swarm.upgrade_outbound_raw_conn(raw, ID(peer))

    @asynccontextmanager
    async def _circuit(
        self, peer: bytes, address: Multiaddr, relay: bytes, relay_address: Multiaddr, is_told: bool
    ) -> AsyncIterator[IRawConnection]:
        """A connection through a relay, closed if the body fails. Raises NetworkError."""
        if relay in (peer, self._me):
            raise NetworkError(f"{address} leads nowhere")
        opener = self if self.carrier is None or self._keys.lets_in(relay) else self.carrier
        async with opener.pipe(peer, relay, relay_address, is_told) as pipe:
            yield self._keys.dialled(RawConnection(pipe, True, ConnectionType.RELAYED, [address]))

    @asynccontextmanager
    async def pipe(
        self, peer: bytes, relay: bytes, relay_address: Multiaddr, is_told: bool
    ) -> AsyncIterator[ReadWriteCloser]:
        """A circuit to ``peer``, closed if the body fails. Raises NetworkError."""
        async with self._through(relay, relay_address, is_told):
            pipe = await self.open_circuit(relay, peer)
            try:
                yield pipe
            except BaseException:
                await pipe.close()
                raise

    async def _dial_socket(self, peer: bytes, address: Multiaddr, is_told: bool) -> INetConn:
        if is_told:
            self.take_told(address)
        return await self._swarm.dial_addr(address, ID(peer))

    def take_told(self, address: Multiaddr) -> None:
        """Counts a dial of an address that peers announced. Raises NetworkError if it must not be dialled now."""
        now = trio.current_time()
        if not (self._told_addresses.take(str(address), now) and self._told.take(now)):
            raise NetworkError("was dialled often enough on the word of others")

    @asynccontextmanager
    async def _through(self, relay: bytes, address: Multiaddr, is_told: bool) -> AsyncIterator[None]:
        """Connects with the relay while the body makes a circuit. If the circuit fails, a connection made for it ends:
        otherwise a peer that announces addresses could make this node keep connections to any machine."""
        connection: INetConn | None = None
        if relay not in self._table:
            async with self._only_dial(relay, is_told=True):
                if relay not in self._table:
                    connection = await self._dial_socket(relay, address, is_told)
        self._num_making[relay] += 1
        try:
            yield
        except BaseException:
            if connection is not None and self._num_making[relay] == 1 and not self._is_passed(relay):
                with shielded(CLOSE_DEADLINE_S):
                    await close_connection(connection)
            raise
        finally:
            self._num_making -= Counter([relay])  # (which deletes a count of zero)

    def _is_passed(self, relay: bytes) -> bool:
        """Whether any connection leads through it."""
        return any(
            f"/p2p/{peer_text(relay)}/p2p-circuit" in str(address)
            for table in self.users
            for peer in table.peers()
            for connection in table.connections(peer)
            if is_relayed(connection)
            for address in connection.get_transport_addresses()
        )

    async def _not_dialled(self, peer_id: ID) -> list[INetConn]:
        """The peer's connections, in place of libp2p's dial. Raises SwarmException if there are none."""
        if connections := self._swarm.get_connections(peer_id):
            return connections
        raise SwarmException(f"not connected with {peer_id}")

    @asynccontextmanager
    async def _only_dial(self, peer: bytes, is_told: bool) -> AsyncIterator[None]:
        """Allows one dial of a peer at a time. A dial of origin OWN or REMEMBERED does not wait for one of origin TOLD:
        peers could delay it by addresses at which nothing answers."""
        keys = [(peer, False), (peer, True)] if is_told else [(peer, False)]
        while under_way := [self._dials[key] for key in keys if key in self._dials]:
            await under_way[0].wait()
        done = self._dials[peer, is_told] = trio.Event()
        try:
            yield
        finally:
            del self._dials[peer, is_told]
            done.set()

    async def open(self, peer: bytes, protocol: str, direct: bool = False, waits: bool = True) -> INetStream:
        """A new stream to a connected peer, on its best connection. Raises NetworkError.

        direct: not through a relay. waits: whether to wait for the peer's answer that it speaks ``protocol``. Otherwise
        the caller's first bytes must be ``negotiation.proposal``."""
        for connection in self._table.connections(peer):
            if not connection.is_closed and not (direct and is_relayed(connection)):
                return await self.open_on(connection, protocol, waits)
        raise NetworkError(f"not connected {'directly ' if direct else ''}to {peer_text(peer)}")

    async def open_on(self, connection: INetConn, protocol: str, waits: bool = True) -> INetStream:
        """As ``open``, on this connection."""
        try:
            with trio.fail_after(negotiation.OPEN_DEADLINE_S):
                # (a stream whose opening is cancelled would stay open for ever; this does not wait for the peer)
                with trio.CancelScope(shield=True):
                    stream = await connection.new_stream()
                try:
                    if waits:
                        await negotiation.select(stream, protocol)
                except BaseException:
                    await reset_stream(stream)
                    raise
        except (BaseLibp2pError, trio.TooSlowError, OSError, negotiation.NotSupportedError) as exc:
            name = peer_text(peer_of(connection))
            raise NetworkError(f"cannot open {protocol} with {name}: {root_cause(exc)}") from exc
        stream.set_protocol(TProtocol(protocol))
        return stream


async def _no_circuits(relay: bytes, peer: bytes) -> ReadWriteCloser:
    raise NetworkError("this node uses no relays")
