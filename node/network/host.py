"""The libp2p host with every workaround it needs. The only file that touches libp2p's private names; what takes the
place of whole parts of libp2p is in ``yamux.py``, ``noise.py``, ``negotiation.py`` and ``records.py``.

Each workaround says in one line what goes wrong without it. Because they reach into private names, the version is
pinned, and ``check_private_names`` refuses to start on one that lacks any of them.
"""

import logging
import math
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from typing import Any

import structlog
import trio
from blake3 import blake3
from libp2p import new_host
from libp2p.abc import INetConn, INetStream, IRawConnection
from libp2p.connection_types import ConnectionType
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError, ParseError
from libp2p.host.basic_host import BasicHost
from libp2p.io.abc import Reader, ReadWriteCloser
from libp2p.io.exceptions import MessageTooLarge
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.network import swarm as swarm_module
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection import swarm_connection
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.net_stream import NetStream
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStoreError
from libp2p.protocol_muxer import multiselect_communicator
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.rcmgr import Direction
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer import muxer_multistream
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_PROTOCOL_ID
from libp2p.tools.anyio_service.trio_manager import TrioManager
from libp2p.transport.tcp.tcp import TCP
from libp2p.utils.address_validation import expand_wildcard_address
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from node.network import addresses, negotiation, records
from node.network.deadlines import shielded
from node.network.network import NetworkError, NetworkSettings
from node.network.peers import PeerTable
from node.network.yamux import YamuxConnection, YamuxStream
from node.peer_id import peer_text
from proto.errors import LocalError

log = structlog.get_logger()

KAD_PROTOCOL = TProtocol("/mycelia/kad/1.0.0")
PROVIDER_KEY_PREFIX = b"/mycelia/"
PREFIX_KEY_PREFIX = b"/mycelia/prefix/"
"""Of ``discovery.prefix_key``."""
MAX_PROVIDER_KEYS = 8_192
"""Keys whose providers this node stores for others. In a split swarm a node has up to 64 keys of prefixes, and 8 others
store each: 512 at a node, less what nodes have in common. Of prefixes the one that was quiet the longest goes first."""
MAX_PROVIDERS_PER_KEY = 20
"""As in libp2p, which keeps the first ones for two days, though they may be gone: here the newest."""
WALK_WIDTH, WALK_ENOUGH, WALK_HEARD, WALK_MAX_ASKED = 10, 3, 20, 100
"""Kademlia's alpha, beta and k, and a bound on what liars can make a lookup ask."""
PROVIDE_REPLICAS = 8
"""Peers that keep the record of a prefix: enough that some live for half an hour, and cheaper than libp2p's 20."""
MAX_RPC_BYTES = 256 * 1_024
MAX_NEGOTIATION_BYTES = 1_024
"""A line of multistream-select: the name of one protocol."""
MAX_STREAMS_PER_PEER = 64
MAX_STREAMS = 512
DIAL_DEADLINE_S = 5.0
OPEN_DEADLINE_S = 10.0
CLOSE_DEADLINE_S = 1.0
ADDRESS_TTL_S = 7_200
MAX_DIAL_ADDRESSES = 4
MAX_PARALLEL_DIALS = 8

_KAD_MODULES = ("common", "kad_dht", "peer_routing", "provider_store", "value_store")
_RECORD_READERS = ("libp2p.pubsub.utils", "libp2p.kad_dht.utils")
_RECORD_WRITERS = (
    "libp2p.pubsub.pubsub",
    "libp2p.pubsub.gossipsub",
    "libp2p.kad_dht.kad_dht",
    "libp2p.kad_dht.peer_routing",
    "libp2p.kad_dht.provider_store",
)
_PRIVATE_NAMES: dict[str, tuple[str, ...]] = {
    "libp2p.network.swarm": ("_HAPPY_EYEBALLS_DELAY", "Swarm._handle_inbound_connection", "_NegativePeerCache"),
    "libp2p.network.auto_connector": ("AutoConnector.maybe_connect",),
    "libp2p.network.connection.swarm_connection": ("logging",),
    "libp2p.host.basic_host": ("BasicHost._swarm_stream_handler",),
    "libp2p.protocol_muxer.multiselect_communicator": ("read_delim",),
    "libp2p.stream_muxer.muxer_multistream": ("Yamux",),
    "libp2p.pubsub.pubsub": ("Pubsub.push_msg",),
    "libp2p.kad_dht.provider_store": (
        "ProviderStore.add_provider",
        "ProviderStore._get_providers_from_peer_with_closers",
        "env_to_send_in_RPC",
        "ProviderStore._send_add_provider",
    ),
    "libp2p.tools.anyio_service.trio_manager": ("TrioManager._find_parent_task",),
    "libp2p.transport.tcp.tcp": ("TCP._dial_resolved",),
    **{f"libp2p.kad_dht.{module}": ("PROTOCOL_ID",) for module in _KAD_MODULES if module != "provider_store"},
    **dict.fromkeys(_RECORD_READERS, ("consume_envelope",)),
}
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "libp2p.network.swarm.Swarm": ("_negative_peer_cache", "retry_config"),
    "libp2p.network.swarm._NegativePeerCache": ("_ttl",),
    "libp2p.security.secure_session.SecureSession": ("conn", "_reset_internal_buffer"),
    "libp2p.security.noise.io.BaseNoiseMsgReadWriter": ("read_writer", "noise_state"),
    "libp2p.io.msgio.BaseMsgReadWriter": ("read_write_closer",),
    "libp2p.pubsub.pubsub.Pubsub": ("counter",),
    "libp2p.kad_dht.provider_store.ProviderStore": ("providers",),
}
"""What ``__init__`` has to set. Assigning to one that libp2p no longer reads would change nothing, in silence."""


def check_private_names() -> None:
    """Raises LocalError that names every private name of libp2p which is missing."""
    missing = []
    for class_path, attributes in _ATTRIBUTES.items():
        module_name, _, class_name = class_path.rpartition(".")
        kind: Any = getattr(import_module(module_name), class_name, None)
        known = kind.__init__.__code__.co_names if kind else ()
        missing += [f"{class_path}.{attribute}" for attribute in attributes if attribute not in known]
    for module_name, names in _PRIVATE_NAMES.items():
        module = import_module(module_name)
        for name in names:
            holder: Any = module
            for part in name.split("."):
                holder = getattr(holder, part, None)
            if holder is None:
                missing.append(f"{module_name}.{name}")
    if missing:
        raise LocalError(
            f"this libp2p lacks {', '.join(missing)}; install the version that mycelia was built for: libp2p==0.8.1"
        )


def apply_module_fixes(debug: bool) -> None:
    """What has to be changed in libp2p's modules rather than on objects. Idempotent."""
    # Every fresh dial waits this long even after it succeeded.
    swarm_module._HAPPY_EYEBALLS_DELAY = 0.0
    # KadDHT(protocol_prefix=...) leaves the wire protocol at /ipfs/kad/1.0.0: nodes would join the public IPFS DHT.
    for module in _KAD_MODULES:
        import_module(f"libp2p.kad_dht.{module}").PROTOCOL_ID = KAD_PROTOCOL  # type: ignore[attr-defined]
    # It logs through the root logger, and the first warning there makes a handler that prints to the terminal.
    swarm_connection.logging = logging.getLogger("libp2p.swarm_connection")  # type: ignore[attr-defined, assignment]
    # Makes its own Yamux, whatever muxer_opt says; why not that one, see yamux.py.
    muxer_multistream.Yamux = YamuxConnection  # type: ignore[attr-defined, assignment]
    # Every message carries a signed record, which is made and verified anew each time: see records.py.
    for module in _RECORD_READERS:
        import_module(module).consume_envelope = records.consume_envelope  # type: ignore[attr-defined]
    for module in _RECORD_WRITERS:
        import_module(module).env_to_send_in_RPC = records.env_to_send_in_rpc  # type: ignore[attr-defined]
    # Reads as many bytes as a stranger claims, before and after the handshake; a protocol's name is all it should be.
    multiselect_communicator.read_delim = _read_short_delim  # type: ignore[attr-defined]
    # Without handlers Python prints warnings to the terminal; libp2p warns about every peer that goes away.
    logger = logging.getLogger("libp2p")
    logger.propagate = debug
    logger.setLevel(logging.WARNING if debug else logging.CRITICAL)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


async def _read_short_delim(reader: Reader) -> bytes:
    try:
        line = await read_varint_prefixed_bytes_limited(reader, MAX_NEGOTIATION_BYTES)
    except MessageTooLarge as exc:
        raise ParseError(str(exc)) from exc
    if not line.endswith(b"\n"):
        raise ParseError("a line of the negotiation does not end")
    return line[:-1]


class _GuardedManager(TrioManager):
    """Keeps one failing task from ending its whole service: a peer can make many of them fail."""

    def run_task(
        self,
        async_fn: Callable[..., Awaitable[Any]],
        *args: Any,
        daemon: bool = False,
        name: str | None = None,
        _internal: bool = False,
    ) -> None:
        async def guarded(*args: Any) -> None:
            while True:
                try:
                    await async_fn(*args)
                    return
                except Exception as exc:  # noqa: BLE001  supervisor of a task that a peer can make fail
                    log.debug("libp2p task failed", task=name, error=repr(exc))
                if not daemon:
                    return
                await trio.sleep(1)

        name = name or getattr(async_fn, "__qualname__", repr(async_fn))
        run = async_fn if _internal else guarded
        super().run_task(run, *args, daemon=daemon, name=name, _internal=_internal)

    def _find_parent_task(self, trio_task: trio.lowlevel.Task) -> None:
        """Looks through all tasks of the service for each new one. Only whole services are cancelled here, so no task
        has to know its children."""


@asynccontextmanager
async def run_service(service: Any) -> AsyncIterator[None]:
    """Runs one of libp2p's services around the body and stops it within CLOSE_DEADLINE_S."""
    async with trio.open_nursery() as nursery:
        manager = _GuardedManager(service)
        nursery.start_soon(manager.run)
        await manager.wait_started()
        try:
            yield
        finally:
            with shielded(CLOSE_DEADLINE_S):
                await manager.stop()
            nursery.cancel_scope.cancel()


class _TcpFromPort(TCP):
    """Every connection goes out from one local port, so that one can see what a router makes of it."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    async def _dial_resolved(self, maddr: Multiaddr, source: tuple[str, int] | None = None) -> IRawConnection:
        anywhere = "::" if str(maddr).startswith("/ip6/") else "0.0.0.0"  # noqa: S104  as for any connection
        return await super()._dial_resolved(maddr, source or (anywhere, self._port))


class Host:
    """One libp2p host: TCP, Noise and Yamux only. Peers are bytes here; addresses are Multiaddr."""

    def __init__(self, settings: NetworkSettings, table: PeerTable) -> None:
        check_private_names()
        apply_module_fixes(settings.debug)
        self.settings = settings
        self.table = table
        self._listen = [addresses.parse_listen(text) for text in settings.listen]
        self._announce = [addresses.parse_announce(text) for text in settings.announce]
        self._expanded: tuple[float, list[Multiaddr]] = (-math.inf, [])
        self._num_inbound = 0
        self._streams_of: dict[bytes, int] = {}
        self._dials: dict[bytes, trio.Event] = {}
        self._num_making: Counter[bytes] = Counter()
        """Relay -> circuits that are being made through it."""
        self._dial_limiter = trio.CapacityLimiter(MAX_PARALLEL_DIALS)
        self.on_refused: Callable[[bytes, str], None] = lambda peer, reason: None
        """Called when a peer opens more streams than it may."""
        self.circuits: Callable[[], list[Multiaddr]] = list
        """The addresses of this node at its relays."""
        self.open_circuit: Callable[[bytes, bytes], Awaitable[ReadWriteCloser]] = _no_circuits
        """(relay, peer) -> what stands for a socket to the peer. Raises NetworkError."""
        self._host = self._build()
        swarm = self._host.get_network()
        assert isinstance(swarm, Swarm)
        self._swarm = swarm
        self._fix(swarm)

    def _build(self) -> BasicHost:
        key_pair = create_new_key_pair(self.settings.identity.seed)
        noise = NoiseTransport(key_pair, noise_privkey=create_noise_key_pair().private_key)
        limit = self.settings.max_connections
        host = new_host(
            key_pair=key_pair,
            sec_opt={NOISE_PROTOCOL_ID: noise},  # the default also offers plaintext, and identities are spoofed there
            muxer_opt={TProtocol(YAMUX_PROTOCOL_ID): YamuxConnection},
            transports=[_TcpFromPort(self.settings.dial_port) if self.settings.dial_port else TCP()],
            addrs_factory=self._advertised,
            # What one peer claims to have observed is not where others can reach us.
            disable_identify_address_discovery=True,
            connection_config=ConnectionConfig(
                max_connections=limit,
                min_connections=0,
                low_watermark=0,
                high_watermark=limit,
                max_connections_per_peer=2,  # both sides may dial at once
                dial_timeout=DIAL_DEADLINE_S,
                enable_health_monitoring=False,  # probes one connection after the other: liveness.py does them all
            ),
        )
        assert isinstance(host, BasicHost)
        return host

    def _fix(self, swarm: Swarm) -> None:
        # Its stream semaphore makes new_stream wait for ever, and its slots leak; the guard below counts instead.
        swarm.set_resource_manager(None)
        # Refuses to dial a peer for 60 s after one failure, so a node that restarts stays alone.
        swarm._negative_peer_cache._ttl = 5.0
        # Dials whatever it knows up to half of max_connections, whatever the watermarks say, and a peer that we
        # disconnected at once again.
        swarm.auto_connector.maybe_connect = trio.lowlevel.checkpoint  # type: ignore[method-assign]
        # Any stream that anybody wants to open dials, also to a peer that was disconnected this moment: its loss
        # would go unnoticed, since the new connection is there before the end of the old one is told.
        self._dial_peer = swarm.dial_peer
        swarm.dial_peer = self._dial_unasked  # type: ignore[method-assign]
        # Takes the relay's id out of addresses at relays, and puts this node's own in its place.
        self._own_addresses = self._host.get_addrs
        self._host.get_addrs = self._all_addresses  # type: ignore[method-assign]
        # Four attempts a dial with growing pauses: discovery has its own.
        swarm.retry_config = RetryConfig(max_retries=0)
        # An exception in any inbound handler ends the whole swarm, and a peer may open any number of streams.
        self._serve_stream = self._host._swarm_stream_handler
        swarm.set_stream_handler(self._guard_stream)
        # Holds its task and its inbound slot until the swarm ends, not the connection: after max_connections
        # inbound connections in all, a node would accept no more.
        swarm._handle_inbound_connection = self._serve_inbound  # type: ignore[method-assign, assignment]
        # Runs a nursery with a task for each listener at each end of each stream, and nobody listens.
        swarm.notify_opened_stream = _notify_nobody  # type: ignore[method-assign]
        swarm.notify_closed_stream = _notify_nobody  # type: ignore[method-assign]
        swarm.register_notifee(self.table)

    @property
    def raw(self) -> BasicHost:
        """libp2p's own object, for its public interface."""
        return self._host

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listens, and closes every connection on leaving. Raises LocalError when it cannot listen.

        Gossip has to run before this, or the first peers are never told about (its handlers wait for it).
        """
        async with run_service(self._swarm):
            try:
                if self._listen:
                    await self._swarm.listen(*self._listen)
                    for address in self._listen:  # libp2p skips in silence what it cannot bind
                        if str(address) not in self._swarm.listeners:
                            raise LocalError(f"cannot listen on {address}; choose another with --listen")
                    if self._announce:  # (else the addresses that this node tells are these)
                        bound = [str(address) for address in self._host.get_transport_addrs()]
                        log.info("listening", listen=bound, announce=[str(address) for address in self._announce])
                yield
            finally:
                # Leaving libp2p's own run() leaves connections open, and close() takes 0.2 s for each in turn.
                with shielded(CLOSE_DEADLINE_S):
                    async with trio.open_nursery() as nursery:
                        for connection in self._swarm.get_connections():
                            nursery.start_soon(self._close, connection)
                with shielded(CLOSE_DEADLINE_S):
                    await self._host.close()

    async def _close(self, connection: INetConn) -> None:
        try:
            await connection.close()
        except (BaseLibp2pError, OSError, trio.BrokenResourceError) as exc:
            log.debug("closing a connection failed", error=repr(exc))

    def addresses(self) -> list[str]:
        return [str(address) for address in self._host.get_addrs()] if self._listen or self.circuits() else []

    def _all_addresses(self) -> list[Multiaddr]:
        """Those at relays come first: of many, peers keep only the first ones."""
        circuits = [Multiaddr(f"{circuit}/p2p/{self._host.get_id()}") for circuit in self.circuits()]
        return [*circuits, *self._own_addresses()]

    def addresses_of(self, peer: bytes) -> list[Multiaddr]:
        """Where a connected peer may be dialled again: the address that it was dialled at, and those that it told."""
        connections = self.table.connections(peer)
        candidates = [
            address
            for connection in connections
            if isinstance(connection, SwarmConn) and connection.direction == Direction.OUTBOUND
            # (the other end of an inbound one listens nowhere)
            for address in connection.get_transport_addresses()
        ]
        try:
            candidates += self._host.get_peerstore().addrs(ID(peer)) if connections else []
        except PeerStoreError:
            log.debug("told no address", peer=peer_text(peer))
        return addresses.in_dial_order(candidates, MAX_DIAL_ADDRESSES)

    def _advertised(self, listening: list[Multiaddr]) -> list[Multiaddr]:
        """0.0.0.0 becomes the machine's addresses, looked up at most once a minute; loopback comes last."""
        if self._announce:
            return self._announce
        expires, expanded = self._expanded
        if time.monotonic() >= expires or not expanded:
            expanded = []
            for address in listening:
                expanded += expand_wildcard_address(address) if addresses.is_wildcard(address) else [address]
            expanded = addresses.in_dial_order(expanded, limit=16)
            self._expanded = (time.monotonic() + 60, expanded)
        return expanded

    # --- inbound ---------------------------------------------------------------------------------------------------

    async def _serve_inbound(self, socket: ReadWriteCloser, address: Multiaddr) -> None:
        await self._serve_raw(RawConnection(socket, False), address)

    async def serve_circuit(self, pipe: ReadWriteCloser, address: Multiaddr) -> None:
        """Who comes through a relay, for as long as the connection lasts. address: this node's own there."""
        await self._serve_raw(RawConnection(pipe, False, ConnectionType.RELAYED, [address]), address)

    async def _serve_raw(self, socket: RawConnection, address: Multiaddr) -> None:
        if self._num_inbound >= self.settings.max_connections:
            await socket.close()
            return
        self._num_inbound += 1
        try:
            muxer = await self._swarm.upgrade_inbound_raw_conn(socket, address)
            for connection in self._swarm.get_connections(muxer.peer_id):
                if connection.muxed_conn is muxer:
                    await self.table.wait_closed(connection)
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
            await self._reset(stream)
            return
        self._streams_of[peer] = num_streams + 1
        try:
            await self._negotiate_and_serve(stream)
        except Exception as exc:  # noqa: BLE001  supervisor of a stream
            log.debug("inbound stream failed", peer=peer_text(peer), error=repr(exc))
            await self._reset(stream)
        finally:
            self._streams_of[peer] -= 1
            if not self._streams_of[peer]:
                del self._streams_of[peer]

    async def _negotiate_and_serve(self, stream: INetStream) -> None:
        assert isinstance(stream, NetStream) and isinstance(stream.muxed_stream, YamuxStream)
        handlers = self._host.multiselect.handlers
        accepted = await negotiation.accept(stream, stream.muxed_stream, handlers, OPEN_DEADLINE_S)
        if accepted is None:
            await self._serve_stream(stream)
            return
        protocol, handler = accepted
        stream.set_protocol(protocol)
        await handler(stream)

    async def _reset(self, stream: INetStream) -> None:
        with shielded(CLOSE_DEADLINE_S):
            try:
                await stream.reset()
            except (BaseLibp2pError, OSError, trio.BrokenResourceError) as exc:
                log.debug("reset failed", error=repr(exc))

    # --- outbound --------------------------------------------------------------------------------------------------

    async def dial(self, peer: bytes, candidates: Sequence[Multiaddr]) -> None:
        """Connects, unless connected. One dial a peer at a time. Raises NetworkError that says what was tried.

        libp2p's own dial tries a single TCP address of those it knows, so the addresses are tried here in turn.
        """
        tried = []
        async with self._only_dial(peer), self._dial_limiter:
            if peer in self.table:
                return
            for address in addresses.in_dial_order(candidates, MAX_DIAL_ADDRESSES):
                try:
                    with trio.fail_after(DIAL_DEADLINE_S):
                        await self._dial_address(peer, address)
                except Exception as exc:  # noqa: BLE001  supervisor of a dial: who answers decides what it raises
                    tried.append(f"{address}: {_root_cause(exc)}")
                else:
                    self._host.get_peerstore().add_addrs(ID(peer), [address], ADDRESS_TTL_S)
                    return
        raise NetworkError(f"cannot reach {peer_text(peer)}: {'; '.join(tried) or 'no address that can be dialled'}")

    async def _dial_address(self, peer: bytes, address: Multiaddr) -> None:
        """Raises whatever comes of it."""
        circuit = addresses.relay_of(address)
        if circuit is None:
            await self._swarm.dial_addr(address, ID(peer))
            return
        relay, relay_address = circuit
        if relay in (peer, self.settings.identity.peer_id):
            raise NetworkError(f"{address} leads nowhere")
        async with self._through(relay, relay_address):
            pipe = await self.open_circuit(relay, peer)
            try:
                raw = RawConnection(pipe, True, ConnectionType.RELAYED, [address])
                await self._swarm.upgrade_outbound_raw_conn(raw, ID(peer))
            except BaseException:
                await pipe.close()
                raise

    @asynccontextmanager
    async def _through(self, relay: bytes, address: Multiaddr) -> AsyncIterator[None]:
        """Around the making of a circuit: connects with the relay. If nothing comes of the circuit, that connection
        ends: whoever tells of addresses could make this node connect to anybody for good."""
        connection: INetConn | None = None
        if relay not in self.table:
            async with self._only_dial(relay):
                if relay not in self.table:
                    connection = await self._swarm.dial_addr(address, ID(relay))
        self._num_making[relay] += 1
        try:
            yield
        except BaseException:
            if connection is not None and self._num_making[relay] == 1 and not self._is_passed(relay):
                with shielded(CLOSE_DEADLINE_S):
                    await self._close(connection)
            raise
        finally:
            self._num_making -= Counter([relay])  # (which forgets who has none)

    def _is_passed(self, relay: bytes) -> bool:
        """Whether any connection leads through it."""
        return any(
            f"/p2p/{peer_text(relay)}/p2p-circuit" in str(address)
            for peer in self.table.peers()
            for connection in self.table.connections(peer)
            if _is_relayed(connection)
            for address in connection.get_transport_addresses()
        )

    async def _dial_unasked(self, peer_id: ID) -> list[INetConn]:
        """For Kademlia, which has to reach peers that nobody else asked for."""
        async with self._only_dial(peer_id.to_bytes()):
            if connections := self._swarm.get_connections(peer_id):
                return connections
            if self.table.is_leaving(peer_id.to_bytes()):
                raise SwarmException("the peer has just been disconnected")
            try:
                return await self._dial_peer(peer_id)
            except SwarmException:
                # (libp2p's own leaves out addresses at relays)
                known = addresses.in_dial_order(self._host.get_peerstore().addrs(peer_id), MAX_DIAL_ADDRESSES)
                for address in (one for one in known if addresses.relay_of(one) is not None):
                    with trio.move_on_after(DIAL_DEADLINE_S), suppress(NetworkError, BaseLibp2pError):
                        await self._dial_address(peer_id.to_bytes(), address)
                        return self._swarm.get_connections(peer_id)
                raise

    @asynccontextmanager
    async def _only_dial(self, peer: bytes) -> AsyncIterator[None]:
        """One dial a peer at a time, whoever wants it."""
        while peer in self._dials:
            await self._dials[peer].wait()
        done = self._dials[peer] = trio.Event()
        try:
            yield
        finally:
            del self._dials[peer]
            done.set()

    async def open(self, peer: bytes, protocol: str, direct: bool = False, waits: bool = True) -> INetStream:
        """A stream to a connected peer. direct: not through a relay. waits: for its word that it speaks ``protocol``;
        else nothing has been said about that yet, and the caller begins with ``negotiation.proposal``. Raises
        NetworkError."""
        for connection in self.table.connections(peer):
            if not connection.is_closed and not (direct and _is_relayed(connection)):
                break
        else:
            raise NetworkError(f"not connected {'directly ' if direct else ''}to {peer_text(peer)}")
        try:
            with trio.fail_after(OPEN_DEADLINE_S):
                stream = await connection.new_stream()
                try:
                    if waits:
                        await negotiation.select(stream, protocol)
                except BaseException:
                    await self._reset(stream)
                    raise
        except (BaseLibp2pError, trio.TooSlowError, OSError, negotiation.NotSupportedError) as exc:
            raise NetworkError(f"cannot open {protocol} with {peer_text(peer)}: {_root_cause(exc)}") from exc
        stream.set_protocol(TProtocol(protocol))
        return stream

    async def disconnect(self, peer: bytes) -> None:
        async with trio.open_nursery() as nursery:
            for connection in self.table.connections(peer):
                nursery.start_soon(self._close, connection)

    def serve(self, protocol: str, handler: Callable[[INetStream], Awaitable[None]]) -> None:
        self._host.set_stream_handler(TProtocol(protocol), handler)

    # --- services on top -------------------------------------------------------------------------------------------

    def new_gossip(self) -> tuple[Pubsub, GossipSub]:
        """The two services of gossip, not yet running."""
        router = GossipSub(
            [PROTOCOL_ID_V11],  # 1.2 costs twice the CPU
            degree=4,  # each message arrives 3 times; 5 times with gossipsub's 6
            degree_low=3,
            degree_high=8,
            heartbeat_interval=1,  # the default is 120 s: a mesh would take minutes to form
            prune_back_off=10,
            spam_protection_enabled=False,  # also blocks relaying; gossip.py limits instead
            eclipse_protection_enabled=False,
        )
        pubsub = Pubsub(
            self._host,
            router,
            strict_signing=True,
            msg_id_constructor=_message_id,
            max_inbound_rpc_size=MAX_RPC_BYTES,
            max_subscriptions_per_rpc=64,
            max_subscriptions_per_peer=64,
        )
        # Starts at the time in seconds: a node that restarts would reuse numbers and be ignored for two minutes.
        pubsub.counter = time.time_ns()
        push = pubsub.push_msg

        async def guarded_push(forwarder: ID, message: rpc_pb2.Message) -> None:
            # Also called by our own publish(); a hostile key or a dying stream must not make that fail.
            try:
                await push(forwarder, message)
            except Exception as exc:  # noqa: BLE001  supervisor of a message
                log.debug("gossip message failed", error=repr(exc))

        pubsub.push_msg = guarded_push  # type: ignore[method-assign, assignment]
        return pubsub, router

    def new_dht(self) -> KadDHT:
        """Kademlia, not yet running. Answers others only if this node can be dialled."""
        mode = DHTMode.SERVER if self._listen else DHTMode.CLIENT
        dht = KadDHT(self._host, mode, enable_values=False, strict_validation=True)
        store = dht.provider_store
        add = store.add_provider

        def bounded_add(key: bytes, provider: PeerInfo) -> None:
            # Keys are whatever a peer likes, in any number, and are kept for two days; so are a key's providers.
            if not key.startswith(PROVIDER_KEY_PREFIX):
                return
            records = store.providers.pop(key, {})
            if len(records) >= MAX_PROVIDERS_PER_KEY and str(provider.peer_id) not in records:
                del records[min(records, key=lambda peer: records[peer].timestamp)]
            store.providers[key] = records
            add(key, provider)
            if len(store.providers) > MAX_PROVIDER_KEYS:
                # Anybody can make up prefixes; without the keys of models newcomers find nobody.
                quiet = (one for one in store.providers if one.startswith(PREFIX_KEY_PREFIX))
                del store.providers[next(quiet, next(iter(store.providers)))]

        store.add_provider = bounded_add  # type: ignore[method-assign]
        return dht

    async def find_providers(self, dht: KadDHT, key: bytes) -> list[PeerInfo]:
        """Providers of ``key``, one entry a peer.

        KadDHT.find_providers asks nobody as soon as the local store knows one provider, such as this node itself.
        """
        found: dict[bytes, dict[bytes, Multiaddr]] = {}

        def note(providers: Sequence[PeerInfo]) -> None:
            for provider in providers:
                known = found.setdefault(provider.peer_id.to_bytes(), {})
                # (as bytes: what a stranger sent as an address need not have a text)
                known.update((address.to_bytes(), address) for address in provider.addrs[:MAX_DIAL_ADDRESSES])

        async def ask(peer: ID) -> None:
            with trio.move_on_after(DIAL_DEADLINE_S):
                providers, _ = await dht.provider_store._get_providers_from_peer_with_closers(peer, key)
                note(providers)

        note(dht.provider_store.get_providers(key))
        closest = await dht.peer_routing.find_closest_peers_network(key)
        async with trio.open_nursery() as nursery:
            for peer in closest[:MAX_PARALLEL_DIALS]:
                nursery.start_soon(ask, peer)
        return [PeerInfo(ID(peer), list(known.values())) for peer, known in found.items()]

    async def find_first_providers(self, dht: KadDHT, key: bytes) -> list[PeerInfo]:
        """Providers of ``key`` as the first peer tells that knows any; none when the peers nearest to it know none.

        libp2p finds the nearest twenty before it asks one of them, in rounds that each wait for the slowest: with a
        tenth of the peers gone that takes 17 s, simulated, instead of 2 s.
        """
        providers, _ = await self._walk(dht, key, stops_at_providers=True)
        return providers

    async def provide_near(self, dht: KadDHT, key: bytes) -> int:
        """Tells the PROVIDE_REPLICAS nearest peers that this node provides ``key``; how many took it."""
        _, nearest = await self._walk(dht, key, stops_at_providers=False)
        num_told = 0

        async def tell(peer: ID) -> None:
            nonlocal num_told
            with trio.move_on_after(DIAL_DEADLINE_S):
                num_told += await dht.provider_store._send_add_provider(peer, key)

        async with trio.open_nursery() as nursery:
            for peer in nearest[:PROVIDE_REPLICAS]:
                nursery.start_soon(tell, peer)
        return num_told

    async def _walk(self, dht: KadDHT, key: bytes, stops_at_providers: bool) -> tuple[list[PeerInfo], list[ID]]:
        """Asks ever nearer peers for providers of ``key``, WALK_WIDTH at once, until WALK_ENOUGH have answered that are
        nearer than all that were not asked: (what providers they told of, who answered, nearest first)."""
        me = self._host.get_id()
        heard = set(dht.routing_table.find_local_closest_peers(key, WALK_HEARD)) - {me}
        heard |= {ID(peer) for peer in self.table.peers()} if len(heard) < WALK_WIDTH else set()
        asked: set[ID] = set()
        answered: set[ID] = set()
        found: dict[ID, list[Multiaddr]] = {}
        num_under_way = 0
        changed = trio.Event()

        async def ask(peer: ID) -> None:
            nonlocal num_under_way
            with trio.move_on_after(DIAL_DEADLINE_S):
                providers, closer = await dht.provider_store._get_providers_from_peer_with_closers(peer, key)
                if providers or closer or peer.to_bytes() in self.table:  # (else it could not be reached)
                    answered.add(peer)
                heard.update(other for other in closer[:WALK_HEARD] if other != me)
                for provider in providers[:MAX_PROVIDERS_PER_KEY]:
                    if provider.peer_id != me:
                        found.setdefault(provider.peer_id, list(provider.addrs[:MAX_DIAL_ADDRESSES]))
            num_under_way -= 1
            changed.set()

        async with trio.open_nursery() as nursery:
            while not (stops_at_providers and found) and len(asked) < WALK_MAX_ASKED:
                ranked = sort_peer_ids_by_distance(key, list(heard))
                enough = [place for place, peer in enumerate(ranked) if peer in answered][:WALK_ENOUGH]
                reach = enough[-1] if len(enough) == WALK_ENOUGH else len(ranked)
                waiting = [peer for peer in ranked[:reach] if peer not in asked]
                if not waiting and (len(enough) == WALK_ENOUGH or not num_under_way):
                    break
                for peer in waiting[: WALK_WIDTH - num_under_way]:
                    asked.add(peer)
                    num_under_way += 1
                    nursery.start_soon(ask, peer)
                await changed.wait()
                changed = trio.Event()
            nursery.cancel_scope.cancel()
        nearest = [peer for peer in sort_peer_ids_by_distance(key, list(heard)) if peer in answered]
        return [PeerInfo(peer, addrs) for peer, addrs in found.items()], nearest

    async def keep_peerstore(self) -> None:
        """Forgets peers of long ago, and keeps the addresses of the connected ones: they would expire after two
        hours, and Kademlia would hand out peers without addresses."""
        store = self._host.get_peerstore()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.start_cleanup_task)
            while True:
                await trio.sleep(ADDRESS_TTL_S / 4)
                for peer in self.table.peers():
                    try:
                        store.add_addrs(ID(peer), store.addrs(ID(peer)), ADDRESS_TTL_S)
                    except PeerStoreError:
                        continue  # it told us no address


def _is_relayed(connection: INetConn) -> bool:
    return connection.get_connection_type() == ConnectionType.RELAYED


async def _no_circuits(relay: bytes, peer: bytes) -> ReadWriteCloser:
    raise NetworkError("this node uses no relays")


async def _notify_nobody(stream: INetStream) -> None:
    await trio.lowlevel.checkpoint()


def _message_id(message: rpc_pb2.Message) -> bytes:
    """12 bytes instead of author and sequence number, 46: each node receives the ids of each message some 18 times."""
    return blake3(message.from_id + message.seqno).digest(length=12)


def _root_cause(exc: BaseException) -> str:
    """The last error of a chain, in words."""
    while (deeper := exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc.__cause__) is not None:
        exc = deeper
    if isinstance(exc, trio.TooSlowError):
        return "no answer in time"
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno)
    return str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
