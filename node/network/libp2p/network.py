"""The real network. It imports libp2p only when a network is opened, since that import takes a second."""

import random
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from mycelia.node.errors import Attempt
from mycelia.node.network import addresses
from mycelia.node.network.events import EventQueue
from mycelia.node.network.identity import Identity
from mycelia.node.network.libp2p.unused import without_unused
from mycelia.node.network.network import (
    Connected,
    Disconnected,
    Malformed,
    MessageStream,
    NetworkError,
    NetworkEvent,
    NetworkSettings,
    Path,
    Reachability,
    Relayed,
    RoundTripMeasured,
    StreamHandler,
)
from mycelia.node.network.supervise import supervised
from mycelia.node.peer_id import peer_text
from mycelia.proto.admission.subnets import is_local, subnet_of
from mycelia.proto.cells.cells import ROOT, Cell
from mycelia.proto.wire.messages import Control, Gossip, Message
from mycelia.proto.wire.refusals import Refusal

if TYPE_CHECKING:
    from libp2p.abc import INetConn
    from multiaddr import Multiaddr

log = structlog.get_logger()


@asynccontextmanager
async def open_network(
    settings: NetworkSettings, handlers: Mapping[str, StreamHandler] | None = None
) -> AsyncIterator["Libp2pNetwork"]:
    """Runs a network around the body. Leaving, also by cancellation, closes every connection within two seconds.

    handlers: protocol -> handler, in place before the first stream can arrive. Raises LocalError for settings that
    cannot work, such as a port in use. An exception of the body is raised as it is, not in a group."""
    network = Libp2pNetwork(settings, handlers or {})
    failure: Exception | None = None
    async with AsyncExitStack() as stack:
        if network.gossip is not None:
            await stack.enter_async_context(network.gossip.services())
        try:
            await stack.enter_async_context(network.host.running())
            nursery = await stack.enter_async_context(trio.open_nursery())
            network.start(nursery)
            yield network
        except Exception as exc:  # noqa: BLE001  raised again below, outside the nurseries that would wrap it
            failure = exc
        finally:
            if network.nursery is not None:
                network.nursery.cancel_scope.cancel()
            network.events_queue.close()
    if failure is not None:
        raise failure


class Libp2pNetwork:
    """A running ``Network``, made by ``open_network``. Its parts are public only for this package and its tests; other
    code uses the methods of ``Network``."""

    def __init__(self, settings: NetworkSettings, handlers: Mapping[str, StreamHandler]) -> None:
        with without_unused():
            from mycelia.node.network.libp2p.autonat import AutoNat
            from mycelia.node.network.libp2p.discovery import Discovery
            from mycelia.node.network.libp2p.duplicates import Duplicates
            from mycelia.node.network.libp2p.gossip.gossip import Gossip as GossipService
            from mycelia.node.network.libp2p.host import Host
            from mycelia.node.network.libp2p.joining import Joining
            from mycelia.node.network.libp2p.liveness import Liveness
            from mycelia.node.network.libp2p.peers import PeerTable
            from mycelia.node.network.libp2p.punching import Punching
            from mycelia.node.network.libp2p.relay_server import RelayServer
            from mycelia.node.network.libp2p.relaying import Relaying
            from mycelia.node.network.libp2p.starvation import Starvation
            from mycelia.node.network.libp2p.streams import Streams
            from mycelia.node.network.libp2p.upgrading import Upgrades

        self._settings = settings
        self.events_queue = EventQueue()
        self.table = PeerTable(
            self._peer_up,
            self._peer_down,
            self._watch,
            self._round_trip,
            self._start_over,
            any(addresses.is_global(addresses.parse_announce(text)) for text in settings.announce),
            self._moved,
            settings.identity.peer_id,
        )
        starvation = Starvation()
        self._liveness = Liveness(self.table, starvation)
        self.host = Host(settings, self.table, starvation)
        self.streams = Streams(self.host, self.events_queue, self._charge)
        self.gossip: GossipService | None = None
        if settings.overlay:
            self.gossip = GossipService(self.host, self.events_queue, self._charge)
            AutoNat(self.host)
        self.discovery = Discovery(self.host, random.SystemRandom())
        self.joining = Joining(self.host, self.discovery, random.SystemRandom())
        self.relay_server = RelayServer(self.host, self.table, settings.relay and settings.overlay)
        self.relaying = Relaying(self.host, self.table, random.SystemRandom(), on_change=self.announce)
        punching, rng = Punching(self.host, self.table), random.SystemRandom()
        self.upgrades = Upgrades(self.host, self.table, punching, self.streams, self.gossip, rng)
        self.duplicates = Duplicates(self.peer_id, self.table, self.streams, self.gossip)
        self.nursery: trio.Nursery | None = None
        self._joined: dict[tuple[bytes, Cell], trio.CancelScope] = {}
        """The cells whose nodes this node looks for."""
        for protocol, handler in handlers.items():
            self.streams.serve(protocol, handler)

    def start(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        nursery.start_soon(supervised, self._liveness.run)
        nursery.start_soon(self.discovery.run)
        nursery.start_soon(self.joining.run)
        nursery.start_soon(supervised, self.relaying.keep_reserved)
        if self.gossip is not None:
            nursery.start_soon(supervised, self.gossip.run)

    def _watch(self, connection: "INetConn") -> None:
        from mycelia.node.network.libp2p.peers import is_relayed, peer_of, remote_address
        from mycelia.node.network.libp2p.yamux import YamuxConnection

        muxer = connection.muxed_conn
        # (a circuit's bytes count on the connection with the relay)
        is_outside = not is_relayed(connection) and not is_local(subnet_of(remote_address(connection)))
        if is_outside and isinstance(muxer, YamuxConnection):
            muxer.line = self._settings.line
        if self.nursery is not None:
            self.nursery.start_soon(supervised, self._liveness.watch, connection)
            if is_relayed(connection):
                self.nursery.start_soon(supervised, self.upgrades.keep, peer_of(connection))
            self.nursery.start_soon(supervised, self.duplicates.keep, peer_of(connection))

    def _start_over(self, peer: bytes) -> None:
        """Ends all connections with the peer, which dials again. Gossip would not move to its new connection."""
        log.info("peer_returned", peer=peer_text(peer))
        if self.nursery is not None:
            self.nursery.start_soon(supervised, self.host.disconnect, peer)

    def _round_trip(self, peer: bytes, seconds: float) -> None:
        self.events_queue.offer(RoundTripMeasured(peer, seconds))

    def _peer_up(self, peer: bytes, address: str) -> None:
        log.debug("connected", peer=peer_text(peer), address=address)
        self.events_queue.put(Connected(peer, address))

    def _moved(self, peer: bytes, address: str) -> None:
        log.debug("moved", peer=peer_text(peer), address=address)
        self.events_queue.put(Connected(peer, address))

    def _peer_down(self, peer: bytes) -> None:
        log.debug("disconnected", peer=peer_text(peer))
        self.host.forget(peer)
        self.streams.forget(peer)
        self.relaying.forget(peer)
        self.relay_server.forget(peer)
        if self.gossip is not None:
            self.gossip.forget(peer)
        self.events_queue.put(Disconnected(peer))

    def _charge(self, peer: bytes, reason: str, refusal: Refusal = Refusal.MALFORMED) -> None:
        log.debug("malformed", peer=peer_text(peer), reason=reason)
        self.events_queue.offer(Malformed(peer, reason, refusal))

    # --- the interface ---------------------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        return self._settings.identity

    @property
    def peer_id(self) -> bytes:
        return self._settings.identity.peer_id

    def addresses(self) -> list[str]:
        return self.host.addresses()

    def peers(self) -> list[bytes]:
        """The connected peers, sorted."""
        return self.table.peers()

    def events(self) -> AsyncIterator[NetworkEvent]:
        return self.events_queue.read()

    async def connect(self, address: str) -> bytes:
        peer, transport_address = addresses.parse_bootstrap(address)
        if not peer:
            return (await self.joining.dial_list(transport_address, is_one_enough=True))[0]
        if peer == self.peer_id:
            raise NetworkError(f"{address} is this node itself")
        await self.host.outbound.dial(peer, [transport_address])
        return peer

    async def ask_entry(self, peer: bytes, address: "Multiaddr", request: Message) -> Message:
        """The answer of a member of a private swarm to a peer that is not let in. Raises NetworkError."""
        from mycelia.node.network.libp2p.dial_errors import explained

        try:
            return await self.host.outbound.ask_entry(peer, address, request)
        except NetworkError:
            raise
        except Exception as exc:
            raise NetworkError(explained(exc)[0]) from exc

    async def disconnect(self, peer: bytes) -> None:
        await self.host.disconnect(peer)

    def attempts(self) -> list[Attempt]:
        return self.joining.tried()

    def round_trip_s(self, peer: bytes) -> float | None:
        return self.table.round_trip_s(peer)

    def remote_address(self, peer: bytes) -> str:
        return self.table.remote_address(peer)

    def path(self, peer: bytes) -> Path | None:
        connections, address = self.table.connections(peer), self.table.remote_address(peer)
        if not connections:
            return None
        if (
            relay := addresses.relay_of(connections[0].get_transport_addresses()[0])
            if addresses.is_circuit(address)
            else None
        ):
            return Path("relayed", relay[0])
        if is_local(subnet_of(address)):
            return Path("LAN")
        return Path("punched" if connections[0].muxed_conn in self.host.inbound.punched else "direct")

    def addresses_of(self, peer: bytes) -> list[str]:
        return [str(address) for address in self.host.addresses_of(peer)]

    async def send(self, peer: bytes, message: Control) -> None:
        await self.streams.send(peer, message)

    async def publish(self, namespace: bytes, message: Gossip, cell: Cell = ROOT) -> None:
        if self.gossip is None:
            raise NetworkError("a light client does not gossip")
        self.gossip.publish(namespace, cell, message)
        await trio.lowlevel.checkpoint()

    async def join(self, namespace: bytes) -> None:
        await self.join_cell(namespace, ROOT)

    async def leave(self, namespace: bytes) -> None:
        for joined, cell in [key for key in self._joined if key[0] == namespace]:
            self._joined.pop((joined, cell)).cancel()
            if self.gossip is not None:
                await self.gossip.leave(namespace, cell)

    async def join_cell(self, namespace: bytes, cell: Cell) -> None:
        if self.gossip is None:
            raise NetworkError("a light client joins no namespace")
        if self.nursery is None:
            return
        if (namespace, cell) not in self._joined:
            scope = self._joined[namespace, cell] = trio.CancelScope()
            self.nursery.start_soon(supervised, self._seek, namespace, cell, scope)
        await self.gossip.join(namespace, cell, self.nursery)

    async def leave_cell(self, namespace: bytes, cell: Cell) -> None:
        if self.gossip is None:
            raise NetworkError("a light client joins no namespace")
        if cell != ROOT and (namespace, cell) in self._joined:
            self._joined.pop((namespace, cell)).cancel()
        await self.gossip.leave(namespace, cell)

    async def _seek(self, namespace: bytes, cell: Cell, scope: trio.CancelScope) -> None:
        with scope:
            await self.discovery.seek(namespace, cell)

    async def provide(self, key: bytes) -> None:
        await self.discovery.provide_prefix(key)

    async def find_providers(self, key: bytes) -> list[bytes]:
        return await self.discovery.find_prefix(key)

    async def find_nodes(self, namespace: bytes) -> list[bytes]:
        return await self.discovery.find_nodes(namespace)

    async def dial(self, peer: bytes) -> None:
        await self.discovery.dial_hint(peer)

    async def open(self, peer: bytes, protocol: str, waits: bool = True) -> MessageStream:
        return await self.streams.open(peer, protocol, waits)

    def set_reachability(self, reachability: Reachability) -> None:
        is_new = self.host.set_reachability(reachability)
        if self.discovery.dht is not None:
            is_new |= self.discovery.dht.set_serving(bool(reachability.open) or not reachability.closed)
        if is_new:
            self.announce()
        self.relaying.want(reachability.relayed if self._settings.relay else frozenset())

    def interfaces_changed(self, hosts: Collection[str]) -> None:
        self.host.interfaces_changed()
        self.discovery.back_online()
        self.upgrades.start_over()
        from mycelia.node.network.libp2p.closing import close_connection

        if self.nursery is not None:
            for connection in self.host.connections_from_others(hosts):
                self.nursery.start_soon(supervised, close_connection, connection)
        self.announce()

    def announce(self) -> None:
        """Tells what is new of this node's addresses and protocols: in the DHT and to the connected peers."""
        self.discovery.start_over()
        if self.nursery is not None:
            self.nursery.start_soon(supervised, self.host.push_identify)

    def relayed(self) -> Relayed:
        return self.relay_server.relayed()

    def num_exchanges(self, peer: bytes = b"") -> int:
        return sum(peer in (b"", stream.peer) for stream in self.streams.exchanges)

    def serve(self, protocol: str, handler: StreamHandler, is_forgiving: bool = False) -> None:
        self.streams.serve(protocol, handler, is_forgiving)
