"""Nodes of the local network, found by multicast DNS: what this node tells there, and which of those it hears it dials.

Anybody in the network can claim any number of peers at any of its addresses, so few are dialled a minute, and few of
them at one address. Programs that are no nodes of Mycelia answer there, too: such a connection ends at once.
"""

import random
from collections.abc import Sequence

import structlog
import trio
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.attempts import Attempts
from mycelia.node.network.libp2p.discovery import PEER_LONGEST_PAUSE_S, Discovery
from mycelia.node.network.libp2p.host import Host
from mycelia.node.network.mdns.interfaces import LocalNetwork
from mycelia.node.network.mdns.records import Records
from mycelia.node.network.mdns.service import MulticastDns
from mycelia.node.network.network import DialError
from mycelia.node.network.supervise import supervised
from mycelia.node.peer_id import peer_text
from mycelia.proto.admission.limits import Limits, TokenBucket

log = structlog.get_logger()

DIAL_RATE, DIAL_BURST = 16 / 60, 16.0
"""Peers a second that are dialled because they were heard, and at once."""
HOST_RATE, HOST_BURST = 4 / 60, 4.0
"""The same for those that one machine tells of, and for those at one IP address."""
MAX_HOSTS = 1_024
IDENTIFY_S = 5.0
WHAT = "local network (mDNS)"


class Neighbours:
    """What one node has to do with its local networks. ``run`` must be running while it is used."""

    def __init__(self, host: Host, discovery: Discovery, attempts: Attempts, rng: random.Random) -> None:
        self._host = host
        self._discovery = discovery
        self._attempts = attempts
        self._rng = rng
        self._dials = TokenBucket(DIAL_RATE, DIAL_BURST, 0.0)
        self._hosts: Limits[str] = Limits(HOST_RATE, HOST_BURST, MAX_HOSTS)
        self._senders: Limits[str] = Limits(HOST_RATE, HOST_BURST, MAX_HOSTS)
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Never returns, unless this node cannot be reached from any other machine."""
        if all(map(addresses.is_loopback, self._listening())):
            self._note("off: this node listens on loopback only", "give it an address of the network: --listen")
            return
        access = self._host.settings.access
        while True:
            records = Records(access.key if access else self._host.settings.swarm_key, self._rng)
            mdns = MulticastDns(records, self.told, self._heard, self._note, self._rng)
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(supervised, mdns.run)
                self._nursery.start_soon(self._ask_when_alone, mdns)
                if access is None:
                    await trio.sleep_forever()
                else:
                    await access.new_key()
                self._nursery.cancel_scope.cancel()

    async def _ask_when_alone(self, mdns: MulticastDns) -> None:
        while True:
            await self._host.table.lost.wait()
            if not len(self._host.table):
                mdns.ask_again()

    def told(self, network: LocalNetwork) -> list[str]:
        """The full addresses at which machines of a network can dial this node."""
        found: list[str] = []
        for address in self._listening():
            family, host, rest = str(address).split("/", 3)[1:]
            if family != addresses.family_of(str(network.ip)):
                continue
            if addresses.is_wildcard(address):
                host = str(network.ip)
            if host in network:
                found.append(f"/{family}/{host}/{rest}/p2p/{peer_text(self._host.settings.identity.peer_id)}")
        return found

    def _listening(self) -> list[Multiaddr]:
        bound = [str(address).partition("/p2p/")[0] for address in self._host.raw.get_transport_addrs()]
        return [Multiaddr(text) for text in bound]

    def _note(self, says: str, fix: str) -> None:
        self._attempts.note(WHAT, says, fix)

    def _heard(self, peer: bytes, candidates: Sequence[Multiaddr], sender: str) -> None:
        """Dials a peer at one of the addresses, unless enough are connected or were tried."""
        table, now = self._host.table, trio.current_time()
        if len(table) >= self._host.settings.target_peers or not self._discovery.is_due(peer):
            return
        usable = [one for one in candidates if self._hosts.has(addresses.host_of(str(one)), now)]
        if usable and self._nursery is not None and self._senders.take(sender, now) and self._dials.take(now):
            self._hosts.take(addresses.host_of(str(usable[0])), now)
            self._nursery.start_soon(supervised, self._meet, peer, usable[:1])

    async def _meet(self, peer: bytes, candidates: list[Multiaddr]) -> None:
        was_alone = not len(self._host.table)
        error = await self._discovery.try_peer(peer, candidates)
        if isinstance(error, DialError):
            self._attempts.note_all(error.failures)
        if error is not None:
            return
        if not await self._is_node(peer):
            log.info("neighbour_is_no_node", peer=peer_text(peer))
            self._attempts.note(addresses.place_of(candidates[0]), "is another program that speaks libp2p")
            self._discovery.leave_alone(peer, PEER_LONGEST_PAUSE_S)
            await self._host.disconnect(peer)
            return
        log.info("neighbour_found", peer=peer_text(peer), address=str(candidates[0]))
        if was_alone:
            self._discovery.back_online()

    async def _is_node(self, peer: bytes) -> bool:
        """Whether the peer says that it speaks a protocol of Mycelia. True while it says nothing."""
        with trio.move_on_after(IDENTIFY_S):
            while peer in self._host.table:
                try:
                    if protocols := self._host.raw.get_peerstore().get_protocols(ID(peer)):
                        return any(name.startswith("/mycelia/") for name in protocols)
                except PeerStoreError:
                    pass
                await trio.sleep(0.1)
        return True
