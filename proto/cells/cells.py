"""Cells: the part of a namespace that a node gossips with, and when that part becomes smaller or larger.

Every node of a namespace has an *address*, a hash of namespace and peer id. A cell of depth b is all nodes whose
addresses begin with the same b bits; depth 0 is all nodes. Cells are not assigned: each node counts the live owners in
its own cell and decides from that alone to go one bit deeper (more than ``max_cell_nodes``) or back (fewer than
``min_cell_nodes``: twice as many would still be few). Addresses are uniform, so all cells grow alike.

Every owner signs its depth into its head. So each node sees how the others of its cell decided. Near a limit, where
counts differ by what each node happened to receive, it follows them:

    count > max                                                          -> deeper
    count > 7/8 max, and a quarter of the half it would move to is there -> deeper
    most of that half are there: they left, and this node is late        -> deeper
    most of the cell are less deep                                       -> back
    count < 5/4 min, and a quarter of the cell, or most outside, are     -> back
        less deep
    count < min, and most outside are no deeper                          -> back
        (both only if those it then knows of are fewer than 7/8 max)

A node follows a wish once it has lasted for a hold time. Then for ``cell_grace_s`` the node listens and publishes in
both cells, so that no node loses it while the others decide; during that time only its own count moves it, and only
deeper. The depths of outside nodes keep one small cell among larger ones from moving up to the top, where no node is.
Below a quarter of ``min_cell_nodes`` a small cell cannot be chance, and a node does what most of its connected peers
do. So does a newcomer, which has nothing to count yet.

No node can be pushed far: peers' claims only decide when a count is near a limit, or need most of the cell. Owners cost
nothing to invent, and invented ones are counted; so a node goes deeper only while it is *connected* to
``min_cell_peers`` of the nodes it would then gossip with. Digests of connected peers are kept whatever their cell.

Invariant: the cells a node listens to all contain it; the current one is its own at its depth.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from blake3 import blake3

from mycelia.proto.config import CellConfig
from mycelia.proto.wire.messages import MAX_CELL_BITS

_NEAR_MAX, _NEAR_MIN = 7 / 8, 5 / 4
_TIPPING_SHARE = 1 / 4
_LOST_SHARE = 1 / 4
_QUORUM = 2


@dataclass(frozen=True, order=True)
class Cell:
    """The nodes whose addresses begin with the ``bits`` bits of ``prefix``."""

    bits: int = 0
    prefix: int = 0

    def holds(self, address: int) -> bool:
        return address >> (MAX_CELL_BITS - self.bits) == self.prefix

    def suffix(self) -> str:
        """The end of the names of the namespace's topic and provider key: empty at depth 0."""
        return f"/{self.prefix:0{self.bits}b}" if self.bits else ""


ROOT = Cell()
"""All nodes."""


@lru_cache(maxsize=8_192)
def address_of(namespace: bytes, peer: bytes) -> int:
    """The MAX_CELL_BITS bits that place ``peer`` in a cell at every depth. Uniform; to choose b bits costs 2^b keys."""
    digest = blake3(namespace + peer, derive_key_context="mycelia 2026 cell v1").digest(length=MAX_CELL_BITS // 8)
    return int.from_bytes(digest, "big")


def cell_of(namespace: bytes, peer: bytes, bits: int) -> Cell:
    return Cell(bits, address_of(namespace, peer) >> (MAX_CELL_BITS - bits))


class Owner(NamedTuple):
    """A live owner as a node knows it: not suspect."""

    peer: bytes
    bits: int
    """Its depth, by its newest head."""
    is_connected: bool


@dataclass(frozen=True)
class Move:
    joined: tuple[Cell, ...] = ()
    left: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class _Wish:
    """A change of depth that the known owners have supported for some time."""

    is_deeper: bool
    due: float


@dataclass
class CellPosition:
    """The cells of this node in one namespace. Call ``tick`` every few seconds."""

    namespace: bytes
    me: bytes
    config: CellConfig
    rng: random.Random
    started_at: float
    bits: int = 0
    cell: Cell = field(init=False)
    _leaving: dict[Cell, float] = field(default_factory=dict)
    """Cells that are still listened to -> until when."""
    _wish: _Wish | None = None

    def __post_init__(self) -> None:
        self.cell = cell_of(self.namespace, self.me, self.bits)

    def cells(self) -> list[Cell]:
        """The cells it listens to and publishes in, its own first."""
        return [self.cell, *self._leaving]

    def holds(self, peer: bytes) -> bool:
        return self.cell.holds(address_of(self.namespace, peer))

    def covers(self, peer: bytes) -> bool:
        """Whether ``peer`` is in a cell that this node listens to."""
        address = address_of(self.namespace, peer)
        return self.cell.holds(address) or any(cell.holds(address) for cell in self._leaving)

    def tick(self, known: Sequence[Owner], now: float) -> Move:
        """Time passed. ``known``: every other live owner of the namespace that this node knows. Mutates."""
        listened = self.cells()
        self._leaving = {cell: until for cell, until in self._leaving.items() if until > now}
        target = self._target(known, now)
        if target != self.bits:
            self._wish = None
            self._leaving[self.cell] = now + self.config.cell_grace_s
            self.bits, self.cell = target, cell_of(self.namespace, self.me, target)
            self._leaving.pop(self.cell, None)  # (it may have been on its way back)
        listens = self.cells()
        return Move(
            tuple(cell for cell in listens if cell not in listened),
            tuple(cell for cell in listened if cell not in listens),
        )

    def check_invariants(self) -> None:
        assert 0 <= self.bits <= MAX_CELL_BITS
        address = address_of(self.namespace, self.me)
        assert self.cell == cell_of(self.namespace, self.me, self.bits)
        assert all(cell.holds(address) for cell in self.cells())
        assert self.cell not in self._leaving

    def _target(self, known: Sequence[Owner], now: float) -> int:
        usual = _median((owner.bits for owner in known if owner.is_connected), self.bits)
        if now < self.started_at + self.config.newcomer_s:
            return self._reachable(usual, known)
        wanted = self._wanted(known, usual)
        if wanted == self.bits:
            self._wish = None
            return self.bits
        is_deeper = wanted > self.bits
        if self._wish is None or self._wish.is_deeper != is_deeper:
            hold_s = self.config.split_hold_s if is_deeper else self.config.merge_hold_s
            self._wish = _Wish(is_deeper, now + hold_s * self.rng.uniform(1.0, 1.5))
        return wanted if now >= self._wish.due else self.bits

    def _wanted(self, known: Sequence[Owner], usual: int) -> int:
        """The depth that the known owners support. ``usual``: the depth of most connected peers."""
        config, bits = self.config, self.bits
        members = self._of(self.cell, known)
        count = len(members) + 1
        if bits < MAX_CELL_BITS and self._speaks_for_a_split(members):
            return bits + 1
        if self._leaving:
            return bits
        if count < _LOST_SHARE * config.min_cell_nodes and usual != bits:
            return self._reachable(usual, known)
        if bits == 0:
            return 0
        back = _share(owner.bits < bits for owner in members)
        inside = {owner.peer for owner in members}
        outside = _median((owner.bits for owner in known if owner.is_connected and owner.peer not in inside), bits)
        is_near = count < _NEAR_MIN * config.min_cell_nodes and (back >= _TIPPING_SHARE or outside < bits)
        is_small = count < config.min_cell_nodes and outside <= bits
        is_left_behind = len(members) >= _QUORUM and back > 1 / 2
        # (a small cell beside a full one would only split again)
        above = self._of(cell_of(self.namespace, self.me, bits - 1), known)
        fits = len(above) + 1 <= _NEAR_MAX * config.max_cell_nodes
        return bits - 1 if ((is_near or is_small) and fits) or is_left_behind else bits

    def _reachable(self, usual: int, known: Sequence[Owner]) -> int:
        """``usual``, or the nearest depth at which this node has enough connections: claims about depth cost peers
        nothing, nodes of this node's own cell do."""
        connected = [owner for owner in known if owner.is_connected]
        for bits in range(usual, self.bits, -1):
            if len(self._of(cell_of(self.namespace, self.me, bits), connected)) >= self.config.min_cell_peers:
                return bits
        return min(usual, self.bits)

    def _of(self, cell: Cell, owners: Iterable[Owner]) -> list[Owner]:
        shift = MAX_CELL_BITS - cell.bits
        return [owner for owner in owners if address_of(self.namespace, owner.peer) >> shift == cell.prefix]

    def _speaks_for_a_split(self, members: Sequence[Owner]) -> bool:
        config, count = self.config, len(members) + 1
        below = cell_of(self.namespace, self.me, self.bits + 1)
        half = self._of(below, members)
        if sum(owner.is_connected for owner in half) < config.min_cell_peers:
            return False
        # (on the way to a larger cell the others still have this node's old depth)
        deeper = 0.0 if self._leaving else _share(owner.bits > self.bits for owner in half)
        is_near = count > _NEAR_MAX * config.max_cell_nodes and deeper >= _TIPPING_SHARE
        is_left_behind = len(half) >= _QUORUM and deeper > 1 / 2
        return count > config.max_cell_nodes or is_near or is_left_behind


def _median(values: Iterable[int], otherwise: int) -> int:
    """The lower one of two: at lesser depth there are more nodes."""
    ranked = sorted(values)
    return ranked[(len(ranked) - 1) // 2] if ranked else otherwise


def _share(holds: Iterable[bool]) -> float:
    votes = list(holds)
    return sum(votes) / len(votes) if votes else 0.0
