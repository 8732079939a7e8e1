"""Circuits: connections to nodes that cannot be dialled, through a peer that both ends can dial.

The protocol is libp2p's circuit relay v2, https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md. A node
behind a router *reserves* a place at a peer, its relay, and announces the address there. To dial it, a peer opens a
stream to the relay, which opens one to the node and then copies bytes both ways. The two ends use these streams like a
socket, with Noise and Yamux: the relay can neither read their messages nor pretend to be one of them.

A relay limits the number of reservations and circuits, and the duration, bytes and silence of each circuit. All
circuits share RELAYED_BYTES_PER_S; each direction takes turns of COPY_BYTES. Reservations are counted by the node's
subnet, circuits by the subnets of both ends. A circuit that a limit ends is a lost connection and is dialled again.
Reservations and circuits need direct connections, so no circuit leads through another. A reservation ends with the
connection that it was made on.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable

import structlog
import trio
from google.protobuf.message import DecodeError
from libp2p.abc import INetConn, INetStream
from libp2p.connection_types import ConnectionType
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.stream.net_stream import NetStream
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Limit, PeerId, Reservation, Status, StopMessage
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.libp2p.closing import BROKEN, reset_stream
from mycelia.node.network.libp2p.host import Host
from mycelia.node.network.libp2p.peers import PeerTable
from mycelia.node.network.network import NetworkError
from mycelia.node.peer_id import peer_text
from mycelia.proto.admission.pace import Pace, Rate
from mycelia.proto.admission.subnets import Places

log = structlog.get_logger()

HOP_PROTOCOL = "/libp2p/circuit/relay/0.2.0/hop"
STOP_PROTOCOL = "/libp2p/circuit/relay/0.2.0/stop"
MAX_MESSAGE_BYTES = 4_096
STEP_DEADLINE_S = 5.0
"""Time for each message that makes a reservation or a circuit."""
ANSWER_DEADLINE_S = 3 * STEP_DEADLINE_S
"""Time for a relay's answer to CONNECT, before which it has to ask the node."""

MAX_RESERVATIONS = 32
RESERVATION_S = 3_600.0
MAX_CIRCUITS = 32
"""When all are busy both ways, each direction moves half of a stream's window in 4 s. Senders wait 5 s at most."""
MAX_CIRCUITS_PER_PEER, MAX_CIRCUITS_PER_TARGET = 8, 16
"""Circuits that one peer opens, and that lead to one peer. A node accepts 64 streams from its relay."""
CONNECTS, CONNECTS_IN_A_PRIVATE_NETWORK = Rate(2.0, 32.0), Rate(20.0, 256.0)
"""Circuits per second to one node and from one subnet: each costs the node a handshake."""
MAX_CIRCUIT_S = 7_200.0
MAX_CIRCUIT_BYTES = 512 * 2**20
"""Bytes both ways together. A token of an answer takes some 200 bytes, a long prompt half a megabyte."""
IDLE_S = 60.0
"""A circuit without bytes for this long ends. On a live connection one side pings at least every 30 s."""
RELAYED_BYTES_PER_S, RELAYED_BURST_S = 2.0 * 2**20, 4.0
COPY_BYTES = 32 * 1_024

NUM_RELAYS = 2
"""Relays of one node at a time: it stays reachable when one of them leaves."""
RENEW_S = RESERVATION_S / 4
RETRY_S = 10.0
REFUSED_S = 600.0
"""Time after which a peer that refused a place is asked again."""

_ERRORS = (*BROKEN, DecodeError)


class Pipe(ReadWriteCloser):
    """A stream that replaces a connection's socket."""

    def __init__(self, stream: INetStream) -> None:
        assert isinstance(stream, NetStream)
        # (not named ``stream``, where NoisePackets looks for a socket)
        self._net_stream = stream

    async def read(self, n: int | None = None) -> bytes:
        """Empty at the end. Raises ConnectionClosedError."""
        try:
            return await self._net_stream.muxed_stream.read(n)
        except MuxedStreamEOF:
            return b""
        except _ERRORS as exc:
            raise ConnectionClosedError(f"the circuit broke: {exc!r}") from exc

    async def write(self, data: bytes) -> None:
        """Raises ConnectionClosedError."""
        try:
            await self._net_stream.muxed_stream.write(data)
        except _ERRORS as exc:
            raise ConnectionClosedError(f"the circuit broke: {exc!r}") from exc

    async def close(self) -> None:
        await reset_stream(self._net_stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        return None  # (the only known address is the relay's)


class Relaying:
    """The circuits of one node: as a relay for others, as a node that relays make reachable, and as a dialling peer."""

    def __init__(
        self, host: Host, table: PeerTable, offers: bool, rng: random.Random, on_change: Callable[[], None]
    ) -> None:
        """offers: whether this node relays for others. rng: draws this node's relays. on_change: called when this
        node's addresses at relays have changed."""
        self._rng = rng
        self._host = host
        self._table = table
        self.reserved: dict[bytes, tuple[float, str]] = {}
        """Peer with a reservation at this node -> (its end in trio's time, the peer's subnet)."""
        self._reservations = Places(MAX_RESERVATIONS, 1)
        self._from = Places(MAX_CIRCUITS, MAX_CIRCUITS_PER_PEER)
        """The places of circuits, counted by the peers that opened them."""
        self._to = Places(MAX_CIRCUITS, MAX_CIRCUITS_PER_TARGET)
        """The places of circuits, counted by the peers that they lead to."""
        self._ends: Counter[bytes] = Counter()
        """Peer -> number of circuits that begin or end at it."""
        self._pace = Pace(CONNECTS, CONNECTS, CONNECTS_IN_A_PRIVATE_NETWORK)
        self._paced_at = 0.0
        """The time at which all bytes copied so far would be through at RELAYED_BYTES_PER_S."""
        self._families: frozenset[str] = frozenset()
        """The address families in which this node is to be reachable through relays."""
        self._changed = trio.Event()
        """Set and replaced when this node's reservations are to be checked at once."""
        self.relays: dict[bytes, tuple[list[Multiaddr], float]] = {}
        """Relay at which this node has a place -> (the relay's addresses, the time of the reservation)."""
        self._refused: dict[bytes, float] = {}
        """Peer that refused a place -> the time from which it may be asked again."""
        self._on_change = on_change
        host.inbound.busy.append(self._ends.keys)
        host.circuits = self.circuits
        host.outbound.open_circuit = self.open_circuit
        host.serve(STOP_PROTOCOL, self._serve_stop)
        if offers:
            host.serve(HOP_PROTOCOL, self._serve_hop)

    @property
    def num_circuits(self) -> int:
        """The number of circuits that this node passes on for others."""
        return self._from.num_taken

    # --- as the relay ----------------------------------------------------------------------------------------------

    async def _serve_hop(self, stream: INetStream) -> None:
        peer = stream.muxed_conn.peer_id.to_bytes()
        request = HopMessage()
        await _hear(stream, request)
        if stream.muxed_conn.get_connection_type() != ConnectionType.DIRECT:
            await _say(stream, HopMessage(type=HopMessage.STATUS, status=Status.PERMISSION_DENIED))
        elif request.type == HopMessage.RESERVE:
            await _say(stream, self._reserve(peer))
        elif request.type == HopMessage.CONNECT:
            await self._connect(stream, peer, request.peer.id)
            return
        else:
            await _say(stream, HopMessage(type=HopMessage.STATUS, status=Status.UNEXPECTED_MESSAGE))
        await stream.close()

    def _reserve(self, peer: bytes) -> HopMessage:
        now, subnet = trio.current_time(), self._table.subnet(peer)
        for one, (until, _) in list(self.reserved.items()):
            if until <= now:
                self._free_reservation(one)
        if peer in self.reserved:
            subnet = self.reserved[peer][1]
        elif peer not in self._table or not self._reservations.take(peer, subnet):
            return HopMessage(type=HopMessage.STATUS, status=Status.RESERVATION_REFUSED)
        self.reserved[peer] = now + RESERVATION_S, subnet
        log.debug("relay_reserved", peer=peer_text(peer), reservations=len(self.reserved))
        return HopMessage(
            type=HopMessage.STATUS,
            status=Status.OK,
            reservation=Reservation(expire=int(time.time() + RESERVATION_S)),
            limit=_limit(),
        )

    def _free_reservation(self, peer: bytes) -> None:
        if peer in self.reserved:
            _, subnet = self.reserved.pop(peer)
            self._reservations.free(peer, subnet)

    async def _connect(self, stream: INetStream, source: bytes, target: bytes) -> None:
        until, to_subnet = self.reserved.get(target, (0.0, ""))
        from_subnet = self._table.subnet(source)
        refusal = None
        if until <= trio.current_time() or target not in self._table or target == source:
            refusal = Status.NO_RESERVATION
        elif not self._is_given(source, from_subnet, target, to_subnet):
            refusal = Status.RESOURCE_LIMIT_EXCEEDED
        if refusal is not None:
            await _say(stream, HopMessage(type=HopMessage.STATUS, status=refusal))
            await stream.close()
            return
        self._ends.update((source, target))
        onward: INetStream | None = None
        try:
            onward = await self.opened_to(target, source)
            status = Status.CONNECTION_FAILED if onward is None else Status.OK
            await _say(stream, HopMessage(type=HopMessage.STATUS, status=status, limit=_limit()))
            if onward is None:
                await stream.close()
            else:
                await self._copy(Pipe(stream), Pipe(onward))
        finally:
            self._from.free(source, from_subnet)
            self._to.free(target, to_subnet)
            self._ends.subtract((source, target))
            for peer in (source, target):
                if not self._ends[peer]:
                    del self._ends[peer]
            if onward is not None:
                await Pipe(onward).close()

    def _is_given(self, source: bytes, from_subnet: str, target: bytes, to_subnet: str) -> bool:
        """Takes a place for one more circuit. Returns False when there is none."""
        now = trio.current_time()
        if self._pace.delay_s(target, from_subnet, 1.0, now, patience_s=0.0) is None:
            return False
        if not self._from.take(source, from_subnet):
            return False
        if not self._to.take(target, to_subnet):
            self._from.free(source, from_subnet)
            return False
        return True

    async def opened_to(self, target: bytes, source: bytes) -> INetStream | None:
        """A stream to ``target``, which has accepted the circuit from ``source``; None: it did not."""
        try:
            with trio.fail_after(STEP_DEADLINE_S):
                stream = await self._host.outbound.open(target, STOP_PROTOCOL, direct=True)
        except (NetworkError, trio.TooSlowError) as exc:
            log.debug("relay_target_lost", peer=peer_text(target), reason=str(exc))
            return None
        answer = StopMessage()
        try:
            await _say(stream, StopMessage(type=StopMessage.CONNECT, peer=PeerId(id=source), limit=_limit()))
            await _hear(stream, answer)
        except (*_ERRORS, trio.TooSlowError) as exc:
            log.debug("relay_target_silent", peer=peer_text(target), reason=repr(exc))
        except BaseException:
            await Pipe(stream).close()
            raise
        if answer.type == StopMessage.STATUS and answer.status == Status.OK:
            return stream
        await Pipe(stream).close()
        return None

    async def _copy(self, one: Pipe, other: Pipe) -> None:
        """Copies bytes both ways until one end closes, both are silent or a limit is reached. Then closes both."""
        left = MAX_CIRCUIT_BYTES

        async def copy(source: Pipe, sink: Pipe, scope: trio.CancelScope) -> None:
            nonlocal left
            try:
                while left > 0 and (data := await source.read(COPY_BYTES)):
                    scope.deadline = trio.current_time() + IDLE_S
                    left -= len(data)
                    begun_at = max(self._paced_at, trio.current_time() - RELAYED_BURST_S)
                    self._paced_at = begun_at + len(data) / RELAYED_BYTES_PER_S
                    await trio.sleep_until(self._paced_at)
                    await sink.write(data)
            except ConnectionClosedError as exc:
                log.debug("circuit_broke", reason=str(exc))
            scope.cancel()

        try:
            with trio.move_on_after(MAX_CIRCUIT_S):
                async with trio.open_nursery() as nursery:
                    nursery.cancel_scope.deadline = trio.current_time() + IDLE_S
                    nursery.start_soon(copy, one, other, nursery.cancel_scope)
                    nursery.start_soon(copy, other, one, nursery.cancel_scope)
        finally:
            await one.close()
            await other.close()

    # --- as the node behind a router -------------------------------------------------------------------------------

    def want(self, families: frozenset[str]) -> None:
        """Sets the address families in which this node needs relays; empty: it needs none."""
        if families != self._families:
            self._families = families
            self._look_again()

    def forget(self, peer: bytes) -> None:
        """Ends the reservations with a disconnected peer. If it was this node's relay, seeks another at once."""
        self._free_reservation(peer)
        if self.relays.pop(peer, None) is not None:
            self._look_again()

    def _look_again(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def circuits(self) -> list[Multiaddr]:
        return [addresses.circuit(address, relay) for relay, (known, _) in self.relays.items() for address in known]

    async def keep_reserved(self) -> None:
        """Makes and renews this node's reservations while it needs relays. Never returns."""
        told: list[Multiaddr] = []
        while True:
            changed, peer_came = self._changed, self._table.changed
            await self._seek_places(trio.current_time())
            if self.circuits() != told:
                told = self.circuits()
                log.info("relays_changed", relays=[peer_text(relay) for relay in self.relays])
                self._on_change()
            with trio.move_on_after(RETRY_S if self._families else float("inf")):
                async with trio.open_nursery() as nursery:
                    if self._families and len(self.relays) < NUM_RELAYS:
                        nursery.start_soon(_ended_by, peer_came, nursery.cancel_scope)
                    await changed.wait()
                    nursery.cancel_scope.cancel()

    async def _seek_places(self, now: float) -> None:
        for relay, (known, given_at) in list(self.relays.items()):
            is_due = now - given_at > RENEW_S or not self._fitting(known)
            if relay in self.relays and is_due and not await self._place_given(relay, self._fitting(known)):
                self.relays.pop(relay, None)
        for relay, known in self.candidates(now):
            if len(self.relays) >= NUM_RELAYS:
                break
            await self._place_given(relay, known)

    def _fitting(self, known: Iterable[Multiaddr]) -> list[Multiaddr]:
        """The addresses of a relay that other nodes are to dial: the first of each family in which this node needs
        relays."""
        found: dict[str, Multiaddr] = {}
        for address in known:
            family = "ip6" if str(address).startswith(("/ip6/", "/dns6/")) else "ip4"
            if family in self._families:
                found.setdefault(family, address)
        return list(found.values())

    def candidates(self, now: float) -> list[tuple[bytes, list[Multiaddr]]]:
        """Peers that may become relays, with the addresses at which other nodes can dial them: this node dialled the
        first one itself, the peer announces the public ones. Peers with public addresses come first. The order among
        equals is random, so that nodes do not all choose the same few."""
        self._refused = {peer: until for peer, until in self._refused.items() if until > now}
        found = []
        for peer in self._table.peers():
            for connection in self._table.connections(peer):
                told = connection.get_transport_addresses()
                if peer not in self.relays and peer not in self._refused and told and _is_dialled(connection):
                    dialled = Multiaddr(str(told[0]).partition("/p2p/")[0])
                    announced = [one for one in self._host.addresses_of(peer) if addresses.is_plain_public(one)]
                    if known := self._fitting([dialled, *announced]):
                        found.append((peer, known))
                    break
        self._rng.shuffle(found)
        return sorted(found, key=lambda one: not addresses.is_global(one[1][0]))

    async def _place_given(self, relay: bytes, known: list[Multiaddr]) -> bool:
        """Asks for a place or for its renewal. Returns whether the relay gave it."""
        if not known:
            return False  # (its address is of a family in which this node needs no relay any more)
        answer = HopMessage()
        try:
            with trio.fail_after(STEP_DEADLINE_S):
                stream = await self._host.outbound.open(relay, HOP_PROTOCOL, direct=True)
                try:
                    await _say(stream, HopMessage(type=HopMessage.RESERVE))
                    await _hear(stream, answer)
                finally:
                    await Pipe(stream).close()
        except (NetworkError, *_ERRORS, trio.TooSlowError) as exc:
            log.debug("relay_refused", peer=peer_text(relay), reason=repr(exc))
        if relay not in self._table:
            return False  # (no refusal: the peer may connect again in a moment)
        if answer.type == HopMessage.STATUS and answer.status == Status.OK:
            self.relays[relay] = (known, trio.current_time())
            return True
        self._refused[relay] = trio.current_time() + REFUSED_S
        return False

    async def _serve_stop(self, stream: INetStream) -> None:
        """Accepts and serves a circuit that arrives through one of this node's relays."""
        relay = stream.muxed_conn.peer_id.to_bytes()
        request = StopMessage()
        await _hear(stream, request)
        is_direct = stream.muxed_conn.get_connection_type() == ConnectionType.DIRECT
        if relay not in self.relays or not is_direct or request.type != StopMessage.CONNECT:
            await _say(stream, StopMessage(type=StopMessage.STATUS, status=Status.PERMISSION_DENIED))
            await stream.close()
            return
        await _say(stream, StopMessage(type=StopMessage.STATUS, status=Status.OK))
        address = addresses.circuit(self.relays[relay][0][0], relay)
        await self._host.inbound.serve_circuit(Pipe(stream), address)

    # --- as the peer that dials ------------------------------------------------------------------------------------

    async def open_circuit(self, relay: bytes, target: bytes) -> Pipe:
        """A circuit to ``target`` through a connected relay. Raises NetworkError."""
        stream = await self._host.outbound.open(relay, HOP_PROTOCOL, direct=True)
        answer = HopMessage()
        try:
            await _say(stream, HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=target)))
            await _hear(stream, answer, ANSWER_DEADLINE_S)
        except BaseException as exc:
            await Pipe(stream).close()
            if isinstance(exc, _ERRORS):
                raise NetworkError(f"the relay {peer_text(relay)} does not answer: {exc!r}") from exc
            raise
        if answer.type == HopMessage.STATUS and answer.status == Status.OK:
            return Pipe(stream)
        await Pipe(stream).close()
        raise NetworkError(f"the relay {peer_text(relay)} refuses: status {answer.status}")


async def _ended_by(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _is_dialled(connection: INetConn) -> bool:
    muxer = connection.muxed_conn
    return muxer.is_initiator and muxer.get_connection_type() == ConnectionType.DIRECT


def _limit() -> Limit:
    return Limit(duration=int(MAX_CIRCUIT_S), data=MAX_CIRCUIT_BYTES)


async def _say(stream: INetStream, message: HopMessage | StopMessage) -> None:
    with trio.fail_after(STEP_DEADLINE_S):
        await stream.write(encode_varint_prefixed(message.SerializeToString()))


async def _hear(stream: INetStream, message: HopMessage | StopMessage, deadline_s: float | None = None) -> None:
    """Reads the next message. Raises TooSlowError and the errors of the stream and the parser."""
    with trio.fail_after(STEP_DEADLINE_S if deadline_s is None else deadline_s):
        message.ParseFromString(await read_varint_prefixed_bytes_limited(stream, MAX_MESSAGE_BYTES))
