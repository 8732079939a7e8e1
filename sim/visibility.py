"""How long what a node stores takes until the others know it."""

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

from mycelia.proto.effects import Emit, Publish
from mycelia.sim.node import SimNode
from mycelia.sim.world import NAMESPACE, World

# --- a store becomes visible ---------------------------------------------------------------------------------------


@dataclass
class _Owner:
    stored_at: list[float] = field(default_factory=list)
    """Stores that no head shows yet."""
    seqs: list[int] = field(default_factory=list)
    """Sequence numbers of the heads that first showed a store, ascending; below, at the same places, the times of the
    stores and how many nodes see them."""
    stores: list[list[float]] = field(default_factory=list)
    seen_by: list[int] = field(default_factory=list)


class Visibility:
    """Seconds after which each store was visible at ``share`` of the other nodes."""

    def __init__(self, world: World, share: float) -> None:
        self._world = world
        self._owners = [_Owner() for _ in world.nodes]
        self._seen_seq = np.zeros((len(world.nodes), len(world.nodes)), dtype=np.int64)
        self._enough = share * (len(world.nodes) - 1)
        self.seconds: list[float] = []
        world.on_publish, world.on_emit = self._on_publish, self._on_emit

    def on_store(self, node: SimNode) -> None:
        """Call before the node gets the event."""
        self._owners[node.number].stored_at.append(self._world.now)

    def missed(self) -> list[float]:
        """How long ago each store was that is not visible yet."""
        late = []
        for owner in self._owners:
            late += owner.stored_at
            for at, seen_by in zip(owner.stores, owner.seen_by, strict=True):
                late += at if seen_by < self._enough else []
        return [self._world.now - at for at in late]

    def _on_publish(self, node: SimNode, effect: Publish) -> None:
        owner = self._owners[node.number]
        if owner.stored_at:
            owner.seqs.append(effect.message.head.seq)
            owner.stores.append(owner.stored_at)
            owner.seen_by.append(0)
            owner.stored_at = []

    def _on_emit(self, node: SimNode, effect: Emit) -> None:
        if effect.event != "digest_applied":
            return
        peer = effect.fields["peer"]
        assert isinstance(peer, bytes)
        number = self._world.number_of[peer]
        owner = self._owners[number]
        if not owner.seqs:
            return
        seq = node.overlay.estimates.version(peer, NAMESPACE)[1]
        before = int(self._seen_seq[node.number, number])
        self._seen_seq[node.number, number] = seq
        for place in range(bisect_right(owner.seqs, before), bisect_right(owner.seqs, seq)):
            owner.seen_by[place] += 1
            if owner.seen_by[place] >= self._enough > owner.seen_by[place] - 1:
                self.seconds += [self._world.now - at for at in owner.stores[place]]
