"""This node's use of relays: the places at which peers reach it when they cannot dial it, and circuits to such nodes.
``circuits.py`` tells what they are."""

import random
from collections.abc import Callable, Iterable

import structlog
import trio
from libp2p.abc import INetConn, INetStream
from libp2p.connection_types import ConnectionType
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.rcmgr import Direction
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, Status, StopMessage
from multiaddr import Multiaddr

from mycelia.node.network import addresses
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
from mycelia.node.network.libp2p.peers import PeerTable, is_relayed
from mycelia.node.network.network import NetworkError
from mycelia.node.peer_id import peer_text
from mycelia.node.signals import Signal

log = structlog.get_logger()

ANSWER_DEADLINE_S = 3 * STEP_DEADLINE_S
"""Time for a relay's answer to CONNECT, before which it has to ask the node."""
NUM_RELAYS = 2
"""Relays of one node at a time: it stays reachable when one of them leaves."""
RENEW_S = RESERVATION_S / 4
RETRY_S = 10.0
REFUSED_S = 600.0
"""Time after which a peer that refused a place is asked again."""


class Relaying:
    """One node as a client of relays."""

    def __init__(self, host: Host, table: PeerTable, rng: random.Random, on_change: Callable[[], None]) -> None:
        """rng: draws this node's relays. on_change: called when this node's addresses at relays have changed."""
        self._rng = rng
        self._host = host
        self._table = table
        self._families: frozenset[str] = frozenset()
        """The address families in which this node is to be reachable through relays."""
        self._changed = Signal()
        """This node's places are to be checked at once."""
        self.relays: dict[bytes, tuple[list[Multiaddr], float]] = {}
        """Relay at which this node has a place -> (the relay's addresses, the time of the reservation)."""
        self._refused: dict[bytes, float] = {}
        """Peer that refused a place -> the time from which it may be asked again."""
        self.on_change = on_change
        self.serve_circuit = host.inbound.serve_circuit
        """Serves the circuits that arrive."""
        host.circuits = self.circuits
        host.outbound.open_circuit = self.open_circuit
        host.serve(STOP_PROTOCOL, self._serve_stop)

    def want(self, families: frozenset[str]) -> None:
        """Sets the address families in which this node needs relays; empty: it needs none."""
        if families != self._families:
            self._families = families
            self._changed.notify()

    def forget(self, peer: bytes) -> None:
        """Seeks another relay at once if the disconnected peer was one."""
        if self.relays.pop(peer, None) is not None:
            self._changed.notify()

    def circuits(self) -> list[Multiaddr]:
        return [addresses.circuit(address, relay) for relay, (known, _) in self.relays.items() for address in known]

    async def keep_reserved(self) -> None:
        """Makes and renews this node's reservations while it needs relays. Never returns."""
        told: list[Multiaddr] = []
        while True:
            changed, peer_came = self._changed.next, self._table.changed.next
            await self._seek_places(trio.current_time())
            if self.circuits() != told:
                told = self.circuits()
                log.info("relays_changed", relays=[peer_text(relay) for relay in self.relays])
                self.on_change()
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
                    await say(stream, HopMessage(type=HopMessage.RESERVE))
                    await hear(stream, answer)
                finally:
                    await Pipe(stream).close()
        except (NetworkError, *ERRORS, trio.TooSlowError) as exc:
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
        await hear(stream, request)
        is_direct = stream.muxed_conn.get_connection_type() == ConnectionType.DIRECT
        if relay not in self.relays or not is_direct or request.type != StopMessage.CONNECT:
            await say(stream, StopMessage(type=StopMessage.STATUS, status=Status.PERMISSION_DENIED))
            await stream.close()
            return
        await say(stream, StopMessage(type=StopMessage.STATUS, status=Status.OK))
        address = addresses.circuit(self.relays[relay][0][0], relay)
        await self.serve_circuit(Pipe(stream), address)

    async def open_circuit(self, relay: bytes, target: bytes) -> Pipe:
        """A circuit to ``target`` through a connected relay. Raises NetworkError."""
        stream = await self._host.outbound.open(relay, HOP_PROTOCOL, direct=True)
        answer = HopMessage()
        try:
            await say(stream, HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=target)))
            await hear(stream, answer, ANSWER_DEADLINE_S)
        except BaseException as exc:
            await Pipe(stream).close()
            if isinstance(exc, ERRORS):
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
    """Whether this node dialled the other end's address, and others can dial it, too."""
    is_outbound = isinstance(connection, SwarmConn) and connection.direction == Direction.OUTBOUND
    return is_outbound and not is_relayed(connection)
