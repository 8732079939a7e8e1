"""The value of a cached piece: the chance that it is used again, from when and how often it was used.

One rule for the leaves of the prefix tree and for the edges of the second tier: evict where ``tokens saved x chance of
reuse / room held`` is least. A leaf of the tree saves one token per cell, so there only the chance decides; the second
tier, which also pays for keys, multiplies. The chance is

    (1 + uses) / (1 s + time since the last use)

the shape of Hyperbolic Caching (Blankstein et al., USENIX ATC 2017), with two changes. The time runs from the last use,
so that new but idle pieces go. ``uses`` halves every ``HALF_LIFE_S`` and never exceeds ``MAX_USES``, so that no client
keeps a prefix for long by repeating it.

What counts as a use matters more than the formula. A conversation that continues extends its own last leaf; that says
nothing about the next turn (most dialogues end soon), so it only makes the leaf recent. A *branch* counts: other
prompts continue differently after the same tokens, such as after a tool's or a few-shot prompt, or repeat them
(Marconi, Pan et al., MLSys 2025, distinguishes the two for the same reason). docs/performance.md, "Eviction", has the
measurements, also of what was left out: weighing tokens by their depth, and sizes.
"""

import math
from dataclasses import dataclass

HALF_LIFE_S = 600.0
"""Among 60 to 600 s and no decay, this gains most on shared prompts and loses nowhere on conversations."""
MAX_USES = 8.0
"""A piece used this often outlives an unused one by a factor of nine, and only for minutes."""


@dataclass(slots=True)
class Reuse:
    """When and how often a piece was used. A ``now`` before the last use counts as the time of that use."""

    last_used_s: float
    uses: float = 0.0
    """Uses as of ``last_used_s``, fading since; 0..MAX_USES. The first computation is not one."""

    def uses_at(self, now: float) -> float:
        return self.uses * math.exp2(-max(0.0, now - self.last_used_s) / HALF_LIFE_S)

    def chance(self, now: float) -> float:
        """How likely the piece is used again soon, to compare pieces at one ``now``; not a probability."""
        age_s = max(0.0, now - self.last_used_s)
        return (1.0 + self.uses * math.exp2(-age_s / HALF_LIFE_S)) / (1.0 + age_s)

    def touch(self, now: float) -> None:
        """The piece is in use, which says nothing about later uses. Mutates."""
        if self.uses:
            self.uses = self.uses_at(now)
        self.last_used_s = max(self.last_used_s, now)

    def count(self, now: float) -> None:
        """Another request used the piece. Mutates."""
        self.uses = min(self.uses_at(now) + 1.0, MAX_USES)
        self.last_used_s = max(self.last_used_s, now)

    def copy(self) -> "Reuse":
        return Reuse(self.last_used_s, self.uses)

    def blended(self, tokens: int, other: "Reuse", other_tokens: int) -> "Reuse":
        """The reuse of a piece joined from two: the mean per token. Token counts are at least 1."""
        share = tokens / (tokens + other_tokens)
        return Reuse(
            other.last_used_s + share * (self.last_used_s - other.last_used_s),
            other.uses + share * (self.uses - other.uses),
        )
