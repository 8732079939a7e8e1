"""What the rest of a node knows of the network. ``libp2p/network.py`` is the real one, ``memory.py`` the fake.

Everything that arrives has passed ``proto.codec``; what did not decode arrives as ``Malformed``.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mycelia.node.network.identity import Identity
from mycelia.proto.cells.cells import ROOT, Cell
from mycelia.proto.events import Connected, Disconnected, Gossiped, Malformed, NetworkEvent, Received, RoundTripMeasured
from mycelia.proto.wire.messages import Control, Gossip, Message

__all__ = [
    "Connected",
    "Disconnected",
    "Gossiped",
    "Malformed",
    "MessageStream",
    "Network",
    "NetworkError",
    "NetworkEvent",
    "NetworkSettings",
    "Received",
    "RoundTripMeasured",
    "StreamHandler",
]


class NetworkError(Exception):
    """The peer could not be reached, or the exchange broke. Says what was tried."""


@dataclass(frozen=True)
class NetworkSettings:
    """How a network is opened. All addresses are multiaddrs as text."""

    identity: Identity
    """Who this node is; two running nodes must never share one."""
    listen: tuple[str, ...] = ()
    """Where to accept connections. Empty: only connections that this node makes."""
    bootstrap: tuple[str, ...] = ()
    """Full addresses (with /p2p/ID) that are dialled for ever while they are not connected."""
    remembered: Callable[[], Sequence[str]] = lambda: ()
    """Full addresses of nodes of earlier, the best first: asked for and dialled whenever few peers are connected."""
    announce: tuple[str, ...] = ()
    """What to tell others instead of the addresses listened on, for a node behind a forwarded port."""
    swarm_key: bytes = b""
    """32 bytes that all nodes of a private swarm have, and without which nobody understands them; empty: none."""
    overlay: bool = True
    """False for a light client: connects, sends and opens streams, but neither gossips nor provides nor looks up."""
    max_connections: int = 128
    """Connections in all; more are refused."""
    target_peers: int = 32
    """Discovery stops to dial at this many connected peers: gossip needs few, and each costs pings. In a cell it goes
    on until three quarters of them are of the same cell."""
    relay: bool = True
    """Passes connections on for nodes that nobody can dial, and is reached through such a peer if that is wanted. Peers
    are dialled through their relays in any case."""
    dial_host: str = ""
    """IP address of this machine that connections go out from; empty: any."""
    dial_port: int = 0
    """Local TCP port that every connection goes out from; 0: any. Whoever gives it has it bound with SO_REUSEPORT, and
    connects with no address twice."""
    debug: bool = False
    """Lets libp2p's own log reach the root logger; otherwise not one line of it is shown."""


class MessageStream(Protocol):
    """One exchange with one peer: length-prefixed messages, ended by a final frame that the caller knows."""

    @property
    def peer(self) -> bytes: ...

    async def send(self, message: Message) -> None:
        """Raises NetworkError when the peer is gone or does not read within the write deadline, LimitExceeded for a
        message over MAX_MESSAGE_BYTES. Whatever it raises, also when it is cancelled, the stream is reset."""
        ...

    async def receive(self) -> Message:
        """The next message. Raises NetworkError at the end of the stream (there is no clean end before the final
        frame: end, reset and disconnect look alike) and RemoteError for bytes that are no message (the peer has been
        charged for them with a Malformed event already)."""
        ...

    async def aclose(self) -> None:
        """After the final frame was sent or received: ends the exchange cleanly. Never raises."""
        ...

    async def reset(self) -> None:
        """Abandons the exchange; the peer's ``receive`` raises. Never raises."""
        ...


StreamHandler = Callable[[MessageStream], Awaitable[None]]
"""Serves one inbound stream. The network closes the stream when it returns and resets it when it raises."""


class Network(Protocol):
    """A running network. Entered by ``async with``; leaving closes every connection."""

    @property
    def peer_id(self) -> bytes: ...

    def addresses(self) -> list[str]:
        """Full multiaddrs (with /p2p/ID) at which this node listens. Empty for a light client."""
        ...

    def events(self) -> AsyncIterator[NetworkEvent]:
        """Everything that happens, in order, for one reader. The queue behind it is bounded."""
        ...

    async def connect(self, address: str) -> bytes:
        """Dial a full multiaddr and return the peer id that was verified. Raises NetworkError."""
        ...

    async def disconnect(self, peer: bytes) -> None: ...

    def round_trip_s(self, peer: bytes) -> float | None:
        """Last measured round-trip time, or None."""
        ...

    def remote_address(self, peer: bytes) -> str:
        """Multiaddr of the other end of a connection with it, as seen from here; empty: none."""
        ...

    def addresses_of(self, peer: bytes) -> list[str]:
        """Where a connected peer may be dialled again, without its id: the address that it was dialled at, and those
        that it tells. Empty for a light client."""
        ...

    async def send(self, peer: bytes, message: Control) -> None:
        """One control message to a connected peer. Raises NetworkError."""
        ...

    async def publish(self, namespace: bytes, message: Gossip, cell: Cell = ROOT) -> None:
        """To the gossip topic of a cell that was joined. Paced; raises NetworkError when the queue is full."""
        ...

    async def join(self, namespace: bytes) -> None:
        """Start to look for, and be found by, the other nodes of a namespace, and join its cell ROOT."""
        ...

    async def join_cell(self, namespace: bytes, cell: Cell) -> None:
        """Subscribe to the gossip of a cell of a namespace that was joined; look for, and be found by, its nodes."""
        ...

    async def leave_cell(self, namespace: bytes, cell: Cell) -> None:
        """End what ``join_cell`` began; of ROOT only the subscription."""
        ...

    async def provide(self, key: bytes) -> None:
        """Tell the DHT that this node holds the prefix of ``key``, see ``cells/ladder.py``. Raises NetworkError."""
        ...

    async def find_providers(self, key: bytes) -> list[bytes]:
        """Who told the DHT so. Only hints: they may be gone. Raises NetworkError."""
        ...

    async def find_nodes(self, namespace: bytes) -> list[bytes]:
        """Who told the DHT that it serves the model of a namespace. Only hints, as above. Raises NetworkError."""
        ...

    async def dial(self, peer: bytes) -> None:
        """Connect with a peer that ``find_providers`` or ``find_nodes`` told of. Raises NetworkError."""
        ...

    async def open(self, peer: bytes, protocol: str, waits: bool = True) -> MessageStream:
        """A new exchange with a connected peer, which counts until the caller closes or resets it, or a ``send``
        fails. Raises NetworkError.

        waits: for the peer's word that it speaks ``protocol``, a round trip; else the first ``receive`` tells of it."""
        ...

    def want_relays(self, is_wanted: bool) -> None:
        """Whether this node, which peers cannot dial, shall be reachable through some of them. Its addresses at them
        are then among ``addresses``."""
        ...

    def num_circuits(self) -> int:
        """Connections of others that this node passes on."""
        ...

    def num_exchanges(self, peer: bytes = b"") -> int:
        """How many are open with ``peer``, empty: with all; those opened by peers included."""
        ...

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Answer inbound streams of ``protocol`` that arrive from now on. Handlers given to ``open_network`` are in
        place before the first stream can arrive."""
        ...
