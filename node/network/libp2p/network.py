"""The real network. Imports libp2p only when one is opened: that import takes a second."""

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from mycelia.node.network import addresses
from mycelia.node.network.events import EventQueue
from mycelia.node.network.network import (
    Connected,
    Disconnected,
    Malformed,
    MessageStream,
    NetworkError,
    NetworkEvent,
    NetworkSettings,
    RoundTripMeasured,
    StreamHandler,
)
from mycelia.node.network.supervise import supervised
from mycelia.node.peer_id import peer_text
from mycelia.proto.cells.cells import ROOT, Cell
from mycelia.proto.wire.messages import Control, Gossip
from mycelia.proto.wire.refusals import Refusal

if TYPE_CHECKING:
    from libp2p.abc import INetConn

log = structlog.get_logger()


@asynccontextmanager
async def open_network(
    settings: NetworkSettings, handlers: Mapping[str, StreamHandler] | None = None
) -> AsyncIterator["Libp2pNetwork"]:
    """Runs a network around the body; leaving, also by cancellation, closes every connection within two seconds.

    ``handlers``: protocol to handler, served from the first stream on. Raises LocalError for settings that cannot
    work, such as a port in use. An exception of the body comes out as it is, not in a group.
    """
    network = Libp2pNetwork(settings, handlers or {})
    failure: Exception | None = None
    async with AsyncExitStack() as stack:
        if network._gossip is not None:
            await stack.enter_async_context(network._gossip.services())
        try:
            await stack.enter_async_context(network._host.running())
            nursery = await stack.enter_async_context(trio.open_nursery())
            network._start(nursery)
            yield network
        except Exception as exc:  # noqa: BLE001  raised again below, outside the nurseries that would wrap it
            failure = exc
        finally:
            if network._nursery is not None:
                network._nursery.cancel_scope.cancel()
            network._events.close()
    if failure is not None:
        raise failure


class Libp2pNetwork:
    """A running ``Network``; see there. Made by ``open_network`` alone."""

    def __init__(self, settings: NetworkSettings, handlers: Mapping[str, StreamHandler]) -> None:
        from mycelia.node.network.libp2p.discovery import Discovery
        from mycelia.node.network.libp2p.gossip.gossip import Gossip as GossipService
        from mycelia.node.network.libp2p.host import Host
        from mycelia.node.network.libp2p.peers import PeerTable
        from mycelia.node.network.libp2p.relaying import Relaying
        from mycelia.node.network.libp2p.streams import Streams

        self._settings = settings
        self._events = EventQueue()
        self._table = PeerTable(self._peer_up, self._peer_down)
        self._host = Host(settings, self._table)
        self._streams = Streams(self._host, self._events, self._charge)
        self._gossip: GossipService | None = None
        if settings.overlay:
            self._gossip = GossipService(self._host, self._events, self._charge)
        self._discovery = Discovery(self._host, random.SystemRandom())
        offers_relay = settings.relay and settings.overlay
        self._relaying = Relaying(self._host, self._table, offers_relay, random.SystemRandom())
        self._relaying.on_change = self._discovery.start_over
        self._nursery: trio.Nursery | None = None
        self._joined: dict[tuple[bytes, Cell], trio.CancelScope] = {}
        """What is looked for."""
        for protocol, handler in handlers.items():
            self._streams.serve(protocol, handler)

    def _start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._table.on_connection = self._watch
        self._table.on_restart = self._start_over
        self._table.on_round_trip = self._round_trip
        nursery.start_soon(self._discovery.run)
        nursery.start_soon(supervised, self._relaying.keep_reserved)
        if self._gossip is not None:
            nursery.start_soon(supervised, self._gossip.run)

    def _watch(self, connection: "INetConn") -> None:
        from mycelia.node.network.libp2p.liveness import watch

        if self._nursery is not None:
            self._nursery.start_soon(supervised, watch, connection, self._table)

    def _start_over(self, peer: bytes) -> None:
        """Both sides begin anew; the peer dials again. Keeping its new connection would leave gossip on the old."""
        log.info("peer came again", peer=peer_text(peer))
        if self._nursery is not None:
            self._nursery.start_soon(supervised, self._host.disconnect, peer)

    def _round_trip(self, peer: bytes, seconds: float) -> None:
        self._events.offer(RoundTripMeasured(peer, seconds))

    def _peer_up(self, peer: bytes, address: str) -> None:
        log.debug("connected", peer=peer_text(peer), address=address)
        self._events.put(Connected(peer, address))

    def _peer_down(self, peer: bytes) -> None:
        log.debug("disconnected", peer=peer_text(peer))
        self._host.forget(peer)
        self._streams.forget(peer)
        self._relaying.forget(peer)
        if self._gossip is not None:
            self._gossip.forget(peer)
        self._events.put(Disconnected(peer))

    def _charge(self, peer: bytes, reason: str, refusal: Refusal = Refusal.MALFORMED) -> None:
        log.debug("malformed", peer=peer_text(peer), reason=reason)
        self._events.offer(Malformed(peer, reason, refusal))

    # --- the interface ---------------------------------------------------------------------------------------------

    @property
    def peer_id(self) -> bytes:
        return self._settings.identity.peer_id

    @property
    def num_dropped_events(self) -> int:
        """Gossip and complaints for which the reader left no room."""
        return self._events.num_dropped

    def addresses(self) -> list[str]:
        return self._host.addresses()

    def peers(self) -> list[bytes]:
        """The connected peers, sorted."""
        return self._table.peers()

    def events(self) -> AsyncIterator[NetworkEvent]:
        return self._events.read()

    async def connect(self, address: str) -> bytes:
        peer, transport_address = addresses.parse_peer(address)
        if peer == self.peer_id:
            raise NetworkError(f"{address} is this node itself")
        await self._host.outbound.dial(peer, [transport_address])
        return peer

    async def disconnect(self, peer: bytes) -> None:
        await self._host.disconnect(peer)

    def round_trip_s(self, peer: bytes) -> float | None:
        return self._table.round_trip_s(peer)

    def remote_address(self, peer: bytes) -> str:
        return self._table.remote_address(peer)

    def addresses_of(self, peer: bytes) -> list[str]:
        return [str(address) for address in self._host.addresses_of(peer)]

    async def send(self, peer: bytes, message: Control) -> None:
        await self._streams.send(peer, message)

    async def publish(self, namespace: bytes, message: Gossip, cell: Cell = ROOT) -> None:
        if self._gossip is None:
            raise NetworkError("a light client does not gossip")
        self._gossip.publish(namespace, cell, message)
        await trio.lowlevel.checkpoint()

    async def join(self, namespace: bytes) -> None:
        await self.join_cell(namespace, ROOT)

    async def join_cell(self, namespace: bytes, cell: Cell) -> None:
        if self._gossip is None:
            raise NetworkError("a light client joins no namespace")
        if self._nursery is None:
            return
        if (namespace, cell) not in self._joined:
            scope = self._joined[namespace, cell] = trio.CancelScope()
            self._nursery.start_soon(supervised, self._seek, namespace, cell, scope)
        await self._gossip.join(namespace, cell, self._nursery)

    async def leave_cell(self, namespace: bytes, cell: Cell) -> None:
        if self._gossip is None:
            raise NetworkError("a light client joins no namespace")
        if cell != ROOT and (namespace, cell) in self._joined:
            self._joined.pop((namespace, cell)).cancel()
        await self._gossip.leave(namespace, cell)

    async def _seek(self, namespace: bytes, cell: Cell, scope: trio.CancelScope) -> None:
        with scope:
            await self._discovery.seek(namespace, cell)

    async def provide(self, key: bytes) -> None:
        await self._discovery.provide_prefix(key)

    async def find_providers(self, key: bytes) -> list[bytes]:
        return await self._discovery.find_prefix(key)

    async def find_nodes(self, namespace: bytes) -> list[bytes]:
        return await self._discovery.find_nodes(namespace)

    async def dial(self, peer: bytes) -> None:
        await self._discovery.dial_hint(peer)

    async def open(self, peer: bytes, protocol: str, waits: bool = True) -> MessageStream:
        return await self._streams.open(peer, protocol, waits)

    def want_relays(self, is_wanted: bool) -> None:
        self._relaying.want(is_wanted and self._settings.relay)

    def num_circuits(self) -> int:
        return self._relaying.num_circuits

    def num_exchanges(self, peer: bytes = b"") -> int:
        return sum(peer in (b"", stream.peer) for stream in self._streams.exchanges)

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        self._streams.serve(protocol, handler)
