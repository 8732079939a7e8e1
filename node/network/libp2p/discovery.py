"""The search for peers through Kademlia, which goes on for as long as a node runs: for nodes of the namespaces that
this node serves, and for providers of prefixes and models. ``joining.py`` finds the first peer.

In a split namespace a node first looks for its own cell, under the cell's own key. It still provides the key of the
namespace, under which newcomers and clients find the model.

A peer that is down is tried again with growing, jittered pauses, for ever. Provider records outlive their nodes by up
to two days, so they are only hints: the handshake of a dial has to prove each one.
"""

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
import trio
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from mycelia.node.network.libp2p.host import Host
from mycelia.node.network.libp2p.kademlia.kademlia import Kademlia
from mycelia.node.network.libp2p.outbound import Origin
from mycelia.node.network.libp2p.peers import PeerTable
from mycelia.node.network.network import NetworkError
from mycelia.node.network.supervise import supervised
from mycelia.node.peer_id import peer_text
from mycelia.node.signals import Signal
from mycelia.proto.cells.cells import ROOT, Cell, address_of
from mycelia.proto.kademlia.keys import model_key, prefix_key

log = structlog.get_logger()

STABLE_S = 10.0
"""After a connection of this length the pauses start again from the shortest."""
LOOKUP_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Pauses between the first lookups after the first peer connected. Nodes that start together meet within seconds."""
LOOKUP_INTERVAL_S = 60.0
PROVIDE_EVERY_LOOKUPS = 5
"""In the steady state one lookup in this many also announces. Records last a day, but nodes that keep them leave."""
LOOKUP_DEADLINE_S = 30.0
PEER_FIRST_PAUSE_S = 5.0
PEER_LONGEST_PAUSE_S = 600.0
MAX_BACKOFFS = 1_024
MAX_HINTS = 1_024
"""Peers found by lookups of prefixes and models whose addresses are kept."""
OUTSIDERS_SHARE = 4
"""A node in a cell leaves one in this many places of ``target_peers`` to nodes of other cells."""


@dataclass
class _Backoff:
    pause_s: float
    until: float


class Discovery:
    """The search of one node. ``rng`` jitters the pauses, shuffles providers and draws in Kademlia."""

    def __init__(self, host: Host, rng: random.Random) -> None:
        self._host = host
        self._table: PeerTable = host.table
        self._rng = rng
        self.dht = Kademlia(host, rng) if host.settings.overlay else None
        self.backoffs: OrderedDict[bytes, _Backoff] = OrderedDict()
        self._hints: OrderedDict[bytes, list[Multiaddr]] = OrderedDict()
        self._restarted = Signal()

    async def run(self) -> None:
        """Never returns."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervised, self._host.keep_peerstore)
            if self.dht is not None:
                nursery.start_soon(supervised, self.dht.run)

    def start_over(self) -> None:
        """Starts the lookups and announcements again: after a (re)connection with a bootstrap peer, after the first
        peer when none was connected, and after a change of this node's addresses."""
        self._restarted.notify()

    def back_online(self) -> None:
        """Forgets which peers and addresses could not be dialled, and starts over: this machine was offline, or has
        another line now. A peer that is connected keeps its pause: if it bans this node, others come first."""
        self.backoffs = OrderedDict((peer, one) for peer, one in self.backoffs.items() if peer in self._table)
        self._host.outbound.forget_silent()
        self.start_over()

    async def seek(self, namespace: bytes, cell: Cell = ROOT) -> None:
        """Provides the key of ``cell`` and dials its other providers, again and again. With enough of them connected, a
        node looks up only what it needs to announce. Never returns."""
        num_lookups = 0
        key = model_key(namespace, cell.suffix())
        while self.dht is not None:
            while not len(self._table):
                await self._table.changed.wait()
            settled = num_lookups >= len(LOOKUP_PAUSES_S)
            restarted = self._restarted.next
            try:
                announces = not settled or num_lookups % PROVIDE_EVERY_LOOKUPS == 0
                if announces or self.room(namespace, cell) > 0:
                    with trio.fail_after(LOOKUP_DEADLINE_S):
                        providers = await self.dht.find_providers(key, announces)
                        await self.dial_providers(providers, namespace, cell)
            except Exception as exc:  # noqa: BLE001  supervisor of a lookup: peers decide what it meets
                log.debug("lookup failed", namespace=namespace.hex(), cell=cell.suffix(), error=repr(exc))
            pause_s = LOOKUP_INTERVAL_S if settled else LOOKUP_PAUSES_S[num_lookups]
            num_lookups += 1
            if num_lookups == len(LOOKUP_PAUSES_S):
                log.info("discovery_settled", peers=len(self._table))
            with trio.move_on_after(self.jittered(pause_s)):
                await restarted.wait()
                num_lookups = 0

    async def provide_prefix(self, key: bytes) -> None:
        """Announces once that this node holds the prefix of ``key``. Call it again before the record expires. Raises
        NetworkError."""
        if self.dht is None:
            raise NetworkError("a light client provides nothing")
        with _in_time(f"cannot provide {key.hex()}"):
            num_told = await self.dht.provide_prefix(prefix_key(key))
        if not num_told:
            raise NetworkError(f"nobody to keep {key.hex()}")

    async def find_prefix(self, key: bytes) -> list[bytes]:
        """Peers that provide the prefix of ``key``. Keeps their addresses for ``dial_hint``. Raises NetworkError."""
        return await self._find(prefix_key(key))

    async def find_nodes(self, namespace: bytes) -> list[bytes]:
        """Peers that serve the model of ``namespace``. Keeps their addresses for ``dial_hint``. Raises NetworkError."""
        return await self._find(model_key(namespace))

    async def _find(self, key: bytes) -> list[bytes]:
        if self.dht is None:
            raise NetworkError("a light client looks up nothing")
        with _in_time(f"cannot look up {key.hex()}"):
            found = await self.dht.find_first_providers(key)
        me = self._host.settings.identity.peer_id
        providers = {info.peer_id.to_bytes(): info.addrs for info in found if info.peer_id.to_bytes() != me}
        for peer, candidates in providers.items():
            self._hints[peer] = candidates
            self._hints.move_to_end(peer)
            if len(self._hints) > MAX_HINTS:
                self._hints.popitem(last=False)
        return list(providers)

    async def dial_hint(self, peer: bytes) -> None:
        """Connects, unless connected or tried a moment ago. Raises NetworkError if no lookup found ``peer``."""
        if peer not in self._hints:
            raise NetworkError(f"nothing is known of {peer_text(peer)}")
        if self.is_due(peer):
            await self.try_peer(peer, self._hints[peer])

    def room(self, namespace: bytes, cell: Cell) -> int:
        """The number of further nodes of ``cell`` to connect with; negative: there are more than wanted."""
        target = self._host.settings.target_peers
        if cell == ROOT:
            return target - len(self._table)
        wanted = target - target // OUTSIDERS_SHARE
        return wanted - sum(cell.holds(address_of(namespace, peer)) for peer in self._table.peers())

    def introduce(self, peer: bytes) -> None:
        """Has lookups begin at a peer that this node dialled."""
        if self.dht is not None:
            self.dht.introduce(peer)

    async def dial_providers(self, providers: list[PeerInfo], namespace: bytes, cell: Cell) -> None:
        self._rng.shuffle(providers)  # (so that nodes do not all connect to the same few)
        async with trio.open_nursery() as nursery:
            room = self.room(namespace, cell)
            for provider in providers:
                peer = provider.peer_id.to_bytes()
                if not cell.holds(address_of(namespace, peer)):
                    continue  # (no node of the cell: the record is forged)
                if self.is_due(peer) and room > 0:
                    room -= 1
                    nursery.start_soon(self.try_peer, peer, provider.addrs)

    def is_due(self, peer: bytes) -> bool:
        """Whether to dial ``peer``: it is not connected, and was not tried a moment ago."""
        if self._table.connected_s(peer) > STABLE_S:
            self.backoffs.pop(peer, None)
        backoff = self.backoffs.get(peer)
        is_wanted = peer not in self._table and peer != self._host.settings.identity.peer_id
        return is_wanted and (backoff is None or backoff.until <= trio.current_time())

    async def try_peer(
        self,
        peer: bytes,
        candidates: list[Multiaddr],
        longest_pause_s: float = PEER_LONGEST_PAUSE_S,
        origin: Origin = Origin.TOLD,
    ) -> NetworkError | None:
        """Dials a peer and sets its next pause, also after a success: one side may ban the other and disconnect. The
        pause is forgotten once the connection has lasted STABLE_S. Returns the error, if any."""
        before = self.backoffs.pop(peer, None)
        pause_s = min(2 * before.pause_s, longest_pause_s) if before else PEER_FIRST_PAUSE_S
        self.backoffs[peer] = _Backoff(pause_s, trio.current_time() + self.jittered(pause_s))
        if len(self.backoffs) > MAX_BACKOFFS:
            self.backoffs.popitem(last=False)
        try:
            await self._host.outbound.dial(peer, candidates, origin)
        except NetworkError as exc:
            log.debug("provider is not reachable", peer=peer_text(peer), reason=str(exc))
            return exc
        self.introduce(peer)
        return None

    def leave_alone(self, peer: bytes, seconds: float) -> None:
        """Lets the other searches dial ``peer`` only after ``seconds``."""
        self.backoffs[peer] = _Backoff(seconds, trio.current_time() + seconds)

    def jittered(self, seconds: float) -> float:
        return seconds * self._rng.uniform(0.75, 1.25)


@contextmanager
def _in_time(complaint: str) -> Iterator[None]:
    """Turns any error of a lookup in the DHT into a NetworkError, and raises one when the lookup takes too long."""
    try:
        with trio.fail_after(LOOKUP_DEADLINE_S):
            yield
    except Exception as exc:
        raise NetworkError(f"{complaint}: {exc!r}") from exc
