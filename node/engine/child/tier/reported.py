"""The contents of the second tier that the rest of the node, and other nodes, know of.

Of each chain of edges the last one is reported, which stands for all tokens before it. Of a model that keeps states the
states are reported: prompts begin there, and cells alone are of no use. A state can be restored only while the cells of
its tokens are in some cache. When cells are lost, the reported states are checked, a few each step.
"""

from collections.abc import Callable, Iterator
from itertools import islice

from mycelia.node.engine.changes import ChangeLog
from mycelia.node.engine.engine import FIRST_EDGE_ID
from mycelia.proto.cache.edges import Edge
from mycelia.proto.cache.tier import Tier

DOUBTS_PER_STEP = 16
"""Number of states checked per step: 0.1 ms each."""


class Reported:
    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self.changes = ChangeLog()
        """Takes the changes; set by the owner."""
        self._edges: dict[Edge, None] = {}
        self._doubtful: dict[Edge, None] = {}
        """Reported states whose cells may be lost."""
        self.covered: Callable[[Edge], int] = lambda edge: 0
        """Number of leading tokens of a state's key whose cells are in the KV cache."""

    def __contains__(self, edge: Edge) -> bool:
        return edge in self._edges

    def __iter__(self) -> Iterator[Edge]:
        return iter(self._edges)

    def add(self, edge: Edge) -> None:
        """Report an edge, if it is of the kind that is reported."""
        if edge.is_state == self._tier.keeps_states:
            self._edges[edge] = None
            self.changes.store(FIRST_EDGE_ID + edge.edge_id, edge.path)

    def add_all(self) -> None:
        """Report everything again, after a reset of the cache."""
        for edge in self._edges:
            self.add(edge)

    def add_rest(self, gone: Edge) -> None:
        """Report the new last edge of a chain whose last edge is ``gone``."""
        pieces = self._tier.plan(gone.packed, 0, gone.whose)
        if pieces and pieces[-1].end == pieces[-1].edge.end and pieces[-1].edge not in self._edges:
            self.add(pieces[-1].edge)

    def discard(self, edge: Edge) -> None:
        if edge in self._edges:
            del self._edges[edge]
            self._doubtful.pop(edge, None)
            self.changes.evict(FIRST_EDGE_ID + edge.edge_id)

    def lost_cells(self) -> None:
        """Some cells are in no cache any more."""
        if self._tier.keeps_states:
            self._doubtful.update(self._edges)

    def check_doubtful(self) -> None:
        """Check some of the states whose cells may be lost. Call once a step."""
        for state in list(islice(self._doubtful, DOUBTS_PER_STEP)):
            del self._doubtful[state]
            if self._tier.reach(state.packed, self.covered(state), state.whose) < state.end:
                self.discard(state)

    def check_invariants(self) -> None:
        """Raise AssertionError when something is reported that is gone."""
        assert not any(edge.gone for edge in self._edges), "an edge that is gone is reported"
        assert all(edge in self._edges for edge in self._doubtful)
