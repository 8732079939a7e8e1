"""The libp2p host of a node: the parts of libp2p that it consists of, the fixes of its objects, listening and closing,
and the addresses that it announces. ``inbound.py`` has what peers open, ``outbound.py`` what this node opens, and
``fixes.py`` the fixes of libp2p's modules.
"""

import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress

import structlog
import trio
from libp2p import new_host
from libp2p.abc import INetConn, INetStream, IRawConnection
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.rcmgr import Direction
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_PROTOCOL_ID
from libp2p.transport.tcp.tcp import TCP
from libp2p.utils.address_validation import expand_wildcard_address
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.deadlines import shielded
from mycelia.node.network.libp2p.closing import CLOSE_DEADLINE_S, close_connection
from mycelia.node.network.libp2p.dial_errors import SILENT
from mycelia.node.network.libp2p.fixes import apply_module_fixes, check_private_names
from mycelia.node.network.libp2p.identify import push_identify, take_over_identify
from mycelia.node.network.libp2p.inbound import Inbound
from mycelia.node.network.libp2p.inbound_streams import InboundStreams
from mycelia.node.network.libp2p.observed import Observed
from mycelia.node.network.libp2p.outbound import ADDRESS_TTL_S, DIAL_DEADLINE_S, MAX_DIAL_ADDRESSES, Outbound
from mycelia.node.network.libp2p.peers import PeerTable
from mycelia.node.network.libp2p.services import run_service
from mycelia.node.network.libp2p.starvation import Starvation
from mycelia.node.network.libp2p.swarm_key import SwarmKeys
from mycelia.node.network.libp2p.yamux import YamuxConnection
from mycelia.node.network.mdns.interfaces import is_in, local_networks
from mycelia.node.network.network import NetworkSettings, Reachability
from mycelia.node.peer_id import peer_text
from mycelia.proto.wire.errors import LocalError

log = structlog.get_logger()

PEERSTORE_INTERVAL_S = 60.0
CONNECT_DEADLINE_S = 4.0
"""Time for the TCP connection. The rest of DIAL_DEADLINE_S tells a silent host from one that accepts and is silent."""


class _Tcp(TCP):
    """TCP with the key of a private swarm and, if the settings name one, from one local port: then the node can learn
    the port that a router maps it to."""

    def __init__(self, settings: NetworkSettings, keys: SwarmKeys) -> None:
        super().__init__()
        self._from = (settings.dial_host, settings.dial_port)
        self._keys = keys

    async def _dial_resolved(self, maddr: Multiaddr, source: tuple[str, int] | None = None) -> IRawConnection:
        host, port = self._from
        if (host or port) and source is None:
            source = (host or ("::" if str(maddr).startswith("/ip6/") else "0.0.0.0"), port)  # noqa: S104  as for any
        with trio.move_on_after(CONNECT_DEADLINE_S):
            return self._keys.dialled(await super()._dial_resolved(maddr, source))
        raise OSError(SILENT, os.strerror(SILENT))


class Host:
    """One libp2p host: TCP, Noise and Yamux only. Peers are bytes here; addresses are Multiaddr."""

    def __init__(self, settings: NetworkSettings, table: PeerTable, starvation: Starvation) -> None:
        check_private_names()
        apply_module_fixes(settings.debug)
        self.settings = settings
        self.table = table
        self._listen = [addresses.parse_listen(text) for text in settings.listen]
        self._announce = [addresses.parse_announce(text) for text in settings.announce]
        self._expanded: tuple[float, list[Multiaddr]] = (-math.inf, [])
        self._reachability = Reachability()
        self.circuits: Callable[[], list[Multiaddr]] = list
        """The addresses of this node at its relays."""
        self.keys = SwarmKeys(settings.swarm_key, settings.access)
        self.transport = _Tcp(settings, self.keys)
        self._host = self._build()
        swarm = self._host.get_network()
        assert isinstance(swarm, Swarm)
        self.swarm = swarm
        self._fix(swarm)
        self.inbound = Inbound(swarm, settings, self.keys)
        self.streams = InboundStreams(self._host, swarm, self.inbound)
        self.outbound = Outbound(self._host, swarm, table, settings, self.inbound.wanted, self.keys, starvation)
        self.observed = Observed()
        take_over_identify(self._host, table, self.observed, self.is_near_member)

    def _build(self) -> BasicHost:
        key_pair = create_new_key_pair(self.settings.identity.seed)
        noise = NoiseTransport(key_pair, noise_privkey=create_noise_key_pair().private_key)
        unreached = 2 * self.settings.max_connections + 64  # (inbound.py bounds the connections)
        host = new_host(
            key_pair=key_pair,
            sec_opt={NOISE_PROTOCOL_ID: noise},  # the default also offers plaintext, and identities are spoofed there
            muxer_opt={TProtocol(YAMUX_PROTOCOL_ID): YamuxConnection},
            transports=[self.transport],
            addrs_factory=self._advertised,
            # An address that one peer claims to have observed need not be one at which others reach this node.
            disable_identify_address_discovery=True,
            connection_config=ConnectionConfig(
                max_connections=unreached,
                min_connections=0,
                low_watermark=0,
                high_watermark=unreached,
                max_connections_per_peer=unreached,
                dial_timeout=DIAL_DEADLINE_S,
                enable_health_monitoring=False,  # probes one connection at a time; liveness.py probes all at once
            ),
        )
        assert isinstance(host, BasicHost)
        return host

    def _fix(self, swarm: Swarm) -> None:
        # Its semaphore makes new_stream wait for ever, and its slots leak. inbound.py and inbound_streams.py count.
        swarm.set_resource_manager(None)
        # It ignores the watermarks, dials all peers that it knows up to half of max_connections, and at once dials a
        # peer again that this node disconnected. Where it does not dial, it keeps the end of each connection for ever.
        swarm.auto_connector.maybe_connect = trio.lowlevel.checkpoint  # type: ignore[method-assign]
        swarm.auto_connector.record_disconnect = lambda peer_id: None  # type: ignore[method-assign]
        # It replaces the relay's id in addresses at relays by this node's own.
        self._own_addresses = self._host.get_addrs
        self._host.get_addrs = self._all_addresses  # type: ignore[method-assign]
        # The default is four attempts per dial with growing pauses. Discovery has its own pauses.
        swarm.retry_config = RetryConfig(max_retries=0)
        # They run a nursery with a task for each listener at each end of each stream, and there are no listeners.
        swarm.notify_opened_stream = _notify_nobody  # type: ignore[method-assign]
        swarm.notify_closed_stream = _notify_nobody  # type: ignore[method-assign]
        swarm.register_notifee(self.table)

    @property
    def raw(self) -> BasicHost:
        """libp2p's host. Use only its public interface."""
        return self._host

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listens, and closes every connection on leaving. Raises LocalError when it cannot listen.

        Start gossip before this: its handlers wait for it, and it would never learn of the first peers."""
        async with run_service(self.swarm):
            try:
                if self._listen:
                    await self.swarm.listen(*self._listen)
                    for address in self._listen:  # libp2p reports no error for an address that it cannot bind
                        if str(address) not in self.swarm.listeners:
                            raise LocalError(f"cannot listen on {address}; choose another with --listen")
                    if self._announce:  # (otherwise this node announces the bound addresses)
                        bound = [str(address) for address in self._host.get_transport_addrs()]
                        log.info("listening", listen=bound, announce=[str(address) for address in self._announce])
                yield
            finally:
                # Leaving libp2p's own run() leaves connections open, and close() takes 0.2 s for each in turn.
                with shielded(CLOSE_DEADLINE_S):
                    async with trio.open_nursery() as nursery:
                        for connection in self.swarm.get_connections():
                            nursery.start_soon(close_connection, connection)
                with shielded(CLOSE_DEADLINE_S):
                    await self._host.close()

    def addresses(self) -> list[str]:
        return [str(address) for address in self._host.get_addrs()] if self._listen or self.circuits() else []

    def _all_addresses(self) -> list[Multiaddr]:
        """The addresses that lead here from everywhere come first, because peers keep only the first few of many."""
        circuits = [Multiaddr(f"{circuit}/p2p/{self._host.get_id()}") for circuit in self.circuits()]
        own = self._own_addresses()
        num_public = sum(map(addresses.is_global, own))
        return [*own[:num_public], *circuits, *own[num_public:]]

    def listening_ports(self) -> dict[str, int]:
        """Family ("ip4" or "ip6") -> a port that this node listens on."""
        ports: dict[str, int] = {}
        for address in map(str, self._host.get_transport_addrs()):
            ports.setdefault(address.split("/")[1], addresses.port_of(address))
        return ports

    def set_reachability(self, reachability: Reachability) -> bool:
        """Returns whether this node announces other addresses than before."""
        before, self._reachability = self._reachability, reachability
        return (before.open, before.closed) != (reachability.open, reachability.closed)

    def connections_from_others(self, hosts: Collection[str]) -> list[INetConn]:
        """The connections that use an address of this machine other than ``hosts``."""
        return [
            connection
            for connection in self.swarm.get_connections()
            if isinstance(connection.muxed_conn, YamuxConnection)
            and (host := connection.muxed_conn.local_address[0])
            and host not in hosts
        ]

    def interfaces_changed(self) -> None:
        """Announces what the interfaces have now, and forgets what peers saw before."""
        self.observed.clear()
        self._expanded, self._reachability = (-math.inf, []), Reachability()

    def addresses_of(self, peer: bytes) -> list[Multiaddr]:
        """Addresses at which to dial a connected peer again: the one it was dialled at and those that it announced."""
        connections = self.table.connections(peer)
        candidates = [
            address
            for connection in connections
            if isinstance(connection, SwarmConn) and connection.direction == Direction.OUTBOUND
            # (the other end of an inbound connection is no address that listens)
            for address in connection.get_transport_addresses()
        ]
        try:
            candidates += self._host.get_peerstore().addrs(ID(peer)) if connections else []
        except PeerStoreError:
            log.debug("told no address", peer=peer_text(peer))
        return addresses.in_dial_order(candidates, MAX_DIAL_ADDRESSES)

    def is_near_member(self, peer: bytes, address: Multiaddr) -> bool:
        """Whether the peer is on the list of this node's private swarm, and the address in a private network of this
        machine: then it may be dialled, no matter which peer passed it on. Members behind one router meet in this way
        where multicast does not get through. Other peers could make this node dial machines of its network."""
        access = self.settings.access
        return access is not None and access.is_member(peer) and any(is_in(address, one) for one in local_networks())

    def _advertised(self, listening: list[Multiaddr]) -> list[Multiaddr]:
        """The addresses that peers found open, then those of the machine, looked up at most once a minute, except the
        public ones that peers found closed. Loopback comes last."""
        if self._announce:
            return self._announce
        expires, expanded = self._expanded
        if time.monotonic() >= expires or not expanded:
            expanded = []
            for address in listening:
                expanded += expand_wildcard_address(address) if addresses.is_wildcard(address) else [address]
            expanded = addresses.in_dial_order(expanded, limit=16)
            self._expanded = (time.monotonic() + 60, expanded)
        closed = [f"/{family}/" for family in self._reachability.closed]
        own = [one for one in expanded if not (addresses.is_global(one) and str(one).startswith(tuple(closed)))]
        return addresses.in_dial_order([*map(Multiaddr, self._reachability.open), *own], limit=16)

    async def disconnect(self, peer: bytes) -> None:
        async with trio.open_nursery() as nursery:
            for connection in self.table.connections(peer):
                nursery.start_soon(close_connection, connection)

    def serve(self, protocol: str, handler: Callable[[INetStream], Awaitable[None]]) -> None:
        self._host.set_stream_handler(TProtocol(protocol), handler)

    async def push_identify(self) -> None:
        """Tells the connected peers this node's present addresses and protocols."""
        await push_identify(self._host)

    def serve_no_more(self, protocol: str) -> None:
        self._host.remove_stream_handler(TProtocol(protocol))

    def forget(self, peer: bytes) -> None:
        """Deletes libp2p's data of a peer, which would otherwise stay in memory after its last connection."""
        with suppress(PeerStoreError):
            self._host.get_peerstore().clear_peerdata(ID(peer))

    async def keep_peerstore(self) -> None:
        """Forgets peers whose addresses arrived after they had disconnected. Renews the addresses of connected peers,
        which would expire after two hours. Never returns."""
        store = self._host.get_peerstore()
        while True:
            await trio.sleep(PEERSTORE_INTERVAL_S)
            for peer in store.peer_ids():
                if peer == self._host.get_id():
                    continue
                if peer.to_bytes() not in self.table:
                    self.forget(peer.to_bytes())
                    continue
                with suppress(PeerStoreError):  # (the peer announced no address)
                    store.add_addrs(peer, store.addrs(peer), ADDRESS_TTL_S)


async def _notify_nobody(stream: INetStream) -> None:
    await trio.lowlevel.checkpoint()
