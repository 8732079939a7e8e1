"""Connections and streams that others open: how many a node takes, and what keeps one that fails from ending more than
itself. A connection may also come through a relay."""

from collections.abc import Callable

import structlog
from libp2p.abc import INetStream
from libp2p.connection_types import ConnectionType
from libp2p.host.basic_host import BasicHost
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.net_stream import NetStream
from libp2p.network.swarm import Swarm
from multiaddr import Multiaddr

from node.network import negotiation
from node.network.closing import reset_stream
from node.network.network import NetworkSettings
from node.network.peers import PeerTable
from node.network.swarm_key import keyed
from node.network.yamux import YamuxStream
from node.peer_id import peer_text

log = structlog.get_logger()

MAX_STREAMS_PER_PEER = 64
MAX_STREAMS = 512


class Inbound:
    """One host's. Takes libp2p's place at once, when it is made."""

    def __init__(self, host: BasicHost, swarm: Swarm, table: PeerTable, settings: NetworkSettings) -> None:
        self._host = host
        self._swarm = swarm
        self._table = table
        self._max_connections = settings.max_connections
        self._swarm_key = settings.swarm_key
        self._num_inbound = 0
        self._streams_of: dict[bytes, int] = {}
        self.on_refused: Callable[[bytes, str], None] = lambda peer, reason: None
        """Called when a peer opens more streams than it may."""
        # An exception in any inbound handler ends the whole swarm, and a peer may open any number of streams.
        self._serve_stream = host._swarm_stream_handler
        swarm.set_stream_handler(self._guard_stream)
        # Holds its task and its inbound slot until the swarm ends, not the connection: after max_connections
        # inbound connections in all, a node would accept no more.
        swarm._handle_inbound_connection = self._serve_inbound  # type: ignore[method-assign, assignment]

    async def _serve_inbound(self, socket: ReadWriteCloser, address: Multiaddr) -> None:
        await self._serve_raw(RawConnection(socket, False), address)

    async def serve_circuit(self, pipe: ReadWriteCloser, address: Multiaddr) -> None:
        """Who comes through a relay, for as long as the connection lasts. address: this node's own there."""
        await self._serve_raw(RawConnection(pipe, False, ConnectionType.RELAYED, [address]), address)

    async def _serve_raw(self, socket: RawConnection, address: Multiaddr) -> None:
        if self._num_inbound >= self._max_connections:
            await socket.close()
            return
        self._num_inbound += 1
        try:
            muxer = await self._swarm.upgrade_inbound_raw_conn(keyed(socket, self._swarm_key), address)
            for connection in self._swarm.get_connections(muxer.peer_id):
                if connection.muxed_conn is muxer:
                    await self._table.wait_closed(connection)
        except Exception as exc:  # noqa: BLE001  supervisor of a connection
            log.debug("inbound connection failed", error=repr(exc))
        finally:
            self._num_inbound -= 1

    async def _guard_stream(self, stream: INetStream) -> None:
        """Supervisor of one inbound stream, from before its protocol is known to its end."""
        peer = stream.muxed_conn.peer_id.to_bytes()
        num_streams = self._streams_of.get(peer, 0)
        if num_streams >= MAX_STREAMS_PER_PEER or sum(self._streams_of.values()) >= MAX_STREAMS:
            if num_streams >= MAX_STREAMS_PER_PEER:
                self.on_refused(peer, "too many streams")
            await reset_stream(stream)
            return
        self._streams_of[peer] = num_streams + 1
        try:
            await self._negotiate_and_serve(stream)
        except Exception as exc:  # noqa: BLE001  supervisor of a stream
            log.debug("inbound stream failed", peer=peer_text(peer), error=repr(exc))
            await reset_stream(stream)
        finally:
            self._streams_of[peer] -= 1
            if not self._streams_of[peer]:
                del self._streams_of[peer]

    async def _negotiate_and_serve(self, stream: INetStream) -> None:
        assert isinstance(stream, NetStream) and isinstance(stream.muxed_stream, YamuxStream)
        handlers = self._host.multiselect.handlers
        accepted = await negotiation.accept(stream, stream.muxed_stream, handlers, negotiation.OPEN_DEADLINE_S)
        if accepted is None:
            await self._serve_stream(stream)
            return
        protocol, handler = accepted
        stream.set_protocol(protocol)
        await handler(stream)
