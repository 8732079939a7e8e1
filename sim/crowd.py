"""A swarm in one cell that starts, meets, rests and loses some of its nodes at once: the prediction for a real one.

Nodes discover each other as in ``cells.py``. A killed node's connections end at once, as those of a killed process do:
its machine closes them.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mycelia.proto.config import OverlayConfig
from mycelia.sim.cells import CellSwarm
from mycelia.sim.links import constant_rtt
from mycelia.sim.metadata import received
from mycelia.sim.node import SimNode, peer_id
from mycelia.sim.world import NAMESPACE

STEP_S = 0.5
"""How often nodes are asked what they know."""
LIMIT_S = 300.0
"""Longest virtual time for each phase."""


@dataclass(frozen=True)
class Crowd:
    """Seconds of virtual time, and bytes."""

    known_s: dict[float, float]
    """Share -> seconds from the last node's start until every node had a digest of that share of the others."""
    received_per_s: float
    """Bytes that a node received a second, at rest."""
    connections: float
    """Connections of a node at rest, mean."""
    connected_s: float
    """Seconds from the kill until no node was connected with a killed one."""
    live_s: float
    """The same until no node used a killed one's digest."""
    kept_s: float
    """The same until no node had a killed one's digest."""


def meet_and_part(
    starts: Sequence[float], killed: Collection[int], shares: Sequence[float], rtt_s: float, rest_s: float, seed: int
) -> Crowd:
    """starts: seconds at which the nodes start. killed: numbers of those that are killed after ``rest_s`` at rest."""
    num_nodes = len(starts)
    swarm = CellSwarm(constant_rtt(num_nodes, rtt_s), seed, OverlayConfig())
    world, began = swarm.world, swarm.world.now
    for number in sorted(range(num_nodes), key=lambda number: starts[number]):
        world.call(began + starts[number], partial(swarm.join, number))
    world.run(began + max(starts))
    met_s, known_s = 0.0, {}
    for share in sorted(shares):
        met_s += _until(swarm, partial(_all_know, swarm, share))
        known_s[share] = met_s
    swarm.wait(rest_s / 2)
    before = received(world)
    swarm.wait(rest_s / 2)
    received_per_s = float((received(world) - before).mean()) / (rest_s / 2)
    connections = float(np.mean([len(node.near) for node in world.up()]))
    for number in killed:
        swarm.leave(number)
    gone = {peer_id(number) for number in killed}
    connected_s = _until(swarm, lambda: not any(node.near & set(killed) for node in world.up()))
    live_s = connected_s + _until(swarm, lambda: not any(gone & _live(node) for node in world.up()))
    kept_s = live_s + _until(swarm, lambda: not any(gone & _kept(node) for node in world.up()))
    world.check_invariants(most=3)
    return Crowd(known_s, received_per_s, connections, connected_s, live_s, kept_s)


def _until(swarm: CellSwarm, is_reached: Callable[[], bool]) -> float:
    """Runs until ``is_reached``, at most LIMIT_S. Returns the seconds that took."""
    began = swarm.world.now
    while not is_reached() and swarm.world.now < began + LIMIT_S:
        swarm.wait(STEP_S)
    return swarm.world.now - began


def _all_know(swarm: CellSwarm, share: float) -> bool:
    up = swarm.world.up()
    return all(len(_live(node)) >= share * (len(up) - 1) for node in up)


def _live(node: SimNode) -> set[bytes]:
    return {owner.peer for owner in node.overlay.estimates.live(NAMESPACE)}


def _kept(node: SimNode) -> set[bytes]:
    return {owner for (owner, _), _ in node.overlay.estimates.items()}
