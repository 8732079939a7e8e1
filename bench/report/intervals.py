"""Statistics over seeds: means with their range, and whether one policy beats another by more than chance.

Equal seeds have equal machines, homes, prompts and arrival times under every policy. So two policies are compared seed
by seed: by the geometric mean of their ratios, and by the interval in which that mean lies with 95 % confidence if the
logarithms are normally distributed (Student's t for n - 1 degrees of freedom). With three seeds that interval is wide,
2.5 standard deviations each way, so the least and the largest ratio are reported too.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_CONFIDENCE = 0.95
_DIGITS = 4


@dataclass(frozen=True)
class Measured:
    """Mean over the seeds, with the least and the largest value."""

    value: float
    min: float
    max: float


@dataclass(frozen=True)
class Ratio:
    """The ratio of two policies on the same seeds."""

    value: float
    """Geometric mean over the seeds."""
    low: float
    high: float
    """The interval of that mean with 95 % confidence; with one seed the value itself, which means nothing."""
    min: float
    max: float
    """The least and the largest ratio of a seed."""

    def __str__(self) -> str:
        high = f"{self.high:.2f}" if self.high < 1_000 else "any"
        return f"{self.value:.2f} ({self.low:.2f}-{high})"

    @property
    def is_worse(self) -> bool:
        """The first policy has more than the second, by more than chance. Less is better."""
        return self.low > 1

    @property
    def is_better(self) -> bool:
        return self.high < 1


def measured(values: Sequence[float]) -> Measured:
    """Raises ValueError without a value."""
    return Measured(round(statistics.fmean(values), _DIGITS), round(min(values), _DIGITS), round(max(values), _DIGITS))


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """ours / theirs, for the same seeds in the same order, all positive; else raises ValueError. Needs the extra
    ``bench``."""
    from scipy.special import stdtrit

    if len(ours) != len(theirs) or not ours or min(*ours, *theirs) <= 0:
        raise ValueError("paired ratios are of equally many positive values")
    logs = [math.log(one / other) for one, other in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(logs)
    reach = 0.0
    if len(logs) > 1:
        t = float(stdtrit(len(logs) - 1, (1 + _CONFIDENCE) / 2))
        reach = t * statistics.stdev(logs) / math.sqrt(len(logs))
    value, low, high, least, most = (
        round(math.exp(log), _DIGITS) for log in (mean, mean - reach, min(mean + reach, 700.0), min(logs), max(logs))
    )
    return Ratio(value, low, high, least, most)
