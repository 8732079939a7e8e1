"""The way to the first peers: bootstrap addresses and lists of them, nodes remembered from earlier runs, and nodes that
were heard in the local network. A peer that is down is tried again with growing, jittered pauses, for ever.

A node that finds nobody says what it tried and what came of it (``attempts``).
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio
from multiaddr import Multiaddr

from mycelia.node.errors import Attempt
from mycelia.node.network import addresses
from mycelia.node.network.attempts import Attempts
from mycelia.node.network.libp2p.discovery import PEER_LONGEST_PAUSE_S, STABLE_S, Discovery
from mycelia.node.network.libp2p.host import Host
from mycelia.node.network.libp2p.neighbours import Neighbours
from mycelia.node.network.libp2p.outbound import Origin
from mycelia.node.network.names import NameFailure
from mycelia.node.network.network import DialError, NetworkError
from mycelia.node.network.supervise import supervised
from mycelia.node.peer_id import peer_text

log = structlog.get_logger()

BOOTSTRAP_FIRST_PAUSE_S = 1.0
BOOTSTRAP_LONGEST_PAUSE_S = 60.0
ALONE_LONGEST_PAUSE_S = 5.0
"""The same while no peer is connected: a node is back soon after its line is."""
HEAL_S = 600.0
"""Time after which a lost bootstrap peer is dialled again even though enough others are connected."""
FEW_PEERS = 8
"""Remembered nodes are dialled only while fewer peers than this are connected. Kademlia finds more."""
REMEMBERED_DIALS, LIST_DIALS = 4, 8
"""Remembered nodes, and nodes of lists, that are dialled at once: three quarters of the host's dials, so that others
need not wait."""
ALONE_S = 15.0
"""Time without a peer after which the node says what it tried."""
REMEMBERED, NO_BOOTSTRAP = "nodes of earlier runs", "bootstrap nodes"

Dial = Callable[[], Awaitable[Sequence[bytes]]]
"""Connects with nodes to join through and returns them. Raises NetworkError if there is none."""


class Joining:
    """The search of one node for its first peers."""

    def __init__(self, host: Host, discovery: Discovery, rng: random.Random) -> None:
        """rng: draws this node's name in its local networks, and pauses there."""
        self._host = host
        self._rng = rng
        self._table = host.table
        self._discovery = discovery
        self.attempts = Attempts()
        self._bootstrap: dict[bytes, list[Multiaddr]] = {}
        self._lists: list[Multiaddr] = []
        self._list_dials = trio.CapacityLimiter(LIST_DIALS)
        for text in host.settings.bootstrap:
            peer, address = addresses.parse_bootstrap(text)
            if not peer:
                self._lists.append(address)
            elif peer != host.settings.identity.peer_id:
                self._bootstrap.setdefault(peer, []).append(address)

    async def run(self) -> None:
        """Never returns."""
        async with trio.open_nursery() as nursery:
            for peer, candidates in self._bootstrap.items():
                nursery.start_soon(supervised, self._keep_peer, peer, candidates)
            for name in self._lists:
                nursery.start_soon(supervised, self._keep_list, name)
            nursery.start_soon(supervised, self._keep_remembered)
            if self._host.settings.overlay:
                nursery.start_soon(supervised, self._tell_when_alone)
            if self._host.settings.mdns:
                neighbours = Neighbours(self._host, self._discovery, self.attempts, self._rng)
                nursery.start_soon(supervised, neighbours.run)

    async def dial_list(self, name: Multiaddr, is_one_enough: bool = False) -> list[bytes]:
        """Connects with the nodes that a ``/dnsaddr`` address lists, or with the first that answers, and returns them.
        Raises DialError."""
        me, failures, reached = self._host.settings.identity.peer_id, list[Attempt](), list[bytes]()
        try:
            found = await self._host.outbound.names.peers(name)
        except NameFailure as exc:
            raise DialError(str(name), [Attempt(addresses.place_of(name), str(exc), exc.fix)]) from exc

        async def dial(peer: bytes, candidates: Sequence[Multiaddr]) -> None:
            try:
                async with self._list_dials:
                    await self._host.outbound.dial(peer, candidates)
            except DialError as exc:
                failures.extend(exc.failures)
                return
            reached.append(peer)
            self._discovery.introduce(peer)
            if is_one_enough:
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for peer, candidates in found.items():
                if peer != me:
                    nursery.start_soon(dial, peer, candidates)
        if not reached:
            raise DialError(str(name), failures)
        return reached

    async def _keep_peer(self, peer: bytes, candidates: list[Multiaddr]) -> None:
        async def dial() -> list[bytes]:
            await self._host.outbound.dial(peer, candidates)
            self._discovery.introduce(peer)
            return [peer]

        await self._keep(" ".join(f"{address}/p2p/{peer_text(peer)}" for address in candidates), dial)

    async def _keep_list(self, name: Multiaddr) -> None:
        await self._keep(str(name), lambda: self.dial_list(name))

    async def _keep(self, whom: str, dial: Dial) -> None:
        """Dials again whenever none of the nodes is connected. Never returns."""
        pause_s, logged = BOOTSTRAP_FIRST_PAUSE_S, ""
        while True:
            was_alone = not len(self._table)
            try:
                peers = await dial()
            except NetworkError as exc:
                reason = str(exc)
                (log.debug if reason == logged else log.info)("bootstrap_unreachable", peer=whom, reason=reason)
                logged = reason
                self.attempts.note_all(exc.failures if isinstance(exc, DialError) else ())
            else:
                connected_at, logged = trio.current_time(), ""
                if was_alone:
                    self._discovery.back_online()
                self._discovery.start_over()
                for peer in peers:
                    await self._table.wait_gone(peer)
                if trio.current_time() - connected_at > STABLE_S:
                    pause_s = BOOTSTRAP_FIRST_PAUSE_S
            await self._wait_for_few_peers()
            await trio.sleep(self._discovery.jittered(pause_s))
            pause_s = min(2 * pause_s, self._longest_pause_s())

    async def _wait_for_few_peers(self) -> None:
        """Returns when few peers are connected, at the latest after HEAL_S. A node with enough peers leaves the places
        at its bootstrap peers to newcomers; but halves of a swarm that do not know each other find together there."""
        with trio.move_on_after(self._discovery.jittered(HEAL_S)):
            while len(self._table) >= FEW_PEERS:
                await self._table.lost.wait()

    async def _keep_remembered(self) -> None:
        """Dials remembered nodes, round after round, while few peers are connected. Never returns."""
        pause_s = BOOTSTRAP_FIRST_PAUSE_S
        while True:
            while len(self._table) >= FEW_PEERS:
                await self._table.lost.wait()
            was_alone = not len(self._table)
            await self._dial_remembered(self._longest_pause_s() if was_alone else PEER_LONGEST_PAUSE_S)
            if was_alone and len(self._table):
                self._discovery.back_online()
            with trio.move_on_after(self._discovery.jittered(pause_s)) as pause:
                await self._table.lost.wait()
            pause_s = min(2 * pause_s, self._longest_pause_s()) if pause.cancelled_caught else BOOTSTRAP_FIRST_PAUSE_S

    def _longest_pause_s(self) -> float:
        return BOOTSTRAP_LONGEST_PAUSE_S if len(self._table) else ALONE_LONGEST_PAUSE_S

    async def _dial_remembered(self, longest_pause_s: float) -> None:
        """Dials each remembered node that is due, until enough peers are connected."""
        wanted: dict[bytes, list[Multiaddr]] = {}
        for text in self._host.settings.remembered():
            peer, address = addresses.parse_peer(text)
            wanted.setdefault(peer, []).append(address)
        waiting, says = iter(wanted.items()), Counter[str]()

        async def dial_some() -> None:
            for peer, candidates in waiting:
                if len(self._table) >= FEW_PEERS:
                    return
                if self._discovery.is_due(peer):
                    error = await self._discovery.try_peer(peer, candidates, longest_pause_s, Origin.REMEMBERED)
                    if isinstance(error, DialError):
                        says[error.failures[0].says if error.failures else "no address"] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(REMEMBERED_DIALS):
                nursery.start_soon(dial_some)
        if says:
            self.attempts.note(REMEMBERED, ", ".join(f"{count} {text}" for text, count in says.most_common(3)))

    async def _tell_when_alone(self) -> None:
        """Writes a line to the log each time that no peer was connected for ALONE_S. Never returns."""
        while True:
            with trio.move_on_after(ALONE_S):
                await self._connected()
            if not len(self._table):
                log.warning("found_nobody", tried=[str(one) for one in self.tried()])
                await self._connected()
            while len(self._table):
                await self._table.lost.wait()

    async def _connected(self) -> None:
        """Returns when a peer is connected, and forgets what was tried before."""
        while not len(self._table):
            await self._table.changed.wait()
        self.attempts.clear()

    def tried(self) -> list[Attempt]:
        """What was tried while no peer is connected; otherwise empty."""
        if len(self._table):
            return []
        rows = self.attempts.rows()
        if not self._bootstrap and not self._lists:
            rows.append(Attempt(NO_BOOTSTRAP, "none is known", "give the address of a node: --bootstrap MULTIADDR"))
        return rows
