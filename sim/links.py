"""The links between nodes: latency, jitter, loss, partitions, and the mesh that gossip runs over.

Latencies come from an RTT matrix or, without one, from a model of the internet: nodes are scattered over the land's
latitudes and RTT = 38.3 ms + 0.01634 ms/km, a least-squares fit to pings between 242 cities, plus a last mile of 5 to
20 ms. Every message draws a log-normal jitter. Randomness is seeded.

Gossip is a flood over a mesh, as in gossipsub: a node that receives a message for the first time passes it to its other
neighbours, in batches (``proto/digests/batches.py``). A node receives it about D - 1 times, and down to D / 2 times in
a busy swarm. Each hop has the link's latency and loses the message with the link's loss, unlike real gossipsub, which
runs on TCP. Not modelled: the lazy pull by IHAVE/IWANT, which would bring most of what is lost within seconds (its
bytes are counted, see ``world.py``), mesh repair after a partition, and batches that are full.
"""

import gzip
import json
import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mycelia.proto.digests.batches import BATCH_S
from mycelia.proto.wire.errors import LocalError

Matrix = npt.NDArray[np.float64]

_BASE_RTT_S, _RTT_S_PER_KM = 0.0383, 0.01634e-3
_EARTH_RADIUS_KM = 6_371.0
_LAST_MILE_S = (0.005, 0.020)
_INTERVALS = 32
"""Intervals of a link that are remembered: longer than any message is on its way."""


def constant_rtt(num_nodes: int, rtt_s: float) -> Matrix:
    """The same RTT, in seconds, between all."""
    return np.full((num_nodes, num_nodes), rtt_s)


class Homes:
    """The places of ``num_nodes`` homes, scattered over the world: their RTTs, without a matrix of all pairs."""

    def __init__(self, num_nodes: int, rng: random.Random) -> None:
        self._latitude = np.array([math.asin(rng.uniform(-0.6, 0.9)) for _ in range(num_nodes)])
        self._longitude = np.array([rng.uniform(-math.pi, math.pi) for _ in range(num_nodes)])
        self._last_mile = np.array([rng.uniform(*_LAST_MILE_S) for _ in range(num_nodes)])

    def rtt(self, one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> Matrix:
        """RTTs in seconds from each of ``one`` (rows) to each of ``other`` (columns)."""
        here, there = self._latitude[one][:, None], self._latitude[other]
        apart = self._longitude[one][:, None] - self._longitude[other]
        cosine = np.sin(here) * np.sin(there) + np.cos(here) * np.cos(there) * np.cos(apart)
        distance_km = _EARTH_RADIUS_KM * np.arccos(np.clip(cosine, -1, 1))
        last_mile = self._last_mile
        rtt: Matrix = _BASE_RTT_S + _RTT_S_PER_KM * distance_km + last_mile[one][:, None] + last_mile[other]
        return rtt


def modelled_rtt(num_nodes: int, rng: random.Random) -> Matrix:
    """RTTs in seconds of ``num_nodes`` homes scattered over the world."""
    numbers = np.arange(num_nodes)
    return Homes(num_nodes, rng).rtt(numbers, numbers)


def measured_rtt(path: Path, num_nodes: int, rng: random.Random) -> Matrix:
    """RTTs in seconds of nodes in cities drawn from a file: JSON, gzipped or not, with the square matrix ``rtt_ms``.
    Raises LocalError when the file has none."""
    try:
        data = path.read_bytes()
        text = gzip.decompress(data) if path.suffix == ".gz" else data
        cities = np.asarray(json.loads(text)["rtt_ms"], dtype=np.float64) / 1000
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise LocalError(f"{path} has no RTT matrix: {exc}") from exc
    if cities.ndim != 2 or cities.shape[0] != cities.shape[1] or not np.all(np.isfinite(cities)) or np.any(cities < 0):
        raise LocalError(f"{path}: rtt_ms must be a square matrix of milliseconds")
    home = np.array([rng.randrange(len(cities)) for _ in range(num_nodes)])
    last_mile = np.array([rng.uniform(*_LAST_MILE_S) for _ in range(num_nodes)])
    rtt: Matrix = cities[np.ix_(home, home)] + last_mile[:, None] + last_mile
    return rtt


@dataclass(frozen=True)
class Partition:
    """No message passes between the two sides in [start_s, end_s); times as in ``World.now``."""

    start_s: float
    end_s: float
    side: Sequence[bool]


@dataclass(frozen=True)
class Impairment:
    added_s: float = 0.0
    loss: float = 0.0
    """Chance that a message is lost there, in addition to the loss of every hop."""


@dataclass
class _Mesh:
    """The gossip mesh of one topic. All arrays are by link, of which each edge of the mesh has two."""

    one: npt.NDArray[np.int64]
    other: npt.NDArray[np.int64]
    """The sender and the receiver. Sorted by sender, then receiver."""
    seconds: Matrix
    """Latency."""
    back: npt.NDArray[np.int64]
    """The number of the link in the other direction."""
    begun_at: Matrix
    """When the sender began its first interval."""
    used: npt.NDArray[np.int64]
    """By link and place in a ring of _INTERVALS: the number of the last interval there in which the link has a batch.
    (A message is followed to all nodes when it is published. So a batch may be known before an earlier one.)"""

    def leaves(self, ready_at: Matrix) -> tuple[Matrix, npt.NDArray[np.int64]]:
        """When a message leaves that each sender has from ``ready_at`` on, and the number of the interval: at once if
        no batch leaves in that interval, otherwise when the next one begins. Does not mutate."""
        has_it = np.isfinite(ready_at)
        number = np.floor((np.where(has_it, ready_at, 0.0) - self.begun_at) / BATCH_S).astype(np.int64)
        is_used = has_it & (self.used[np.arange(len(number)), number % _INTERVALS] == number)
        return np.where(is_used, self.begun_at + (number + 1) * BATCH_S, ready_at), number + is_used

    def note_sent(self, links: npt.NDArray[np.bool_], number: npt.NDArray[np.int64]) -> None:
        """Each of ``links`` has a batch in the interval ``number``. Mutates."""
        self.used[np.flatnonzero(links), number[links] % _INTERVALS] = number[links]


class Links:
    """All pairs of nodes. ``loss``: chance that a message is lost on one hop; ``jitter``: sigma of its log-normal."""

    def __init__(self, rtt_s: Matrix, seed: int, loss: float = 0.0, jitter: float = 0.05) -> None:
        self._one_way_s = rtt_s / 2
        self._rows: list[list[float]] = self._one_way_s.tolist()
        self._rng = random.Random(seed)
        self._numbers = np.random.default_rng(seed)
        self.loss = loss
        self._jitter = jitter
        self.partition: Partition | None = None
        self.impairments: dict[int, Impairment] = {}
        """Node -> what is wrong with its line now. It affects only gossip that passes later."""
        self._meshes: dict[Hashable, _Mesh] = {}
        self.begun_at = np.random.default_rng((seed, 1)).uniform(0.0, BATCH_S, len(rtt_s))
        """When each node began its first interval of gossip."""

    def is_cut(self, one: int, other: int, now: float) -> bool:
        cut = self.partition
        return cut is not None and cut.start_s <= now < cut.end_s and cut.side[one] != cut.side[other]

    def delay_s(self, sender: int, receiver: int, now: float) -> float | None:
        """The latency of one message; None: it is lost."""
        rng = self._rng
        if (self.loss and rng.random() < self.loss) or self.is_cut(sender, receiver, now):
            return None
        one_way = self._rows[sender][receiver]
        if self.impairments:
            for end in (sender, receiver):
                impairment = self.impairments.get(end)
                if impairment is not None:
                    if rng.random() < impairment.loss:
                        return None
                    one_way += impairment.added_s
        return one_way * math.exp(rng.gauss(0.0, self._jitter)) if self._jitter else one_way

    def round_trip_s(self, one: int, other: int) -> float:
        """The round trip without jitter; 0 from a node to itself."""
        return 2 * self._rows[one][other] if one != other else 0.0

    def set_mesh(self, edges: Sequence[tuple[int, int]], topic: Hashable = None) -> None:
        """The gossip mesh of a topic: undirected, each edge once."""
        both = sorted({*edges, *((b, a) for a, b in edges)})
        one = np.array([a for a, _ in both], dtype=np.int64)
        other = np.array([b for _, b in both], dtype=np.int64)
        used = np.full((len(both), _INTERVALS), np.iinfo(np.int64).min)
        back = np.lexsort((one, other))
        self._meshes[topic] = _Mesh(one, other, self._one_way_s[one, other], back, self.begun_at[one], used)

    def flood(
        self, source: int, now: float, is_up: npt.NDArray[np.bool_], topic: Hashable = None
    ) -> tuple[Matrix, npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """One gossip message: (seconds until each node has it, infinite if never; the neighbour it came from first;
        copies each node sent; copies each node received)."""
        assert topic in self._meshes, "set_mesh() first"
        mesh = self._meshes[topic]
        one, other, seconds = mesh.one, mesh.other, mesh.seconds
        num_nodes = len(self._rows)
        passes = is_up[one] & is_up[other]
        cut = self.partition
        if cut is not None and cut.start_s <= now < cut.end_s:
            side = np.asarray(cut.side, dtype=np.bool_)
            passes &= side[one] == side[other]
        sent_over = passes.copy()
        if self.loss:
            passes &= self._numbers.random(len(one)) >= self.loss
        if self._jitter:
            seconds = seconds * np.exp(self._numbers.normal(0.0, self._jitter, len(one)))
        if self.impairments:
            added_s, kept = np.zeros(num_nodes), np.ones(num_nodes)
            for node, impairment in self.impairments.items():
                added_s[node], kept[node] = impairment.added_s, 1 - impairment.loss
            seconds = seconds + added_s[one] + added_s[other]
            passes &= self._numbers.random(len(one)) < kept[one] * kept[other]
        seconds = np.where(passes, seconds, np.inf)
        heard = np.full(num_nodes, np.inf)
        heard[source] = 0.0
        while True:
            leaves_at, interval = mesh.leaves(now + heard[one])
            comes = leaves_at - now + seconds
            nearer = heard.copy()
            np.minimum.at(nearer, other, comes)
            if np.array_equal(nearer, heard):
                break
            heard = nearer
        reached = np.isfinite(heard)
        first = np.full(num_nodes, -1, dtype=np.int64)
        is_first = (comes == heard[other]) & reached[other] & passes
        first[other[is_first]] = one[is_first]
        # A node does not send a message back to the neighbour that it first came from, nor to one that brought it while
        # it waited.
        sends = sent_over & reached[one] & (first[one] != other)
        sends &= ~((sends & passes & (comes < (leaves_at - now)[mesh.back]))[mesh.back])
        mesh.note_sent(sends, interval)
        arrives = sends & passes
        sent = np.bincount(one[sends], minlength=num_nodes)
        received = np.bincount(other[arrives], minlength=num_nodes)
        return heard, first, sent, received


def random_graph(num_nodes: int, degree: int, rng: random.Random) -> list[tuple[int, int]]:
    """Connections as nodes make them: one after the other, each dials random others until it has ``degree``; the
    dialled node accepts. Each edge once, sorted. Connected, because a ring through all is dialled first."""
    near: list[set[int]] = [set() for _ in range(num_nodes)]

    def link(one: int, other: int) -> None:
        if one != other:
            near[one].add(other)
            near[other].add(one)

    for node in range(num_nodes):
        link(node, (node + 1) % num_nodes)
    for node in rng.sample(range(num_nodes), num_nodes):
        while len(near[node]) < min(degree, num_nodes - 1):
            link(node, rng.randrange(num_nodes))
    return sorted((node, other) for node in range(num_nodes) for other in near[node] if node < other)


def mesh_of(edges: Sequence[tuple[int, int]], num_nodes: int, degree: int, rng: random.Random) -> list[tuple[int, int]]:
    """A gossip mesh within the connections: each node grafts random peers until it has ``degree``, or all it knows. So
    degrees are between ``degree`` and about twice that, like gossipsub's between D and D_high."""
    known: list[list[int]] = [[] for _ in range(num_nodes)]
    for one, other in edges:
        known[one].append(other)
        known[other].append(one)
    mesh: list[set[int]] = [set() for _ in range(num_nodes)]
    for node in rng.sample(range(num_nodes), num_nodes):
        candidates = rng.sample(sorted(known[node]), len(known[node]))
        candidates.sort(key=lambda peer: len(mesh[peer]) >= degree)  # a full mesh refuses while others accept
        for peer in candidates:
            if len(mesh[node]) >= degree:
                break
            mesh[node].add(peer)
            mesh[peer].add(node)
    return sorted((node, other) for node in range(num_nodes) for other in mesh[node] if node < other)
