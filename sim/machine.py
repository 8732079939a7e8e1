"""How fast a simulated node computes, and how much of it a request used."""

import math
import random
from dataclasses import dataclass

from mycelia.proto.wire.blocks import STRIDE


@dataclass(frozen=True)
class EngineSpec:
    prefill_rate: float
    """Tokens/s, of one prompt at a time."""
    decode_rate: float
    """Tokens/s of one answer."""
    slots: int
    """Requests at once."""
    cache_blocks: int
    """KV cells / STRIDE."""
    grain: int = STRIDE
    """Tokens per unit of the cache: 1, or STRIDE, with which the tree is 64 times smaller."""
    start_s: float = 0.0
    """Fixed time of a prefill, in addition to its tokens."""
    depth_s: float = 0.0
    """Additional time of a token for each token before it, whose cells it attends to."""
    told_rate: float = 1.0
    """The prefill rate that the engine reports / its real one."""

    @property
    def context_tokens(self) -> int:
        """Largest number of tokens of prompt and answer."""
        return self.cache_blocks * STRIDE

    def prefill_s(self, cached: int, num_prompt: int) -> float:
        """Seconds to the first token of a prompt of which ``cached`` tokens are cached."""
        uncached = num_prompt - cached
        mean_depth = (cached + num_prompt) / 2
        return uncached / self.prefill_rate + self.start_s + uncached * self.depth_s * mean_depth


def draw_spec(rng: random.Random, unevenness: float = 10.0) -> EngineSpec:
    """A volunteer's machine, from an old laptop to a good GPU: prefill 300 to 3,000 tokens/s (log-uniform), decode 10
    to 60 (log-uniform), 1 to 8 slots and 600 to 2,400 blocks of 64 tokens (uniform), each drawn independently.
    unevenness: the greatest prefill rate / the least one, around the same middle."""
    middle, reach = math.log(300 * 3_000) / 2, math.log(unevenness) / 2
    return EngineSpec(
        prefill_rate=math.exp(rng.uniform(middle - reach, middle + reach)),
        decode_rate=math.exp(rng.uniform(math.log(10), math.log(60))),
        slots=rng.randint(1, 8),
        cache_blocks=rng.randint(600, 2_400),
    )


@dataclass(frozen=True)
class Used:
    """Engine capacity used so far. In any period each of the two is at most the period's length."""

    prefill_s: float = 0.0
    slots_s: float = 0.0
    """Seconds of slots in use / slots."""

    def __add__(self, other: "Used") -> "Used":
        return Used(self.prefill_s + other.prefill_s, self.slots_s + other.slots_s)

    def __sub__(self, other: "Used") -> "Used":
        return Used(self.prefill_s - other.prefill_s, self.slots_s - other.slots_s)

    @property
    def busy_s(self) -> float:
        """Use of the more used resource: no engine does more work than its scarcer resource allows."""
        return max(self.prefill_s, self.slots_s)
