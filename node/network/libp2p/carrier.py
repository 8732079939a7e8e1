"""The relays of the open network, for a node of a private swarm that has no member in the open.

A second, plain host in the same process connects with nodes of the open network, takes places at them as any node
behind a router does, and opens circuits through them. The private swarm's key, Noise and all else are inside the
circuit: a relay learns the peer ids and IP addresses of both ends and how much they send, and nothing of the swarm. The
same nodes tell whether this machine can be dialled.

Members that were away may have places at other relays now than those that this node remembers. A node that is connected
with no member asks the relays it is connected with for each member: nodes with the same bootstrap list find each other.
"""

import random
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import structlog
import trio

from mycelia.node.network import addresses
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.libp2p.outbound import Origin
from mycelia.node.network.libp2p.peers import PeerTable
from mycelia.node.network.network import MessageStream, NetworkError, NetworkSettings, Reachability
from mycelia.node.network.supervise import supervised
from mycelia.node.peer_id import peer_text
from mycelia.node.signals import Signal

log = structlog.get_logger()

SEEK_EVERY_S, SETTLE_S = 15.0, 1.0
MAX_RELAYS, MAX_SOUGHT = 4, 16
"""Relays that are asked, and members that each of them is asked for."""


class Carrier:
    """Both networks of a node, as the check of its reachability needs them (``queries/reach.py``)."""

    def __init__(self, private: Libp2pNetwork, public: Libp2pNetwork) -> None:
        self._private = private
        self._public = public
        self.came = Signal()
        """A peer of either network has connected."""
        own, carried = private.relaying, public.relaying
        private.host.circuits = lambda: [*own.circuits(), *carried.circuits()]
        private.host.outbound.carrier = public.host.outbound
        public.host.outbound.users.append(private.table)
        public.host.observed.share(private.host.observed)  # (for hole punching)
        carried.serve_circuit = private.host.inbound.serve_circuit
        carried.on_change = private.announce

    async def run(self) -> None:
        """Never returns."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervised, self._seek_members)
            nursery.start_soon(self._drop_events)
            nursery.start_soon(self._follow, self._private.table)
            nursery.start_soon(self._follow, self._public.table)

    async def _drop_events(self) -> None:
        async for _ in self._public.events():
            pass  # (nothing of the open network is used, but its queue must not grow)

    async def _follow(self, table: PeerTable) -> None:
        while True:
            await table.changed.wait()
            self.came.notify()

    async def _seek_members(self) -> None:
        """Dials members through the relays that this node is connected with, while it is connected with no member."""
        while True:
            came = self.came.next
            if not len(self._private.table):
                await self._look_for_members()
            with trio.move_on_after(SEEK_EVERY_S):
                await came.wait()
                await trio.sleep(SETTLE_S)  # (the contacts that are remembered are dialled at the same time)

    async def _look_for_members(self) -> None:
        access, public = self._private.host.settings.access, self._public
        wanted = [member for member in access.members() if member != public.peer_id] if access else []
        for relay in public.peers()[:MAX_RELAYS]:
            for member in random.sample(wanted, min(MAX_SOUGHT, len(wanted))):
                if len(self._private.table):
                    return
                known = public.host.addresses_of(relay)[:1]
                try:
                    candidates = [addresses.circuit(address, relay) for address in known]
                    await self._private.host.outbound.dial(member, candidates, Origin.REMEMBERED)
                except NetworkError as exc:
                    log.debug("member_not_found", peer=peer_text(member), relay=peer_text(relay), reason=str(exc))

    def peers(self) -> list[bytes]:
        return [*self._public.peers(), *self._private.peers()]

    def addresses(self) -> list[str]:
        return self._private.addresses()

    def remote_address(self, peer: bytes) -> str:
        return self._public.remote_address(peer) or self._private.remote_address(peer)

    async def open(self, peer: bytes, protocol: str, waits: bool = True) -> MessageStream:
        network = self._public if peer in self._public.table else self._private
        return await network.open(peer, protocol, waits)

    def set_reachability(self, reachability: Reachability) -> None:
        self._private.set_reachability(reachability)
        self._public.relaying.want(reachability.relayed)

    def interfaces_changed(self, hosts: Collection[str]) -> None:
        self._private.interfaces_changed(hosts)
        self._public.interfaces_changed(hosts)


@asynccontextmanager
async def open_carrier(private: Libp2pNetwork, settings: NetworkSettings) -> AsyncIterator[Carrier]:
    """Gives ``private`` the relays of the open network while the body runs. settings: of the plain host, with the nodes
    of the open network as ``bootstrap``."""
    async with open_network(settings) as public, trio.open_nursery() as nursery:
        carrier = Carrier(private, public)
        nursery.start_soon(carrier.run)
        yield carrier
        nursery.cancel_scope.cancel()
