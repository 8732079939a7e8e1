"""Mycelia beside the other rules: in each cell, over many cells, and against the bars."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from mycelia.bench.evaluation.plan import CONDITIONS, MMLU, RULES, SYSTEMS, Cell
from mycelia.bench.report.intervals import Ratio, paired_ratio
from mycelia.sim.outcome import Outcome
from mycelia.sim.policies import ORACLES, OWN

Result = Mapping[str, Sequence[Outcome]]
"""Policy -> its outcomes, seed by seed."""
CONTENDERS = 2
"""Rules that are run on all seeds for each quantity: those that were best on the first one."""
LEAST_S = 1e-3
"""No wait counts as shorter."""


@dataclass(frozen=True)
class Quantity:
    """What is compared."""

    field: str
    """A field of ``Outcome``."""
    title: str
    is_wait: bool
    """Less is better; otherwise more."""
    never: float
    """The bar in each cell: the ratio is never worse than this by more than noise."""
    mean: float | None = None
    """The bar over all cells: the geometric mean of the ratios is no worse than this."""

    def of(self, cell: Cell, outcome: Outcome) -> float:
        """Positive: a wait is not shorter than ``LEAST_S``; a goodput at least that of half an answer."""
        least = LEAST_S if self.is_wait else 0.5 / cell.scenario.measured_s
        return max(float(getattr(outcome, self.field)), least)

    def is_better(self, one: float, other: float) -> bool:
        return one < other if self.is_wait else one > other

    def misses(self, ratio: Ratio) -> bool:
        """Whether Mycelia / another rule is worse than the bar of a cell by more than noise."""
        return ratio.low > self.never if self.is_wait else ratio.high < self.never


P99 = Quantity("ttft_p99_s", "p99 TTFT", True, 1.0, 0.75)
P50 = Quantity("ttft_p50_s", "p50 TTFT", True, 1.05, 0.95)
GOOD_2S = Quantity("goodput_2s", "goodput, 2 s", False, 0.98)
GOOD_5S = Quantity("goodput_5s", "goodput, 5 s", False, 0.98)
QUANTITIES = (P99, P50, GOOD_2S, GOOD_5S)
_BETTER_IN = 0.8
"""The bar on the share of cells in which Mycelia's p99 is less."""
_SYSTEMS_P99 = 0.4


@dataclass(frozen=True)
class Measured:
    cell: Cell
    result: Result

    @property
    def num_seeds(self) -> int:
        return len(self.result[OWN])

    @property
    def others(self) -> list[str]:
        """The other rules that ran on all seeds, without oracles and ablations."""
        return [
            name
            for name, outcomes in self.result.items()
            if len(outcomes) == self.num_seeds and name not in ORACLES and not name.startswith(OWN)
        ]

    def values(self, quantity: Quantity, policy: str) -> list[float]:
        return [quantity.of(self.cell, one) for one in self.result[policy]]

    def typical(self, quantity: Quantity, policy: str) -> float:
        """The geometric mean over the seeds."""
        return math.exp(fmean(map(math.log, self.values(quantity, policy))))

    def ratio(self, quantity: Quantity, other: str, policy: str = OWN) -> Ratio:
        return paired_ratio(self.values(quantity, policy), self.values(quantity, other))

    def best(self, quantity: Quantity, names: Sequence[str]) -> str:
        """The best one of ``names``, which are not empty."""
        pick = min if quantity.is_wait else max
        return pick(names, key=lambda name: self.typical(quantity, name))

    def best_other(self, quantity: Quantity) -> str | None:
        return self.best(quantity, self.others) if self.others else None

    def best_ratio(self, quantity: Quantity) -> Ratio | None:
        """Mycelia / the best other rule; None without another one."""
        other = self.best_other(quantity)
        return self.ratio(quantity, other) if other else None


def contenders(cell: Cell, first: Mapping[str, Outcome]) -> list[str]:
    """Rules that must run on the other seeds too, given what came of the first one: Mycelia, oracles and ablations, and
    of the others those that were among the best in any quantity."""
    kept = {name for name in first if name in ORACLES or name.startswith(OWN)}
    others = [name for name in first if name not in kept]
    for quantity in QUANTITIES:
        ranked = sorted(others, key=lambda name: quantity.of(cell, first[name]), reverse=not quantity.is_wait)
        kept.update(ranked[:CONTENDERS])
    return [name for name in first if name in kept]


def overall(quantity: Quantity, cells: Sequence[Measured], other: Callable[[Measured], str | None]) -> Ratio | None:
    """Mycelia / another rule: the geometric mean over all cells, with the interval of its variation over the seeds.
    other: which rule, in each cell; None: the cell does not count. None if no cell counts."""
    chosen = [(one, name) for one in cells if (name := other(one)) is not None]
    if not chosen:
        return None
    seeds = range(min(one.num_seeds for one, _ in chosen))

    def mean(value: Callable[[Measured, str], list[float]], seed: int) -> float:
        return math.exp(fmean(math.log(value(one, name)[seed]) for one, name in chosen))

    ours = [mean(lambda one, name: one.values(quantity, OWN), seed) for seed in seeds]
    theirs = [mean(lambda one, name: one.values(quantity, name), seed) for seed in seeds]
    return paired_ratio(ours, theirs)


def against_best(quantity: Quantity, cells: Sequence[Measured]) -> Ratio | None:
    return overall(quantity, cells, lambda one: one.best_other(quantity))


def against_oracle(quantity: Quantity, cells: Sequence[Measured]) -> Ratio | None:
    """Against the best oracle of each cell that has any."""

    def best(one: Measured) -> str | None:
        oracles = [name for name in ORACLES if len(one.result.get(name, ())) == one.num_seeds]
        return one.best(quantity, oracles) if oracles else None

    return overall(quantity, cells, best)


@dataclass(frozen=True)
class Loss:
    """A cell in which another rule is better on average."""

    measured: Measured
    quantity: Quantity
    other: str
    ratio: Ratio

    @property
    def is_clear(self) -> bool:
        """Beyond the bar by more than noise."""
        return self.quantity.misses(self.ratio)


def losses(everything: Iterable[Measured]) -> list[Loss]:
    """Clear ones first, then the largest ones first."""
    found = []
    for one in everything:
        for quantity in QUANTITIES:
            other = one.best_other(quantity)
            if other is not None and quantity.is_better(1.0, (ratio := one.ratio(quantity, other)).value):
                found.append(Loss(one, quantity, other, ratio))
    return sorted(found, key=lambda loss: (not loss.is_clear, -abs(math.log(loss.ratio.value))))


@dataclass(frozen=True)
class Bar:
    """One row of the report's first table."""

    what: str
    bar: str
    measured: str
    is_met: bool


def bars(everything: Sequence[Measured]) -> list[Bar]:
    """The bars that could be measured."""
    made = []
    for section, told in ((RULES, "every workload, load and distance"), (CONDITIONS, "every condition")):
        cells = [one for one in everything if one.cell.section == section and one.others]
        made += [_bar(quantity, told, cells) for quantity in QUANTITIES if cells]
    mmlu = [one for one in _in(everything, SYSTEMS) if one.cell.label("workload") == MMLU]
    mean = against_best(P99, mmlu)
    if mean is not None:
        is_met = mean.value <= _SYSTEMS_P99
        made.append(Bar("p99 TTFT, whole systems, MMLU", f"mean <= {_SYSTEMS_P99}x", str(mean), is_met))
    return made


def _bar(quantity: Quantity, told: str, cells: Sequence[Measured]) -> Bar:
    ratios = [ratio for one in cells if (ratio := one.best_ratio(quantity)) is not None]
    mean = against_best(quantity, cells)
    assert mean is not None
    missed = sum(map(quantity.misses, ratios))
    better = sum(quantity.is_better(ratio.value, 1.0) for ratio in ratios)
    bound = f"never {'>' if quantity.is_wait else '<'} {quantity.never:g}x beyond noise"
    is_met = missed == 0
    if quantity.mean is not None:
        bound += f", mean <= {quantity.mean:g}x"
        is_met = is_met and mean.value <= quantity.mean
    if quantity is P99:
        bound += f", better in {_BETTER_IN:.0%}"
        is_met = is_met and better >= _BETTER_IN * len(ratios)
    said = f"{mean}; better in {better} of {len(ratios)}, beyond the bar in {missed}"
    return Bar(f"{quantity.title}, {told}", bound, said, is_met)


def _in(everything: Iterable[Measured], section: str) -> list[Measured]:
    return [one for one in everything if one.cell.section == section]
