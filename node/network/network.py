"""The interface of the network. ``libp2p/network.py`` is the real one, ``memory.py`` the fake.

Every message that arrives has passed ``proto/wire/codec.py``; bytes that do not decode arrive as ``Malformed``.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from mycelia.node.errors import Attempt
from mycelia.node.network.identity import Identity
from mycelia.node.network.line import Line
from mycelia.node.network.swarm_access import SwarmAccess
from mycelia.proto.cells.cells import ROOT, Cell
from mycelia.proto.events import Connected, Disconnected, Gossiped, Malformed, NetworkEvent, Received, RoundTripMeasured
from mycelia.proto.wire.messages import Control, Gossip, Message

__all__ = [
    "Attempt",
    "Connected",
    "DialError",
    "Disconnected",
    "Gossiped",
    "Malformed",
    "MessageStream",
    "Network",
    "NetworkError",
    "NetworkEvent",
    "NetworkSettings",
    "Path",
    "Reachability",
    "Received",
    "Relayed",
    "RoundTripMeasured",
    "StreamHandler",
]


class NetworkError(Exception):
    """The peer could not be reached, or the exchange broke. The text names what was tried."""


class DialError(NetworkError):
    """No address of a peer led to it."""

    def __init__(self, whom: str, failures: Sequence[Attempt]) -> None:
        tried = "; ".join(f"{one.what}: {one.says}" for one in failures) or "no address that can be dialled"
        super().__init__(f"cannot reach {whom}: {tried}")
        self.failures = tuple(failures)


@dataclass(frozen=True)
class NetworkSettings:
    """The settings of a network. All addresses are multiaddrs as text."""

    identity: Identity
    """The node's key. Two running nodes must never share one."""
    listen: tuple[str, ...] = ()
    """Addresses to accept connections on. Empty: there are only connections that this node makes."""
    bootstrap: tuple[str, ...] = ()
    """Addresses that are dialled again and again while they are not connected: full ones (with /p2p/ID), and names of
    lists of them, ``/dnsaddr/NAME``."""
    remembered: Callable[[], Sequence[str]] = lambda: ()
    """Returns full addresses of nodes of earlier, the best first. Called when few peers are connected, to dial them."""
    announce: tuple[str, ...] = ()
    """Addresses to announce instead of those listened on, for a node behind a forwarded port."""
    swarm_key: bytes = b""
    """32 bytes that all nodes of a private swarm share. Without them their bytes mean nothing. Empty: no private
    swarm."""
    access: SwarmAccess | None = None
    """A private swarm with a list of members, instead of ``swarm_key``."""
    overlay: bool = True
    """False for a light client: it connects, sends and opens streams, but neither gossips nor uses the DHT."""
    max_connections: int = 128
    """Connections in all; more are refused."""
    target_peers: int = 32
    """Number of connected peers at which discovery stops dialling: gossip needs few, and each costs pings. In a cell it
    goes on until three quarters of them are of the same cell."""
    relay: bool = True
    """Whether this node passes on connections for nodes that nobody can dial, and may itself be reached through a
    relay. Peers are dialled through their relays in any case."""
    mdns: bool = False
    """Whether to look for nodes in the private networks of this machine by multicast DNS, and to be found there."""
    dial_host: str = ""
    """IP address of this machine that outgoing connections use; empty: any."""
    dial_port: int = 0
    """Local TCP port that all outgoing connections use; 0: any. The caller must have it bound with SO_REUSEPORT and
    must connect with no address twice."""
    line: Line | None = None
    """Counts and slows the traffic outside the local network; None: nothing does."""
    debug: bool = False
    """Whether libp2p's own log reaches the root logger. Otherwise none of it is shown."""


@dataclass(frozen=True)
class Reachability:
    """How peers reach this node, as they see it. Families are "ip4" and "ip6"."""

    open: tuple[str, ...] = ()
    """Multiaddrs at which peers connected to this node: it announces them."""
    closed: frozenset[str] = frozenset()
    """Families in which peers could not connect: this node does not announce its own public addresses there."""
    relayed: frozenset[str] = frozenset()
    """Families in which this node needs relays, at which others can dial it."""


@dataclass(frozen=True)
class Path:
    """The way to a connected peer."""

    kind: str
    """``direct``: one side dialled the other over the internet; ``punched``: both dialled at the same moment, each
    through its router; ``relayed``; ``LAN``: in the same private network or on this machine."""
    relay: bytes = b""
    """The peer through which a relayed connection leads."""


@dataclass(frozen=True)
class Relayed:
    """What a node passes on for others, and its limits; all limits are 0 if it is no relay."""

    circuits: int = 0
    """Connections of others that lead through it now."""
    max_circuits: int = 0
    places: int = 0
    """Nodes that have reserved a place, at which others reach them."""
    max_places: int = 0
    bytes: int = 0
    """Bytes passed on since the start, both ways."""
    max_bytes_per_s: int = 0
    """For all circuits together, both ways."""


class MessageStream(Protocol):
    """One exchange with one peer: length-prefixed messages, ended by a final frame that the caller knows."""

    @property
    def peer(self) -> bytes: ...

    async def send(self, message: Message) -> None:
        """Sends one message. Raises NetworkError when the peer is gone or does not read within the write deadline, and
        LimitExceeded for a message over MAX_MESSAGE_BYTES. After any exception, cancellation included, the stream is
        reset."""
        ...

    async def receive(self) -> Message:
        """The next message. Raises NetworkError at the end of the stream: before the final frame an end, a reset and a
        disconnect look alike. Raises RemoteError for bytes that are no message; a Malformed event has charged the peer
        for them already."""
        ...

    async def aclose(self) -> None:
        """Ends the exchange cleanly. Call it after the final frame was sent or received. Never raises."""
        ...

    async def reset(self) -> None:
        """Abandons the exchange; the peer's ``receive`` raises. Never raises."""
        ...


StreamHandler = Callable[[MessageStream], Awaitable[None]]
"""Serves one inbound stream. The network closes the stream when it returns and resets it when it raises."""


class Opener(Protocol):
    """The part of a network that opens exchanges."""

    async def open(self, peer: bytes, protocol: str, waits: bool = True) -> MessageStream:
        """See ``Network.open``."""
        ...


class Reached(Opener, Protocol):
    """The part of a network whose reachability is checked. See ``Network`` for each method."""

    def addresses(self) -> list[str]: ...

    def remote_address(self, peer: bytes) -> str: ...

    def set_reachability(self, reachability: Reachability) -> None: ...

    def interfaces_changed(self, hosts: Collection[str]) -> None: ...


class Network(Protocol):
    """A running network. Entered by ``async with``; leaving closes every connection."""

    @property
    def peer_id(self) -> bytes: ...

    def addresses(self) -> list[str]:
        """Full multiaddrs (with /p2p/ID) at which this node listens. Empty for a light client."""
        ...

    def peers(self) -> list[bytes]:
        """The connected peers, sorted."""
        ...

    def events(self) -> AsyncIterator[NetworkEvent]:
        """All events in order, for one reader. The queue behind it is bounded."""
        ...

    async def connect(self, address: str) -> bytes:
        """Dials a full multiaddr, or all nodes of a ``/dnsaddr`` list until one is connected. Returns the verified peer
        id. Raises NetworkError, a DialError if nothing answered."""
        ...

    async def disconnect(self, peer: bytes) -> None: ...

    def attempts(self) -> list[Attempt]:
        """What was tried to find a first peer, while none is connected; otherwise empty."""
        ...

    def round_trip_s(self, peer: bytes) -> float | None:
        """The last measured round-trip time, or None."""
        ...

    def remote_address(self, peer: bytes) -> str:
        """The multiaddr of the peer's end of the best connection, as seen from here; empty: not connected."""
        ...

    def path(self, peer: bytes) -> Path | None:
        """The best way to ``peer``, which new exchanges take; None: not connected."""
        ...

    def addresses_of(self, peer: bytes) -> list[str]:
        """Addresses, without the peer id, at which a connected peer may be dialled again: the one that it was dialled
        at and those that it announces. Empty for a light client."""
        ...

    async def send(self, peer: bytes, message: Control) -> None:
        """Sends one control message to a connected peer. Raises NetworkError."""
        ...

    async def publish(self, namespace: bytes, message: Gossip, cell: Cell = ROOT) -> None:
        """Publishes to the gossip topic of a joined cell, at a pace. Raises NetworkError when the queue is full."""
        ...

    async def join(self, namespace: bytes) -> None:
        """Starts to look for the other nodes of a namespace, can be found by them, and joins its cell ROOT."""
        ...

    async def leave(self, namespace: bytes) -> None:
        """Ends what ``join`` began, and every ``join_cell`` of the namespace. It may be joined again."""
        ...

    async def join_cell(self, namespace: bytes, cell: Cell) -> None:
        """Subscribes to the gossip of a cell of a joined namespace, looks for its nodes and can be found by them."""
        ...

    async def leave_cell(self, namespace: bytes, cell: Cell) -> None:
        """Ends what ``join_cell`` began. For ROOT, ends only the subscription."""
        ...

    async def provide(self, key: bytes) -> None:
        """Announces in the DHT that this node holds the prefix of ``key``, see ``cells/ladder.py``. Raises
        NetworkError."""
        ...

    async def find_providers(self, key: bytes) -> list[bytes]:
        """Peers that announced ``key`` in the DHT. They are hints: they may be gone. Raises NetworkError."""
        ...

    async def find_nodes(self, namespace: bytes) -> list[bytes]:
        """Peers that announced in the DHT that they serve the model of a namespace. Hints, as above. Raises
        NetworkError."""
        ...

    async def dial(self, peer: bytes) -> None:
        """Connects with a peer that ``find_providers`` or ``find_nodes`` returned. Raises NetworkError."""
        ...

    async def open(self, peer: bytes, protocol: str, waits: bool = True) -> MessageStream:
        """A new exchange with a connected peer. It counts as open until the caller closes or resets it, or a ``send``
        fails. Raises NetworkError.

        waits: whether to wait a round trip for the peer's answer that it speaks ``protocol``. Otherwise the first
        ``receive`` checks that answer."""
        ...

    def set_reachability(self, reachability: Reachability) -> None:
        """Sets how peers reach this node. Its addresses, at relays too, and its part in the DHT follow from that: a
        node that nobody can dial serves no lookups."""
        ...

    def interfaces_changed(self, hosts: Collection[str]) -> None:
        """Tells that this machine has the IP addresses ``hosts`` from now on: they are announced, and the connections
        from others end, since nothing arrives on them any more."""
        ...

    def relayed(self) -> Relayed:
        """What this node passes on for others."""
        ...

    def num_exchanges(self, peer: bytes = b"") -> int:
        """Number of exchanges that are open with ``peer`` (empty: with all peers), opened by either side."""
        ...

    def serve(self, protocol: str, handler: StreamHandler, is_forgiving: bool = False) -> None:
        """Serves the inbound streams of ``protocol`` from now on. Handlers given to ``open_network`` are in place
        before the first stream can arrive.

        is_forgiving: bytes that are no message are no offence, and ``receive`` leaves the stream open for an answer
        that says what was wrong."""
        ...
