"""A Kademlia DHT of all nodes: how long a lookup takes, what it costs, at which nodes it ends.

Node ids are hashes. A node's routing table has up to K random nodes of each bucket, as tables look after a while. A
request to a node that is not connected takes COLD_RTTS round trips (TCP, the choice of Noise, Noise, the choice of
yamux, the stream's protocol, the request), to a connected one WARM_RTTS. ``dead_share`` of all nodes are gone but still
in tables: each costs its asker DIAL_DEADLINE_S. Latencies come from ``links.Homes``. Not modelled: queues at busy nodes
and lost packets.
"""

import heapq
import random
from bisect import insort
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from mycelia.proto.kademlia.lookup import Lookup
from mycelia.sim.links import Homes
from mycelia.sim.node import peer_id

K = 20
ALPHA = 10
"""Requests per round, in py-libp2p 0.8.1."""
ENOUGH = 3
"""As in node/network/libp2p/kademlia/kademlia.py."""
COLD_RTTS, WARM_RTTS = 6, 2
DIAL_DEADLINE_S = 5.0
"""As in node/network/libp2p/outbound.py."""
REPLICAS = 8
"""Nodes that keep the record of a prefix, as in node/network/libp2p/kademlia/kademlia.py."""
NUM_CONNECTED = 32
"""Nodes that a node is connected with at any time."""

PEER_BYTES = 270
"""A peer in an answer: id 38, two addresses, its signed record 200."""
REQUEST_BYTES, HANDSHAKE_BYTES, ADD_PROVIDER_BYTES = 130, 1_100, 650


@dataclass(frozen=True)
class Found:
    seconds: float
    received_bytes: int
    sent_bytes: int
    num_asked: int
    is_found: bool
    """Whether a node that keeps the record answered."""


def _point(key: bytes) -> int:
    return int.from_bytes(blake3(key).digest(length=8), "big")


class Kademlia:
    """All nodes' routing tables, made on first use."""

    def __init__(self, homes: Homes, num_nodes: int, rng: random.Random, dead_share: float = 0.1) -> None:
        self._homes = homes
        self._rng = rng
        ids = [blake3(peer_id(number)).digest(length=8) for number in range(num_nodes)]
        self._ids = [int.from_bytes(key, "big") for key in ids]
        self._order = sorted(range(num_nodes), key=self._ids.__getitem__)
        self._sorted = np.array([self._ids[number] for number in self._order], dtype=np.uint64)
        self.is_dead = [rng.random() < dead_share for _ in range(num_nodes)]
        self._tables: dict[int, list[int]] = {}
        self._connected: dict[int, set[int]] = {}

    def holders(self, key: bytes) -> list[int]:
        """The REPLICAS live nodes nearest to ``key``, which keep its records."""
        target = _point(key)
        live = (node for node in range(len(self._ids)) if not self.is_dead[node])
        return heapq.nsmallest(REPLICAS, live, key=lambda node: self._ids[node] ^ target)

    def find_nearest(self, source: int, key: bytes) -> Found:
        """A lookup of the nodes nearest to ``key``, in rounds as py-libp2p makes them: ALPHA at once, the next ones
        when all have answered or timed out, until the K nearest have."""
        target = _point(key)
        asking = _Asking(self, source, target)
        left = [(self._ids[node] ^ target, node) for node in self.nearest_known(source, target)]
        heard = {node for _, node in left}
        heapq.heapify(left)
        answered: list[int] = []
        while left and (len(answered) < K or left[0][0] < answered[K - 1]):
            for _, node in [heapq.heappop(left) for _ in range(min(ALPHA, len(left)))]:
                asking.ask(node)
            while asking.under_way:
                node, closer = asking.wait()
                if closer is not None:
                    insort(answered, self._ids[node] ^ target)
                for other in set(closer or ()) - heard - {source}:
                    heard.add(other)
                    heapq.heappush(left, (self._ids[other] ^ target, other))
        return asking.found(is_found=False)

    def find_providers(self, source: int, key: bytes, holders: Collection[int]) -> Found:
        """A lookup of providers as a node makes it for prefixes (``proto/kademlia/lookup.py``): over when the first of
        ``holders``, which keep the records, has answered, or when the ENOUGH nearest of all have and are no holders."""
        target = _point(key)
        asking, lookup = _Asking(self, source, target), Lookup[int](target, ENOUGH)
        for node in self.nearest_known(source, target):
            lookup.hear(node, self._ids[node])
        is_found = False
        while not lookup.is_over:
            for node in lookup.next_peers():
                asking.ask(node)
            node, closer = asking.wait()
            if closer is None:
                lookup.failed(node)
                continue
            for other in closer:
                if other != source:
                    lookup.hear(other, self._ids[other])
            lookup.answered(node)
            if node in holders:
                is_found = True
                lookup.stop()
        return asking.found(is_found)

    def provide_bytes(self, found: Found) -> int:
        """Bytes sent and received by a provider whose lookup ``found`` where to put its record; at worst, if it is
        connected with none of the nodes."""
        return found.sent_bytes + found.received_bytes + REPLICAS * (ADD_PROVIDER_BYTES + HANDSHAKE_BYTES)

    def connect_s(self, one: int, other: int) -> float:
        """Seconds from a dial until the digest of ``other`` has come: a connection, hello, question and repair."""
        return self._rtt(one, other) * (COLD_RTTS - 1 + 0.5 + WARM_RTTS)

    def is_connected(self, source: int, node: int) -> bool:
        return node in self._connections(source)

    def nearest_known(self, node: int, target: int) -> list[int]:
        """The answer of ``node`` when asked for the nodes nearest to ``target``."""
        return heapq.nsmallest(K, self._table(node), key=lambda other: self._ids[other] ^ target)

    def request_s(self, source: int, node: int, is_warm: bool) -> float:
        if self.is_dead[node]:
            return DIAL_DEADLINE_S
        return self._rtt(source, node) * (WARM_RTTS if is_warm else COLD_RTTS)

    def _rtt(self, one: int, other: int) -> float:
        return float(self._homes.rtt(np.array([one]), np.array([other]))[0, 0])

    def _connections(self, source: int) -> set[int]:
        """The nodes that ``source`` is connected with: random live ones of its table."""
        if source not in self._connected:
            live = [node for node in self._table(source) if not self.is_dead[node]]
            self._connected[source] = set(self._rng.sample(live, min(NUM_CONNECTED, len(live))))
        return self._connected[source]

    def _table(self, node: int) -> list[int]:
        """Up to K random nodes of each bucket: those that share exactly this many first bits with it."""
        if node not in self._tables:
            table: list[int] = []
            low, high = 0, len(self._order)
            for bit in range(63, -1, -1):
                start = (self._ids[node] >> bit ^ 1) << bit
                first, last = self._range(start, start + (1 << bit))
                table += [self._order[i] for i in self._rng.sample(range(first, last), min(K, last - first))]
                own = self._ids[node] >> bit << bit
                low, high = self._range(own, own + (1 << bit))
                if high - low <= 1:
                    break
            self._tables[node] = table
        return self._tables[node]

    def _range(self, start: int, end: int) -> tuple[int, int]:
        bounds: npt.NDArray[np.intp] = np.searchsorted(self._sorted, np.array([start, end - 1], dtype=np.uint64))
        return int(bounds[0]), int(np.searchsorted(self._sorted, np.uint64(end - 1), side="right"))


class _Asking:
    """Requests of one lookup in flight, and what they cost."""

    def __init__(self, dht: Kademlia, source: int, target: int) -> None:
        self._dht, self._source, self._target = dht, source, target
        self.under_way: list[tuple[float, int]] = []
        self._now, self._received, self._sent, self._num_asked = 0.0, 0, 0, 0

    def ask(self, node: int) -> None:
        is_warm = self._dht.is_connected(self._source, node)
        self._num_asked += 1
        self._sent += REQUEST_BYTES + (0 if is_warm else HANDSHAKE_BYTES)
        heapq.heappush(self.under_way, (self._now + self._dht.request_s(self._source, node, is_warm), node))

    def wait(self) -> tuple[int, list[int] | None]:
        """The next request that ends: the asked node, and its reply, None if it is gone."""
        self._now, node = heapq.heappop(self.under_way)
        if self._dht.is_dead[node]:
            return node, None
        closer = self._dht.nearest_known(node, self._target)
        is_warm = self._dht.is_connected(self._source, node)
        self._received += PEER_BYTES * len(closer) + (0 if is_warm else HANDSHAKE_BYTES)
        return node, closer

    def found(self, is_found: bool) -> Found:
        return Found(self._now, self._received, self._sent, self._num_asked, is_found)
