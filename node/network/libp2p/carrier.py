"""The relays of the open network, for a node of a private swarm that has no member in the open.

A second, plain host in the same process connects with nodes of the open network, takes places at them as any node
behind a router does, and opens circuits through them. The private swarm's key, Noise and all else are inside the
circuit: a relay learns the peer ids and IP addresses of both ends and how much they send, and nothing of the swarm. The
same nodes tell whether this machine can be dialled.
"""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import trio

from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.libp2p.peers import PeerTable
from mycelia.node.network.network import MessageStream, NetworkSettings, Reachability


class Carrier:
    """Both networks of a node, as the check of its reachability needs them (``queries/reach.py``)."""

    def __init__(self, private: Libp2pNetwork, public: Libp2pNetwork) -> None:
        self._private = private
        self._public = public
        self._came = trio.Event()
        own, carried = private.relaying, public.relaying
        private.host.circuits = lambda: [*own.circuits(), *carried.circuits()]
        private.host.outbound.carrier = public.host.outbound
        public.host.outbound.users.append(private.table)
        public.host.observed.share(private.host.observed)  # (for hole punching)
        carried.serve_circuit = private.host.inbound.serve_circuit
        carried.on_change = private.announce

    async def follow(self) -> None:
        """Never returns."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow, self._private.table)
            nursery.start_soon(self._follow, self._public.table)

    async def _follow(self, table: PeerTable) -> None:
        while True:
            await table.changed.wait()
            self._came.set()
            self._came = trio.Event()

    def peers(self) -> list[bytes]:
        return [*self._public.peers(), *self._private.peers()]

    def came(self) -> trio.Event:
        """The event that the next peer to connect sets."""
        return self._came

    def addresses(self) -> list[str]:
        return self._private.addresses()

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
        nursery.start_soon(carrier.follow)
        yield carrier
        nursery.cancel_scope.cancel()
