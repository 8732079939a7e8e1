"""What several seeds say: means with their range, and whether one policy beats another by more than chance.

Equal seeds have equal machines, homes, prompts and times of arrival under every policy, so two policies are compared
seed by seed: the ratio of theirs, its geometric mean, and the interval in which that mean lies with 95 % confidence if
the logarithms are normally distributed (Student's t for n - 1 degrees of freedom). With three seeds that interval is
wide, 2.5 standard deviations each way; the least and the largest ratio are told too.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; above that within 2 % of the normal's.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL95 = 1.96
_DIGITS = 4


@dataclass(frozen=True)
class Measured:
    """Mean over the seeds, and the least and the largest of them."""

    value: float
    min: float
    max: float


@dataclass(frozen=True)
class Ratio:
    """Of two policies on the same seeds."""

    value: float
    """Geometric mean."""
    low: float
    high: float
    """Where that lies with 95 % confidence; the value itself for one seed, which says nothing."""
    min: float
    max: float
    """Of single seeds."""

    @property
    def is_worse(self) -> bool:
        """Of quantities where less is better: the first is more, and by more than chance."""
        return self.low > 1

    @property
    def is_better(self) -> bool:
        return self.high < 1


def measured(values: Sequence[float]) -> Measured:
    """Raises ValueError for none."""
    return Measured(round(statistics.fmean(values), _DIGITS), round(min(values), _DIGITS), round(max(values), _DIGITS))


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """ours / theirs; the same seeds in the same order, all positive. Raises ValueError otherwise."""
    if len(ours) != len(theirs) or not ours or min(*ours, *theirs) <= 0:
        raise ValueError("paired ratios are of equally many positive values")
    logs = [math.log(one / other) for one, other in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(logs)
    reach = 0.0
    if len(logs) > 1:
        t = _T95[len(logs) - 2] if len(logs) - 2 < len(_T95) else _NORMAL95
        reach = t * statistics.stdev(logs) / math.sqrt(len(logs))
    value, low, high, least, most = (
        round(math.exp(log), _DIGITS) for log in (mean, mean - reach, min(mean + reach, 700.0), min(logs), max(logs))
    )
    return Ratio(value, low, high, least, most)
