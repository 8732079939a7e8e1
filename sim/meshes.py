"""Gossip meshes that follow their topics: one per cell, within the present connections.

As in each heartbeat of gossipsub, a node with fewer than ``degree`` neighbours in a topic grafts random peers that are
connected and subscribed; a neighbour that leaves the topic or the network is pruned.
"""

import random

import numpy as np
import numpy.typing as npt

from mycelia.proto.cells.cells import Cell
from mycelia.sim.links import Links

_HEARTBEAT_S = 1.0


class Meshes:
    """The gossip meshes of all cells. ``near``: node -> the nodes it is connected with, kept by the caller."""

    def __init__(self, links: Links, near: list[set[int]], degree: int, rng: random.Random) -> None:
        self._links = links
        self._near = near
        self._degree = degree
        self._rng = rng
        self._subscribed: dict[Cell, dict[int, set[int]]] = {}
        """Cell -> subscriber -> its neighbours in the mesh."""
        self._cells_of: list[set[Cell]] = [set() for _ in near]
        self._stale: set[Cell] = set()
        self._built_at: dict[Cell, float] = {}

    def join(self, number: int, cell: Cell) -> None:
        self._subscribed.setdefault(cell, {}).setdefault(number, set())
        self._cells_of[number].add(cell)
        self._stale.add(cell)

    def leave(self, number: int, cell: Cell) -> None:
        self._subscribed[cell].pop(number, None)
        self._cells_of[number].discard(cell)
        self._stale.add(cell)

    def leave_all(self, number: int) -> None:
        for cell in sorted(self._cells_of[number]):
            self.leave(number, cell)

    def on_connections(self, one: int, other: int) -> None:
        self._stale |= self._cells_of[one] & self._cells_of[other]

    def subscribers(self, cell: Cell) -> list[int]:
        """The subscribers of ``cell``, sorted."""
        return sorted(self._subscribed.get(cell, {}))

    def prepare(self, cell: Cell, now: float) -> npt.NDArray[np.bool_]:
        """Updates the mesh of ``cell`` as of the last heartbeat; returns which nodes are subscribed."""
        if cell in self._stale and now >= self._built_at.get(cell, -_HEARTBEAT_S) + _HEARTBEAT_S:
            self._build(cell)
            self._stale.discard(cell)
            self._built_at[cell] = now
        is_subscribed = np.zeros(len(self._near), dtype=np.bool_)
        is_subscribed[self.subscribers(cell)] = True
        return is_subscribed

    def _build(self, cell: Cell) -> None:
        mesh = self._subscribed[cell]
        for number, neighbours in mesh.items():
            neighbours &= mesh.keys() & self._near[number]
        for number in self._rng.sample(sorted(mesh), len(mesh)):
            missing = self._degree - len(mesh[number])
            if missing <= 0:
                continue
            candidates = sorted((self._near[number] & mesh.keys()) - mesh[number])
            self._rng.shuffle(candidates)
            candidates.sort(key=lambda peer: len(mesh[peer]) >= self._degree)  # a full mesh refuses, others accept
            for peer in candidates[:missing]:
                mesh[number].add(peer)
                mesh[peer].add(number)
        edges = [(number, other) for number, neighbours in sorted(mesh.items()) for other in sorted(neighbours)]
        self._links.set_mesh(edges, cell)
