"""A swarm that finds itself, splits into cells and merges again, by the nodes' own rules.

Discovery is simulated as in ``node/network/libp2p/discovery.py``: a node dials providers of its cell's key until it is
connected to CELL_PEERS of them, and of the model's key until it has DEGREE connections. After a start or a move it
looks often, then once a minute. A lookup finds up to K random nodes that provide the key, in LOOKUP_S.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mycelia.proto.cells.cells import ROOT, Cell, address_of
from mycelia.proto.config import OverlayConfig
from mycelia.proto.effects import Emit
from mycelia.proto.events import CacheChanged
from mycelia.sim.links import Links, Matrix
from mycelia.sim.metadata import LEAF_BLOCKS, MESH_DEGREE, PACE_S, Churn, Step, received
from mycelia.sim.node import SimNode
from mycelia.sim.scenario import DEGREE
from mycelia.sim.world import NAMESPACE, World

CELL_PEERS = DEGREE * 3 // 4
"""As in node/network/libp2p/discovery.py."""
K = 20
"""Provider records that one lookup finds."""
LOOKUP_S = 0.5
LOOKUP_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
LOOKUP_INTERVAL_S = 60.0
SETTLED_S = 90.0
"""A node that has been up, and at this depth, this long should know all of its cell: three heartbeats."""


class CellSwarm:
    """Nodes that come, go and look for each other. Call ``join`` and ``leave``, and ``wait`` in between."""

    def __init__(self, rtt: Matrix, seed: int, config: OverlayConfig) -> None:
        self.world = World(Links(rtt, seed), len(rtt), seed, config, mesh_degree=MESH_DEGREE)
        self.world.on_cell = self._on_cell
        self.world.on_emit = self._on_emit
        self.moved_at = self.world.now
        """When the last node moved to another cell."""
        self.num_moves = 0
        self._rng = random.Random(seed)
        self._up: list[int] = []
        self._since = np.full(len(rtt), np.inf)
        """When each node last started or moved."""

    def join(self, number: int) -> None:
        """A node starts and knows one other node."""
        world = self.world
        node = world.start(number)
        self._since[number] = world.now
        if self._up:
            world.connect(number, self._rng.choice(self._up))
        self._up.append(number)
        world.serve(node)
        # A block of its own, so that its digest is not empty.
        world.handle(node, CacheChanged(NAMESPACE, [(1, [number] * 64)], []))
        self._seek(node, 0)

    def leave(self, number: int) -> None:
        self._up.remove(number)
        self._since[number] = np.inf
        self.world.stop(number)

    def wait(self, seconds: float) -> None:
        self.world.run(self.world.now + seconds)

    @property
    def up(self) -> Sequence[int]:
        return self._up

    def sizes(self) -> Counter[Cell]:
        """Cell -> number of nodes whose own cell it is."""
        return Counter(self._cell(number) for number in self._up)

    def known_shares(self) -> list[float]:
        """For every node settled in its cell: the share of the other settled nodes there that it knows as live."""
        world = self.world
        cells = {n: self._cell(n) for n in self._up if world.now - self._since[n] >= SETTLED_S}
        sizes = Counter(cells.values())
        shares = []
        for number, cell in cells.items():
            live = world.node(number).overlay.estimates.live(NAMESPACE)
            num_known = sum(cells.get(world.number_of[owner.peer]) == cell for owner in live)
            shares.append(num_known / (sizes[cell] - 1) if sizes[cell] > 1 else 1.0)
        return shares

    def _cell(self, number: int) -> Cell:
        return self.world.node(number).overlay.cell(NAMESPACE) or ROOT

    def _on_cell(self, node: SimNode, cell: Cell) -> None:
        self._seek(node, 0)

    def _on_emit(self, node: SimNode, effect: Emit) -> None:
        if effect.event == "cell_changed":
            self.num_moves += 1
            self.moved_at = self._since[node.number] = self.world.now

    def _seek(self, node: SimNode, num_lookups: int) -> None:
        settled = num_lookups >= len(LOOKUP_PAUSES_S)
        pause_s = LOOKUP_INTERVAL_S if settled else LOOKUP_PAUSES_S[num_lookups]
        cell = self._cell(node.number)
        self.world.call(
            self.world.now + pause_s * self._rng.uniform(0.75, 1.25) + LOOKUP_S,
            partial(self._dial, node, cell, num_lookups),
        )

    def _dial(self, node: SimNode, cell: Cell, num_lookups: int) -> None:
        world, number = self.world, node.number
        if world.nodes[number] is not node or self._cell(number) != cell:
            return  # (the node is gone, or a move began another search)
        if cell != ROOT:
            assert world.meshes is not None
            address = {other: address_of(NAMESPACE, world.node(other).peer) for other in node.near}
            self._connect(node, world.meshes.subscribers(cell), CELL_PEERS - sum(map(cell.holds, address.values())))
        self._connect(node, self._up, DEGREE - len(node.near))
        self._seek(node, num_lookups + 1)

    def _connect(self, node: SimNode, providers: Sequence[int], room: int) -> None:
        found = self._rng.sample(providers, min(K, len(providers)))
        strangers = [other for other in found if other != node.number and other not in node.near]
        for other in strangers[: max(room, 0)]:
            self.world.connect(node.number, other)


@dataclass
class Growth:
    """Results of ``grow_and_shrink``. Seconds of virtual time."""

    sizes: list[int] = field(default_factory=list)
    """Sizes of all cells, sorted, after the swarm has grown and settled."""
    settled_s: float = 0.0
    """From the last node's start until no node moved any more."""
    known_min: float = 1.0
    """Lowest share of its cell that any settled node ever knew."""
    known_p01: float = 1.0
    """The same without the lowest one in a hundred, at the worst moment."""
    moves_per_node: float = 0.0
    merged_sizes: list[int] = field(default_factory=list)
    """Sizes of all cells after the swarm has shrunk."""
    merged_s: float = 0.0
    known_after: float = 1.0
    """Mean share of its cell that a node knows at the end."""


def grow_and_shrink(
    rtt: Matrix,
    start: int,
    grown: int,
    shrunk: int,
    seed: int,
    config: OverlayConfig,
    step: Step,
    grow_s: float = 600.0,
    limit_s: float = 1_800.0,
) -> Growth:
    """``start`` nodes, then ``grown`` over ``grow_s`` seconds, then ``shrunk`` over as many. Each time until no node
    has moved for longer than any hold and grace, at most ``limit_s``."""
    swarm, result = CellSwarm(rtt, seed, config), Growth()
    world, rng = swarm.world, random.Random(seed)
    for number in range(start):
        world.call(world.now + rng.uniform(0, 30), partial(swarm.join, number))
    step(f"{start} nodes start")
    _watch(swarm, result, 180.0)
    for number in range(start, grown):
        world.call(world.now + rng.uniform(0, grow_s), partial(swarm.join, number))
    step(f"grows to {grown} nodes")
    _watch(swarm, result, grow_s)
    full_at = world.now
    _watch_until_settled(swarm, result, limit_s)
    result.settled_s = max(0.0, swarm.moved_at - full_at)
    result.sizes = sorted(swarm.sizes().values())
    result.moves_per_node = swarm.num_moves / grown
    if shrunk < grown:
        step(f"shrinks to {shrunk} nodes")
        for number in rng.sample(range(grown), grown - shrunk):
            world.call(world.now + rng.uniform(0, grow_s), partial(swarm.leave, number))
        _watch(swarm, result, grow_s)
        full_at = world.now
        _watch_until_settled(swarm, result, limit_s)
        result.merged_s = max(0.0, swarm.moved_at - full_at)
    result.merged_sizes = sorted(swarm.sizes().values())
    result.known_after = float(np.mean(swarm.known_shares()))
    world.check_invariants()
    return result


def _watch_until_settled(swarm: CellSwarm, result: Growth, limit_s: float) -> None:
    config = swarm.world.config.cells
    quiet_s = 1.5 * max(config.split_hold_s, config.merge_hold_s) + config.cell_grace_s
    began = swarm.world.now
    while swarm.world.now < max(swarm.moved_at, began) + quiet_s and swarm.world.now < began + limit_s:
        _watch(swarm, result, 10.0)


def _watch(swarm: CellSwarm, result: Growth, seconds: float) -> None:
    until = swarm.world.now + seconds
    while swarm.world.now < until:
        swarm.wait(10.0)
        shares = sorted(swarm.known_shares())
        if shares:
            result.known_min = min(result.known_min, shares[0])
            result.known_p01 = min(result.known_p01, shares[len(shares) // 100])


@dataclass(frozen=True)
class CellTraffic:
    """Bytes and entries at nodes of ordinary cells under steady change."""

    sizes: list[int]
    received_per_s: float
    """Bytes per node, all planes."""
    entries: float
    """Entries of all other nodes' digests that a node keeps."""
    owners: float


def steady_change(
    rtt: Matrix,
    num_cells: int,
    changes: float,
    blocks: int,
    seconds: float,
    seed: int,
    config: OverlayConfig,
    step: Step,
) -> CellTraffic:
    """All of ``rtt``'s nodes start as one cell and split into ``num_cells`` by their own rules; then as in
    ``metadata.steady_change``: full caches of ``blocks`` blocks, ``changes`` a second at each node."""
    num_nodes = len(rtt)
    swarm = CellSwarm(rtt, seed, config)
    world, rng = swarm.world, random.Random(seed)
    step(f"{num_nodes} nodes start")
    for number in range(num_nodes):
        world.call(world.now + rng.uniform(0, 30), partial(swarm.join, number))
    began = world.now
    quiet_s = config.cells.newcomer_s + 1.5 * config.cells.split_hold_s + config.cells.cell_grace_s + 60.0
    while world.now < began + 60.0 or (num_cells > 1 and world.now < max(swarm.moved_at, began) + quiet_s):
        swarm.wait(10.0)
    step("caches fill, the pace settles")
    churn = Churn(world, changes / (2 * LEAF_BLOCKS), world.now + 1e6, leaves=max(1, blocks // LEAF_BLOCKS))
    churn.fill()
    churn.begin()
    swarm.wait(PACE_S)
    step("steady change")
    before = received(world)
    swarm.wait(seconds)
    estimates = [node.overlay.estimates for node in world.up()]
    return CellTraffic(
        sorted(swarm.sizes().values()),
        float((received(world) - before).mean()) / seconds,
        float(np.mean([kept.num_entries for kept in estimates])),
        float(np.mean([len(kept.live(NAMESPACE)) for kept in estimates])),
    )
