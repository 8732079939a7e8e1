"""Scenarios of the metadata plane, each with what it measures.

All of them: nodes on a modelled or measured internet, connected as real nodes connect (each dials until it has
``DEGREE`` peers, so at 1,000 nodes an owner is connected to 4 % of its readers), one model, signed digests over gossip,
repair and reconciliation. A node learns of unconnected owners by gossip and from its neighbours.

Rounds are those of ``reconcile_s``; a batch interval is ``delta_interval_s``.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from mycelia.proto.config import CellConfig, DigestConfig, OverlayConfig
from mycelia.proto.effects import Send
from mycelia.proto.events import CacheChanged
from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.messages import Repair, RepairRequest
from mycelia.sim.links import Links, Partition, measured_rtt, mesh_of, modelled_rtt, random_graph
from mycelia.sim.node import SimNode
from mycelia.sim.scenario import DEGREE
from mycelia.sim.traffic import PLANES
from mycelia.sim.visibility import Visibility
from mycelia.sim.workload import Mmlu, PrefixCache, blocks_of
from mycelia.sim.world import NAMESPACE, World

MESH_DEGREE = 4
"""Neighbours of a node in the gossip mesh, as in node/network."""
LIVENESS_S = 8.0
"""Measured time until a node closes the connection with a peer that went silent: 5-9 s."""
REDIAL_S = 60.0
"""Time after a partition's end within which the connections it broke are back."""
_START_S, _SETTLED_S = 20.0, 60.0
PACE_S = 90.0
"""Time until pace and measured rate fit each other."""
LEAF_BLOCKS = 4

Step = Callable[[str], None]
"""Called with what begins, for a progress line."""


@dataclass(frozen=True)
class Setting:
    num_nodes: int
    loss: float
    seed: int = 1
    rtt_file: Path | None = None
    config: DigestConfig = field(default_factory=DigestConfig)


@dataclass
class Swarm:
    """A running world and the connections that its nodes should keep."""

    world: World
    edges: Sequence[tuple[int, int]]
    setting: Setting

    def wait(self, seconds: float) -> None:
        self.world.run(self.world.now + seconds)


def start_all(world: World, edges: Sequence[tuple[int, int]]) -> None:
    """Start every node and connect them; they begin to serve at random times."""
    for number in range(len(world.nodes)):
        node = world.start(number)
        world.call(world.now + world.rng.uniform(0.0, _START_S), partial(world.serve, node))
    for one, other in edges:
        world.connect(one, other)


def make_swarm(setting: Setting, cells: CellConfig = CellConfig()) -> Swarm:  # noqa: B008  frozen
    """The swarm, started and with all nodes known to each other. Raises LocalError for a file without an RTT matrix."""
    rng = random.Random(setting.seed)
    num_nodes = setting.num_nodes
    if setting.rtt_file is None:
        rtt = modelled_rtt(num_nodes, rng)
    else:
        rtt = measured_rtt(setting.rtt_file, num_nodes, rng)
    links = Links(rtt, setting.seed, loss=setting.loss)
    edges = random_graph(num_nodes, DEGREE, rng)
    links.set_mesh(mesh_of(edges, num_nodes, MESH_DEGREE, rng))
    # One cell for any number of nodes: this measures how far digests reach. ``cells.py`` has swarms that split.
    one_cell = replace(cells, max_cell_nodes=max(num_nodes, cells.max_cell_nodes))
    world = World(links, num_nodes, setting.seed, OverlayConfig(digest=setting.config, cells=one_cell))
    start_all(world, edges)
    swarm = Swarm(world, edges, setting)
    swarm.wait(_START_S + _SETTLED_S)
    return swarm


# --- change --------------------------------------------------------------------------------------------------------


@dataclass
class Churn:
    """Every node stores a leaf of new blocks from time to time (Poisson) and drops its oldest, until ``until``.

    ``rate``: leaves a second per node. A leaf is ``leaf_blocks`` blocks, so once a cache is full there are 2 x
    ``leaf_blocks`` x ``rate`` changes a second per node.
    """

    world: World
    rate: float
    until: float
    leaf_blocks: int = LEAF_BLOCKS
    leaves: int = 4
    on_store: Callable[[SimNode], None] | None = None
    _next_leaf: int = 0
    _held: dict[int, deque[int]] = field(default_factory=dict)

    def begin(self) -> None:
        for node in self.world.up():
            self._later(node)

    def fill(self) -> None:
        for node in self.world.up():
            self._held[node.number] = deque()
            stored = [self._leaf(node) for _ in range(self.leaves)]
            self.world.handle(node, CacheChanged(NAMESPACE, stored, []))

    def _later(self, node: SimNode) -> None:
        at = self.world.now + self.world.rng.expovariate(self.rate)
        if at < self.until:
            self.world.call(at, partial(self._change, node))

    def _change(self, node: SimNode) -> None:
        held = self._held.setdefault(node.number, deque())
        stored = [self._leaf(node)]
        evicted = [held.popleft()] if len(held) > self.leaves else []
        if self.on_store is not None:
            self.on_store(node)
        self.world.handle(node, CacheChanged(NAMESPACE, stored, evicted))
        self._later(node)

    def _leaf(self, node: SimNode) -> tuple[int, list[int]]:
        self._next_leaf += 1
        self._held[node.number].append(self._next_leaf)
        return self._next_leaf, [self._next_leaf] * (STRIDE * self.leaf_blocks)


@dataclass(frozen=True)
class Visible:
    seconds: list[float]
    """Time until each store was visible, sorted; for one that never was, the time until the end of the run."""
    num_missed: int
    """Stores that never became visible."""
    receive_rate: float
    """Bytes a second per node, all planes."""


def store_visible(setting: Setting, rate: float, seconds: float, step: Step) -> Visible:
    """Every node stores ``rate`` leaves a second; then a minute for the last ones."""
    step(f"{setting.num_nodes} nodes start")
    swarm = make_swarm(setting)
    world = swarm.world
    visibility = Visibility(world, 0.99)
    Churn(world, rate, world.now + seconds, on_store=visibility.on_store).begin()
    before = received(world)
    step("stores")
    swarm.wait(seconds)
    receive_rate = float((received(world) - before).mean()) / seconds
    step("the last ones spread")
    swarm.wait(2 * setting.config.delta_interval_s * setting.config.max_stretch)
    missed = visibility.missed()
    return Visible(sorted(visibility.seconds + missed), len(missed), receive_rate)


def received(world: World) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    total: np.ndarray[tuple[int], np.dtype[np.int64]] = np.sum([world.received[plane] for plane in PLANES], axis=0)
    return total


# --- all nodes equal ------------------------------------------------------------------------------------------------


def is_converged(world: World) -> bool:
    """Whether every serving node has published its cache, and every other node holds exactly that of it."""
    heads = []
    for node in world.up():
        own = node.overlay.own_digest(NAMESPACE)
        if own is None or own.head is None or own.is_behind():
            return False
        heads.append(own.head)
    return all(node.overlay.estimates.holds(head) for node in world.up() for head in heads if head.owner != node.peer)


def seconds_to_converge(swarm: Swarm, limit_s: float) -> float:
    """Runs until ``is_converged``, checked every second, at most for ``limit_s``."""
    began = swarm.world.now
    while swarm.world.now < began + limit_s:
        if is_converged(swarm.world):
            return swarm.world.now - began
        swarm.wait(1.0)
    return limit_s


def reconcile(setting: Setting, rate: float, seconds: float, step: Step) -> float:
    """Seconds from the last change until all estimates are exact."""
    step(f"{setting.num_nodes} nodes start")
    swarm = make_swarm(setting)
    world = swarm.world
    Churn(world, rate, world.now + seconds).begin()
    step("changes")
    swarm.wait(seconds)
    step("quiet")
    return seconds_to_converge(swarm, 20 * setting.config.reconcile_s)


def partition(setting: Setting, rate: float, apart_s: float, step: Step) -> float:
    """Seconds from the end of a partition into halves, with changes during all of it, until all estimates are exact.

    Connections across break LIVENESS_S after it begins, and each is back within REDIAL_S of its end.
    """
    step(f"{setting.num_nodes} nodes start")
    swarm = make_swarm(setting)
    world, rng = swarm.world, random.Random(setting.seed)
    side = [number % 2 == 0 for number in range(setting.num_nodes)]
    begins, ends = world.now, world.now + apart_s
    world.links.partition = Partition(begins, ends, side)
    Churn(world, rate, ends).begin()
    for one, other in swarm.edges:
        if side[one] != side[other]:
            world.call(begins + LIVENESS_S, partial(world.disconnect, one, other))
            world.call(ends + rng.uniform(0.0, REDIAL_S), partial(world.connect, one, other))
    step("apart")
    swarm.wait(apart_s)
    step("healed")
    return seconds_to_converge(swarm, 20 * setting.config.reconcile_s)


def restart(setting: Setting, leaves: int, step: Step) -> float:
    """Bytes on direct streams, requests and repairs of its digest, that a restart of one node with an unchanged cache
    costs per connected peer, until all of them have its new epoch."""
    step(f"{setting.num_nodes} nodes start")
    swarm = make_swarm(setting)
    world = swarm.world
    step("caches fill")
    churn = Churn(world, 1.0, world.now, leaves=leaves)
    churn.fill()
    swarm.wait(4 * setting.config.delta_interval_s * setting.config.max_stretch)
    me = world.node(0)
    peers = sorted(me.near)
    kept = [(leaf, [leaf] * (STRIDE * LEAF_BLOCKS)) for leaf in range(1, leaves + 1)]
    step("one restarts")
    world.stop(0)
    swarm.wait(10.0)
    total = 0

    def count(_: SimNode, effect: Send, size: int) -> None:
        nonlocal total
        message = effect.message
        if isinstance(message, Repair):
            total += size * (message.head.owner == me.peer)
        elif isinstance(message, RepairRequest):
            total += size * (message.owner == me.peer)

    world.on_send = count
    me = world.start(0)
    for other in peers:
        world.connect(0, other)
    world.serve(me)
    world.handle(me, CacheChanged(NAMESPACE, kept, []))
    swarm.wait(_START_S)
    own = me.overlay.own_digest(NAMESPACE)
    assert own is not None and own.head is not None and len(own.entries) == leaves * LEAF_BLOCKS
    assert all(world.node(other).overlay.estimates.holds(own.head) for other in peers)
    return total / len(peers)


# --- bytes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """Received bytes a second, mean of the nodes."""

    by_plane: dict[str, float]
    floor: float = 0.0
    """16 bytes for each uncached block; 0 where that was not counted."""

    @property
    def total(self) -> float:
        return sum(self.by_plane.values())


def steady_change(setting: Setting, changes: float, blocks: int, seconds: float, step: Step) -> Traffic:
    """Full caches of ``blocks`` blocks, ``changes`` blocks a second added or dropped at each node."""
    step(f"{setting.num_nodes} nodes start")
    swarm = make_swarm(setting)
    world = swarm.world
    leaves = max(1, blocks // LEAF_BLOCKS)
    churn = Churn(world, changes / (2 * LEAF_BLOCKS), world.now + 1e6, leaves=leaves)
    churn.fill()
    churn.begin()
    step("the pace settles")
    swarm.wait(PACE_S)
    step("steady change")
    return _traffic(swarm, seconds)


def mmlu(setting: Setting, rate: float, blocks: int, seconds: float, step: Step) -> Traffic:
    """MMLU 5-shot prompts, Zipf 1, ``rate`` a second per node, over caches of ``blocks`` blocks. Each prompt is served
    by the one of 8 random nodes that holds most of it: about what routing by digests does, without its queues."""
    step(f"{setting.num_nodes} nodes start")
    swarm = make_swarm(setting)
    world = swarm.world
    rng = random.Random(setting.seed)
    prompts = Mmlu(1.0, rng)
    caches = [PrefixCache(blocks) for _ in world.nodes]
    uncached = 0

    def serve() -> None:
        nonlocal uncached
        tokens = prompts.draw()
        chain = blocks_of(tokens)
        best = max(rng.sample(range(len(caches)), min(8, len(caches))), key=lambda n: (caches[n].match(chain), n))
        uncached += len(chain) - caches[best].match(chain)
        leaf, dropped = caches[best].store(chain)
        world.handle(world.node(best), CacheChanged(NAMESPACE, [(leaf, tokens)], dropped))
        world.call(world.now + rng.expovariate(rate * len(caches)), serve)

    world.call(world.now, serve)
    step("caches fill")
    swarm.wait(PACE_S)
    step("MMLU prompts")
    before = uncached
    traffic = _traffic(swarm, seconds)
    return Traffic(traffic.by_plane, floor=16 * (uncached - before) / seconds)


def _traffic(swarm: Swarm, seconds: float) -> Traffic:
    world = swarm.world
    before = {plane: world.received[plane].copy() for plane in PLANES}
    swarm.wait(seconds)
    return Traffic({plane: float((world.received[plane] - before[plane]).mean()) / seconds for plane in PLANES})
