"""A relay for nodes that cannot be dialled: it takes reservations and passes circuits on. ``circuits.py`` tells what
they are.

A relay limits the number of reservations and circuits, and the duration, bytes and silence of each circuit. All
circuits share RELAYED_BYTES_PER_S; each direction takes turns of COPY_BYTES. Reservations are counted by the node's
subnet, circuits by the subnets of both ends. A circuit that a limit ends is a lost connection and is dialled again.
Reservations and circuits need direct connections, so no circuit leads through another. A reservation ends with the
connection that it was made on.
"""

import time
from collections import Counter

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Limit, PeerId, Reservation, Status, StopMessage

from mycelia.node.network.libp2p.circuits import (
    ERRORS,
    HOP_PROTOCOL,
    RESERVATION_S,
    STEP_DEADLINE_S,
    STOP_PROTOCOL,
    Pipe,
    hear,
    say,
)
from mycelia.node.network.libp2p.host import Host
from mycelia.node.network.libp2p.peers import PeerTable
from mycelia.node.network.network import NetworkError, Relayed
from mycelia.node.peer_id import peer_text
from mycelia.proto.admission.pace import Pace, Rate
from mycelia.proto.admission.subnets import Places

log = structlog.get_logger()

MAX_RESERVATIONS = 32
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


class RelayServer:
    """The reservations and circuits that this node gives to others."""

    def __init__(self, host: Host, table: PeerTable, offers: bool) -> None:
        """offers: whether this node relays for others."""
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
        self._num_bytes = 0
        """Bytes that circuits carried so far."""
        self._offers = offers
        host.inbound.busy.append(self._ends.keys)
        if offers:
            host.serve(HOP_PROTOCOL, self._serve_hop)

    def relayed(self) -> Relayed:
        """What this node passes on for others."""
        if not self._offers:
            return Relayed()
        now = trio.current_time()
        return Relayed(
            circuits=self._from.num_taken,
            max_circuits=MAX_CIRCUITS,
            places=sum(until > now for until, _ in self.reserved.values()),
            max_places=MAX_RESERVATIONS,
            bytes=self._num_bytes,
            max_bytes_per_s=int(RELAYED_BYTES_PER_S),
        )

    def forget(self, peer: bytes) -> None:
        """Ends the reservation of a peer, which is disconnected now."""
        if peer in self.reserved:
            _, subnet = self.reserved.pop(peer)
            self._reservations.free(peer, subnet)

    async def _serve_hop(self, stream: INetStream) -> None:
        peer = stream.muxed_conn.peer_id.to_bytes()
        request = HopMessage()
        await hear(stream, request)
        if stream.muxed_conn.get_connection_type() != ConnectionType.DIRECT:
            await say(stream, HopMessage(type=HopMessage.STATUS, status=Status.PERMISSION_DENIED))
        elif request.type == HopMessage.RESERVE:
            await say(stream, self._reserve(peer))
        elif request.type == HopMessage.CONNECT:
            await self._connect(stream, peer, request.peer.id)
            return
        else:
            await say(stream, HopMessage(type=HopMessage.STATUS, status=Status.UNEXPECTED_MESSAGE))
        await stream.close()

    def _reserve(self, peer: bytes) -> HopMessage:
        now, subnet = trio.current_time(), self._table.subnet(peer)
        for one, (until, _) in list(self.reserved.items()):
            if until <= now:
                self.forget(one)
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

    async def _connect(self, stream: INetStream, source: bytes, target: bytes) -> None:
        until, to_subnet = self.reserved.get(target, (0.0, ""))
        from_subnet = self._table.subnet(source)
        refusal = None
        if until <= trio.current_time() or target not in self._table or target == source:
            refusal = Status.NO_RESERVATION
        elif not self._is_given(source, from_subnet, target, to_subnet):
            refusal = Status.RESOURCE_LIMIT_EXCEEDED
        if refusal is not None:
            await say(stream, HopMessage(type=HopMessage.STATUS, status=refusal))
            await stream.close()
            return
        self._ends.update((source, target))
        onward: INetStream | None = None
        try:
            onward = await self.opened_to(target, source)
            status = Status.CONNECTION_FAILED if onward is None else Status.OK
            await say(stream, HopMessage(type=HopMessage.STATUS, status=status, limit=_limit()))
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
            await say(stream, StopMessage(type=StopMessage.CONNECT, peer=PeerId(id=source), limit=_limit()))
            await hear(stream, answer)
        except (*ERRORS, trio.TooSlowError) as exc:
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
                    self._num_bytes += len(data)
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


def _limit() -> Limit:
    return Limit(duration=int(MAX_CIRCUIT_S), data=MAX_CIRCUIT_BYTES)
