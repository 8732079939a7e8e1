"""Dishonest nodes that claim everything: the worst reports that the protocol allows, with the least work.

A dishonest node's digest announces every prefix that any node stores, at the moment it is stored, as far as a digest's
budget goes. Its vitals say that it is idle and has many slots and the highest rate that is believed. Its frames claim
that all of the prompt was cached. What it does with a prompt is its ``Conduct``.

All of it goes through the node's own overlay, as events with false content. It has no clients of its own.
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
"""Reported at the start of an answer: a node without known rates may be silent for longest."""
CLAIMED_LEAVES = 1_024
"""The newest leaves of the swarm: more than a digest has room for, and it announces only those."""


class Claims:
    def __init__(self) -> None:
        self._leaves: deque[int] = deque()
        self._next = 0

    def hear(self, stored: Sequence[tuple[int, Sequence[int]]]) -> CacheChanged:
        """Other nodes stored these (leaf, tokens): give the event to the dishonest node's overlay. Mutates."""
        claimed: list[tuple[int, Sequence[int]]] = []
        dropped: list[int] = []
        for _, tokens in stored:
            self._next += 1
            self._leaves.append(self._next)
            claimed.append((self._next, tokens))
            if len(self._leaves) > CLAIMED_LEAVES:
                dropped.append(self._leaves.popleft())
        return CacheChanged(NAMESPACE, claimed, dropped)
