"""Nodes that claim everything: the worst that a peer can say within the protocol, and the least that it can do then.

A liar's digest tells of every prefix that anybody in the swarm stores, the moment it is stored, as far as a digest's
budget goes; its vitals say that it is idle, has many slots and the highest rate that anybody believes; and its frames
claim that all of the prompt was cached. What it does with a prompt is its ``Conduct``.

All of it goes through the liar's own overlay, as events with false content. It has no clients of its own: how a node
treats those is its own affair.
"""

from collections import deque
from collections.abc import Sequence

import msgspec

from mycelia.proto.config import RoutingConfig
from mycelia.proto.events import CacheChanged
from mycelia.proto.wire.messages import Vitals
from mycelia.sim.world import NAMESPACE

CLAIMED_VITALS = Vitals(
    queued_tokens=0,
    active_requests=0,
    waiting_requests=0,
    slots=64,
    prefill_rate=round(RoutingConfig().max_prefill_rate),
    decode_rate=10_000,
)
SILENT_VITALS = msgspec.structs.replace(CLAIMED_VITALS, prefill_rate=0, decode_rate=0)
"""Told with what it says that it has begun: a node that knows no rates may be silent for longest."""
CLAIMED_LEAVES = 1_024
"""The newest of the swarm: more than a digest has room for, and only those are told."""


class Claims:
    """What one liar tells of its cache."""

    def __init__(self) -> None:
        self._leaves: deque[int] = deque()
        self._next = 0

    def hear(self, stored: Sequence[tuple[int, Sequence[int]]]) -> CacheChanged:
        """Somebody stored these (leaf, tokens): hand the event to the liar's overlay. Mutates."""
        claimed: list[tuple[int, Sequence[int]]] = []
        dropped: list[int] = []
        for _, tokens in stored:
            self._next += 1
            self._leaves.append(self._next)
            claimed.append((self._next, tokens))
            if len(self._leaves) > CLAIMED_LEAVES:
                dropped.append(self._leaves.popleft())
        return CacheChanged(NAMESPACE, claimed, dropped)
