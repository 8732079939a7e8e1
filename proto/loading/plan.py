"""The division of a node's memory between its models: engines first, then the prefixes that models keep.

    budget  |== engine A ==|=== engine B ===|- kept by A -|--- kept by B ---|- kept by C, not loaded -|

An *engine* takes what its process was measured to hold: weights, KV cells, buffers. What is left is for *kept prefixes*
(the second tier, in memory), of models that are not loaded as well: so a model comes back warm. ``KEPT_SHARE`` of the
budget is never given to engines.

A model's part of that room has a fixed and an earned share. It earns the seconds of prefill that reused prefixes saved
it lately (``Faded``). No part changes for less than ``LEAST_CHANGE`` of the room, unless all together take too much.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

KEPT_SHARE = 1 / 8
"""The part of the budget that engines cannot take. With less, a model that is unloaded would come back cold."""
EARNED_SHARE = 0.8
"""The part of the room for prefixes that is divided by what was earned; the rest is divided equally."""
LEAST_CHANGE = 1 / 8
HALF_LIFE_S = 1_800.0
"""After this time half of what was earned, and of what was asked, counts no more."""


@dataclass(slots=True)
class Faded:
    """A sum of recent amounts, which halves every ``half_life_s``."""

    amount: float = 0.0
    at: float = 0.0
    half_life_s: float = HALF_LIFE_S

    def now(self, now: float) -> float:
        return self.amount * math.exp2(-max(0.0, now - self.at) / self.half_life_s)

    def per_hour(self, now: float) -> float:
        """The rate at which amounts were added lately."""
        return self.now(now) * math.log(2) / self.half_life_s * 3_600

    def add(self, amount: float, now: float) -> None:
        """Mutates."""
        self.amount, self.at = self.now(now) + amount, max(now, self.at)


def room_of_engines(budget: int) -> int:
    """Bytes that all engines together may take."""
    return budget - math.ceil(budget * KEPT_SHARE)


def divided(room: int, earned: Mapping[str, float]) -> dict[str, int]:
    """Each model's part of ``room`` bytes for kept prefixes. earned: seconds that each saved lately."""
    total = sum(earned.values())
    equal = room / len(earned)
    shares = {
        name: equal if not total else (1 - EARNED_SHARE) * equal + EARNED_SHARE * room * saved_s / total
        for name, saved_s in earned.items()
    }
    return {name: max(0, int(share)) for name, share in shares.items()}


def changed(given: Mapping[str, int], wanted: Mapping[str, int], room: int) -> dict[str, int]:
    """The parts to give anew, those that shrink first; empty: ``given`` is good enough."""
    is_over = sum(given.values()) > room
    far = [name for name, part in wanted.items() if abs(part - given.get(name, 0)) > LEAST_CHANGE * room]
    if not (is_over or far):
        return {}
    new = {name: part for name, part in wanted.items() if part != given.get(name, 0)}
    return dict(sorted(new.items(), key=lambda item: item[1] - given.get(item[0], 0)))
