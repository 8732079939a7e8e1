"""An in-memory network for tests: same interface, same bytes through the codec, no sockets, works under MockClock.

A ``MemorySwarm`` is the world. Every message waits in one heap, ordered by arrival time and then by the order of
sending, and a single task delivers them: the same sends and ``rng`` give the same deliveries.

Two things are simpler than in the real network: nodes that joined a namespace are connected with each other at once,
and gossip goes from its publisher straight to every other node of its cell that is not cut off.
"""

import heapq
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Self

import structlog
import trio

from mycelia.node.errors import Attempt
from mycelia.node.network import addresses
from mycelia.node.network.events import EventQueue
from mycelia.node.network.network import (
    Connected,
    Disconnected,
    Gossiped,
    Malformed,
    MessageStream,
    NetworkError,
    NetworkEvent,
    NetworkSettings,
    Path,
    Reachability,
    Received,
    Relayed,
    RoundTripMeasured,
    StreamHandler,
)
from mycelia.node.peer_id import peer_text
from mycelia.node.signals import Signal
from mycelia.proto.cells.cells import ROOT, Cell
from mycelia.proto.wire.codec import MAX_GOSSIP_BYTES, decode, encode
from mycelia.proto.wire.errors import LimitExceeded, RemoteError
from mycelia.proto.wire.messages import Control, Gossip, Message

log = structlog.get_logger()

WINDOW_BYTES = 262_144
"""Unread bytes that a stream holds before its sender waits, as in Yamux."""
WRITE_DEADLINE_S = 5.0


class MemorySwarm:
    """The world of the networks opened in it. Enter it with ``async with``, then call ``open_network``.

    latency_s: minimum one way; up to twice as long at random. gossip_loss: probability that one receiver misses one
    message."""

    def __init__(self, rng: random.Random, latency_s: float = 0.001, gossip_loss: float = 0.0) -> None:
        self.latency_s = latency_s
        self.gossip_loss = gossip_loss
        self.networks: dict[bytes, MemoryNetwork] = {}
        self.providers: dict[bytes, set[bytes]] = {}
        """Key of a rung of the prefix ladder -> its providers, including those that are gone."""
        self.behind_routers: set[bytes] = set()
        """Peers that cannot be dialled after a lookup: they have to connect themselves."""
        self._rng = rng
        self._links: set[frozenset[bytes]] = set()
        self._cut: set[bytes] = set()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._wake = Signal()
        self._last_arrival: dict[object, float] = {}

    async def __aenter__(self) -> Self:
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._nursery.start_soon(self._deliver)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._nursery.cancel_scope.cancel()
        await self._manager.__aexit__(*exc_info)  # type: ignore[arg-type]

    @asynccontextmanager
    async def open_network(
        self, settings: NetworkSettings, handlers: Mapping[str, StreamHandler] | None = None
    ) -> AsyncIterator["MemoryNetwork"]:
        """Opens a network, with the signature of the real function. Bootstrap addresses are connected as soon as their
        nodes exist."""
        network = MemoryNetwork(self, settings, handlers or {})
        if network.peer_id in self.networks:
            raise NetworkError(f"{peer_text(network.peer_id)} is running already")
        self.networks[network.peer_id] = network
        self._link_all()
        try:
            yield network
        finally:
            self._drop_links(network.peer_id)
            del self.networks[network.peer_id]
            network.events_queue.close()

    def cut(self, peer: bytes) -> None:
        """Takes a node off the network: its connections and streams break, on both sides."""
        self._cut.add(peer)
        self._drop_links(peer)

    def heal(self, peer: bytes) -> None:
        """Puts a peer back that was cut off; it finds its peers again at once."""
        self._cut.discard(peer)
        self._link_all()

    def connected(self, one: bytes, other: bytes) -> bool:
        return frozenset((one, other)) in self._links

    def link(self, one: bytes, other: bytes) -> None:
        """Connects two networks. Raises NetworkError when one of them is not there."""
        for peer in (one, other):
            if peer not in self.networks or peer in self._cut:
                raise NetworkError(f"cannot reach {peer_text(peer)}")
        if one == other or self.connected(one, other):
            return
        self._links.add(frozenset((one, other)))
        for me, peer in ((one, other), (other, one)):
            address = (self.networks[peer].addresses() or [f"/memory/{peer_text(peer)}"])[0]
            self.networks[me].events_queue.put(Connected(peer, address))
            self.networks[me].events_queue.offer(RoundTripMeasured(peer, 3 * self.latency_s))

    def unlink(self, one: bytes, other: bytes) -> None:
        if not self.connected(one, other):
            return
        self._links.discard(frozenset((one, other)))
        for me, peer in ((one, other), (other, one)):
            if network := self.networks.get(me):
                network.break_streams(peer)
                network.events_queue.put(Disconnected(peer))

    def after_latency(self, deliver: Callable[[], None], lane: object = None) -> None:
        """Runs ``deliver`` when the message arrives. Messages of one lane (a stream) never overtake each other."""
        arrival = trio.current_time() + self.latency_s * (1 + self._rng.random())
        if lane is not None:
            arrival = self._last_arrival[lane] = max(arrival, self._last_arrival.get(lane, arrival))
        heapq.heappush(self._queue, (arrival, next(self._order), deliver))
        self._wake.notify()

    def close_lane(self, lane: object) -> None:
        """Forgets a lane on which nothing more will be sent."""
        self._last_arrival.pop(lane, None)

    def gossip(self, publisher: bytes, namespace: bytes, data: bytes, cell: Cell = ROOT) -> None:
        """Gossips any bytes, so that a test can play a node that gossips garbage."""
        if publisher in self._cut:
            return
        for peer, network in sorted(self.networks.items()):
            if peer == publisher or cell not in network.joined.get(namespace, ()):
                continue
            if self._rng.random() >= self.gossip_loss:
                self.after_latency(lambda network=network: network.take_gossip(publisher, namespace, data, cell))  # type: ignore[misc]

    def is_cut(self, peer: bytes) -> bool:
        return peer in self._cut

    def spawn(self, stream: "MemoryStream", handler: StreamHandler) -> None:
        self._nursery.start_soon(_serve, stream, handler)

    def link_namespace(self) -> None:
        """Connects networks after one joined a namespace: discovery would now find its peers."""
        self._link_all()

    def _link_all(self) -> None:
        present = sorted(peer for peer in self.networks if peer not in self._cut)
        for one in present:
            for other in present:
                wanted = self.networks[one].joined.keys() & self.networks[other].joined.keys()
                if one != other and (wanted or other in self.networks[one].bootstrap):
                    self.link(one, other)

    def _drop_links(self, peer: bytes) -> None:
        for link in sorted((link for link in self._links if peer in link), key=sorted):
            self.unlink(*link)

    async def _deliver(self) -> None:
        while True:
            while self._queue and self._queue[0][0] <= trio.current_time():
                heapq.heappop(self._queue)[2]()
            deadline = self._queue[0][0] if self._queue else float("inf")
            with trio.CancelScope(deadline=deadline):
                await self._wake.wait()


class MemoryNetwork:
    """The ``Network`` of one peer. Made by ``MemorySwarm.open_network``."""

    def __init__(self, swarm: MemorySwarm, settings: NetworkSettings, handlers: Mapping[str, StreamHandler]) -> None:
        self.events_queue = EventQueue()
        self.joined: dict[bytes, set[Cell]] = {}
        """Namespace -> cells whose gossip it receives."""
        self.bootstrap = {addresses.parse_peer(text)[0] for text in settings.bootstrap}
        self.handlers = dict(handlers)
        self.forgiving: set[str] = set()
        """The protocols served with ``is_forgiving``."""
        self.reachability = Reachability()
        """Only noted: there are no relays here."""
        self._settings = settings
        self._swarm = swarm
        self._streams: dict[bytes, set[MemoryStream]] = {}

    @property
    def peer_id(self) -> bytes:
        return self._settings.identity.peer_id

    def addresses(self) -> list[str]:
        return [f"{address}/p2p/{peer_text(self.peer_id)}" for address in self._settings.listen]

    def peers(self) -> list[bytes]:
        return sorted(peer for peer in self._swarm.networks if self._swarm.connected(self.peer_id, peer))

    def events(self) -> AsyncIterator[NetworkEvent]:
        return self.events_queue.read()

    async def connect(self, address: str) -> bytes:
        peer, _ = addresses.parse_peer(address)
        await trio.sleep(2 * self._swarm.latency_s)
        self._swarm.link(self.peer_id, peer)
        return peer

    async def disconnect(self, peer: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._swarm.unlink(self.peer_id, peer)

    def attempts(self) -> list[Attempt]:
        return []

    def round_trip_s(self, peer: bytes) -> float | None:
        return 3 * self._swarm.latency_s if self._swarm.connected(self.peer_id, peer) else None

    async def send(self, peer: bytes, message: Control) -> None:
        self.send_raw(peer, encode(message))
        await trio.lowlevel.checkpoint()

    def send_raw(self, peer: bytes, data: bytes) -> None:
        """Sends any bytes as a control message, so that a test can play a node that sends garbage."""
        network = self._connected_network(peer)
        self._swarm.after_latency(lambda: network.take_control(self.peer_id, data), (self.peer_id, peer))

    async def publish(self, namespace: bytes, message: Gossip, cell: Cell = ROOT) -> None:
        if cell not in self.joined.get(namespace, ()):
            raise NetworkError(f"namespace {namespace.hex()}{cell.suffix()} was not joined")
        data = encode(message)
        if len(data) > MAX_GOSSIP_BYTES:
            raise LimitExceeded(f"a {type(message).__name__} of {len(data)} bytes is over {MAX_GOSSIP_BYTES}")
        self._swarm.gossip(self.peer_id, namespace, data, cell)
        await trio.lowlevel.checkpoint()

    async def join(self, namespace: bytes) -> None:
        await self.join_cell(namespace, ROOT)
        self._swarm.link_namespace()

    async def leave(self, namespace: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.joined.pop(namespace, None)

    async def join_cell(self, namespace: bytes, cell: Cell) -> None:
        if not self._settings.overlay:
            raise NetworkError("a light client joins no namespace")
        await trio.lowlevel.checkpoint()
        self.joined.setdefault(namespace, set()).add(cell)

    async def leave_cell(self, namespace: bytes, cell: Cell) -> None:
        await trio.lowlevel.checkpoint()
        self.joined.get(namespace, set()).discard(cell)

    async def provide(self, key: bytes) -> None:
        await trio.sleep(2 * self._swarm.latency_s)
        self._swarm.providers.setdefault(key, set()).add(self.peer_id)

    async def find_providers(self, key: bytes) -> list[bytes]:
        await trio.sleep(2 * self._swarm.latency_s)
        return sorted(self._swarm.providers.get(key, set()) - {self.peer_id})

    async def find_nodes(self, namespace: bytes) -> list[bytes]:
        await trio.sleep(2 * self._swarm.latency_s)
        networks = self._swarm.networks.items()
        return sorted(peer for peer, network in networks if namespace in network.joined and peer != self.peer_id)

    async def dial(self, peer: bytes) -> None:
        await trio.sleep(2 * self._swarm.latency_s)
        if peer in self._swarm.behind_routers:
            raise NetworkError(f"cannot reach {peer_text(peer)}")
        self._swarm.link(self.peer_id, peer)

    async def open(self, peer: bytes, protocol: str, waits: bool = True) -> "MemoryStream":
        network = self._connected_network(peer)
        await trio.sleep(2 * self._swarm.latency_s if waits else 0.0)
        handler = network.handlers.get(protocol)
        if handler is None or not self._swarm.connected(self.peer_id, peer):
            raise NetworkError(f"cannot open {protocol} with {peer_text(peer)}")
        mine, theirs = MemoryStream(self._swarm, self, peer), MemoryStream(self._swarm, network, self.peer_id)
        theirs.is_forgiving = protocol in network.forgiving
        mine.other, theirs.other = theirs, mine
        self._streams.setdefault(peer, set()).add(mine)
        network._streams.setdefault(self.peer_id, set()).add(theirs)
        self._swarm.spawn(theirs, handler)
        return mine

    def remote_address(self, peer: bytes) -> str:
        return "/ip4/127.0.0.1/tcp/1" if self._swarm.connected(self.peer_id, peer) else ""

    def path(self, peer: bytes) -> Path | None:
        return Path("LAN") if self._swarm.connected(self.peer_id, peer) else None

    def set_reachability(self, reachability: Reachability) -> None:
        self.reachability = reachability

    def interfaces_changed(self, hosts: Collection[str]) -> None: ...

    def relayed(self) -> Relayed:
        return Relayed()

    def addresses_of(self, peer: bytes) -> list[str]:
        connected = self._swarm.connected(self.peer_id, peer)
        return list(self._swarm.networks[peer]._settings.listen) if connected else []

    def num_exchanges(self, peer: bytes = b"") -> int:
        return sum(len(streams) for other, streams in self._streams.items() if peer in (b"", other))

    def serve(self, protocol: str, handler: StreamHandler, is_forgiving: bool = False) -> None:
        self.handlers[protocol] = handler
        if is_forgiving:
            self.forgiving.add(protocol)

    # --- what the swarm calls --------------------------------------------------------------------------------------

    def charge(self, peer: bytes, reason: str) -> None:
        self.events_queue.offer(Malformed(peer, reason))

    def take_control(self, sender: bytes, data: bytes) -> None:
        if not self._swarm.connected(self.peer_id, sender):
            return
        try:
            message = decode(data)
        except RemoteError as exc:
            self.charge(sender, str(exc))
            return
        if isinstance(message, Control):
            self.events_queue.offer(Received(sender, message))
        else:
            self.charge(sender, f"{type(message).__name__} does not belong on a control stream")

    def take_gossip(self, forwarder: bytes, namespace: bytes, data: bytes, cell: Cell) -> None:
        if self._swarm.is_cut(self.peer_id) or cell not in self.joined.get(namespace, ()):
            return
        try:
            message = decode(data, MAX_GOSSIP_BYTES)
        except RemoteError as exc:
            self.charge(forwarder, str(exc))
            return
        if isinstance(message, Gossip):
            self.events_queue.offer(Gossiped(forwarder, forwarder, namespace, message, cell))
        else:
            self.charge(forwarder, f"{type(message).__name__} does not belong on a gossip topic")

    def break_streams(self, peer: bytes) -> None:
        for stream in self._streams.pop(peer, set()):
            stream.break_off()

    def forget_stream(self, stream: "MemoryStream") -> None:
        self._streams.get(stream.peer, set()).discard(stream)

    def _connected_network(self, peer: bytes) -> "MemoryNetwork":
        if not self._swarm.connected(self.peer_id, peer):
            raise NetworkError(f"not connected to {peer_text(peer)}")
        return self._swarm.networks[peer]


class MemoryStream:
    """One end of an exchange. ``other`` is its opposite end."""

    other: "MemoryStream"

    def __init__(self, swarm: MemorySwarm, network: MemoryNetwork, peer: bytes) -> None:
        self._swarm = swarm
        self._network = network
        self._peer = peer
        self.is_forgiving = False
        """See ``Network.serve``."""
        self._arrived: deque[bytes] = deque()
        self._num_unread_bytes = 0
        self._ended = False
        self._closed = False
        self._changed = Signal()

    @property
    def peer(self) -> bytes:
        return self._peer

    async def send(self, message: Message) -> None:
        is_sent = False
        try:
            await self.send_raw(encode(message))
            is_sent = True
        finally:
            if not is_sent:
                await self.reset()

    async def send_raw(self, data: bytes) -> None:
        """Sends any bytes as a frame, so that a test can play a node that sends garbage."""
        with trio.move_on_after(WRITE_DEADLINE_S):
            while not self._closed and not self._ended and self.other._num_unread_bytes > WINDOW_BYTES:
                await self.other._changed.wait()
        if self._closed or self._ended:
            raise NetworkError(f"{peer_text(self._peer)} is gone")
        if self.other._num_unread_bytes > WINDOW_BYTES:
            raise NetworkError(f"{peer_text(self._peer)} does not read what it is sent")
        self.other._num_unread_bytes += len(data)
        self._swarm.after_latency(lambda: self.other._take(data), self)
        await trio.lowlevel.checkpoint()

    async def receive(self) -> Message:
        await trio.lowlevel.checkpoint()
        while not self._arrived:
            if self._ended or self._closed:
                raise NetworkError(f"{peer_text(self._peer)} ended the exchange")
            await self._changed.wait()
        data = self._arrived.popleft()
        self._num_unread_bytes -= len(data)
        self._notify()
        try:
            return decode(data)
        except RemoteError as exc:
            if not self.is_forgiving:
                self._network.charge(self._peer, str(exc))
                await self.reset()
            raise

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._notify()
            self._swarm.after_latency(self.other._end, self)
            self._swarm.close_lane(self)
            self._network.forget_stream(self)

    async def reset(self) -> None:
        await self.aclose()

    def break_off(self) -> None:
        """Ends the stream because its connection is gone, and drops the messages under way."""
        self._arrived.clear()
        self._end()

    def _take(self, data: bytes) -> None:
        if not self._ended and not self._closed:
            self._arrived.append(data)
            self._notify()

    def _end(self) -> None:
        self._ended = True
        self._notify()
        self.other._notify()

    def _notify(self) -> None:
        self._changed.notify()


async def _serve(stream: MemoryStream, handler: StreamHandler) -> None:
    """Supervisor of one inbound stream."""
    as_protocol: MessageStream = stream
    try:
        await handler(as_protocol)
    except (NetworkError, RemoteError, LimitExceeded) as exc:
        log.debug("exchange broke off", peer=peer_text(stream.peer), reason=str(exc))
    except Exception:
        log.exception("stream handler failed", peer=peer_text(stream.peer))
    finally:
        await stream.aclose()
