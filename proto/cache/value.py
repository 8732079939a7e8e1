"""What a cached piece is worth: the chance that it is used again, from when and how often it was.

One rule for the leaves of the prefix tree and for the edges of the second tier: evict where ``tokens saved x chance of
reuse / room held`` is least. A leaf of the tree saves one token a cell, so there the chance alone decides; the second
tier, which pays for keys too, multiplies. The chance is

    (1 + uses) / (1 s + time since the last use)

the shape of Hyperbolic Caching (Blankstein et al., USENIX ATC 2017), with its two weaknesses mended: the time runs from
the last use, so that what is new but idle goes, and ``uses`` halves every ``HALF_LIFE_S`` and never exceeds
``MAX_USES``, so that nobody pins a prefix for long by repeating it.

What counts as a use matters more than the formula. A conversation that goes on extends its own last leaf; that says
nothing about the next turn (most dialogues end soon), so it only makes the leaf recent. A *branch* is what counts:
other prompts go on differently after the same tokens, as after a tool's or a few-shot prompt, or repeat them (Marconi,
Pan et al., MLSys 2025, tells the two apart for the same reason). docs/performance.md, "Eviction", has the measurements,
also of what was left out: weighing tokens by their depth, and sizes.
"""

import math
from dataclasses import dataclass

HALF_LIFE_S = 600.0
"""Of 60 to 600 s and no decay, the one that gains most on shared prompts and loses nowhere on conversations."""
MAX_USES = 8.0
"""A piece that was used as often as this outlives one that never was by a factor of nine, and then only for minutes."""


@dataclass(slots=True)
class Reuse:
    """When and how often a piece was used. A ``now`` before the last use is taken for the time of that use."""

    last_used_s: float
    uses: float = 0.0
    """As of ``last_used_s``, fading since; 0..MAX_USES. Its first computation is none."""

    def uses_at(self, now: float) -> float:
        """What is left of ``uses`` at ``now``."""
        return self.uses * math.exp2(-max(0.0, now - self.last_used_s) / HALF_LIFE_S)

    def chance(self, now: float) -> float:
        """How likely it is used again soon, to compare pieces at one ``now``; no probability."""
        age_s = max(0.0, now - self.last_used_s)
        return (1.0 + self.uses * math.exp2(-age_s / HALF_LIFE_S)) / (1.0 + age_s)

    def touch(self, now: float) -> None:
        """It is in use, which says nothing about later uses. Changes this object."""
        if self.uses:
            self.uses = self.uses_at(now)
        self.last_used_s = max(self.last_used_s, now)

    def count(self, now: float) -> None:
        """It was used by another request. Changes this object."""
        self.uses = min(self.uses_at(now) + 1.0, MAX_USES)
        self.last_used_s = max(self.last_used_s, now)

    def copy(self) -> "Reuse":
        return Reuse(self.last_used_s, self.uses)

    def blended(self, tokens: int, other: "Reuse", other_tokens: int) -> "Reuse":
        """Of a piece made of two, which go together from now on: the mean a token. Token counts are at least 1."""
        share = tokens / (tokens + other_tokens)
        return Reuse(
            other.last_used_s + share * (self.last_used_s - other.last_used_s),
            other.uses + share * (self.uses - other.uses),
        )
