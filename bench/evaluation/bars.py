"""The bars by which the evaluation is judged, with their measurements, and all places where another rule is better."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean

from mycelia.bench.evaluation.plan import CHURN, FRESH, FRESHNESS, IMBALANCE, LIAR_SHARE, LIARS, NO_SHARING, SWEEP, Cell
from mycelia.bench.report.intervals import Ratio, paired_ratio
from mycelia.sim.outcome import Outcome
from mycelia.sim.policies import ORACLE, ORACLES, OWN

Result = Mapping[str, Sequence[Outcome]]
"""Policy -> its outcomes, seed by seed."""
_LEAST_S = 1e-6


@dataclass(frozen=True)
class Measured:
    cell: Cell
    result: Result

    @property
    def name(self) -> str:
        """The section and the labels of the cell."""
        return ", ".join(filter(None, [self.cell.section, self.title]))

    @property
    def title(self) -> str:
        """The labels of the cell within its section."""
        return ", ".join(f"{name} {value}" for name, value in self.cell.labels)

    @property
    def has_failures(self) -> bool:
        return any(one.num_failed for of_seeds in self.result.values() for one in of_seeds)

    def mean(self, quantity: str, policy: str = OWN) -> float:
        """The mean over the seeds. quantity: a field of Outcome."""
        return fmean(getattr(one, quantity) for one in self.result[policy])

    def ratio(self, quantity: str, other: str, policy: str = OWN) -> Ratio:
        return ratio_of(quantity, self.result[policy], self.result[other])

    def best_baseline(self, quantity: str) -> str | None:
        """The baseline with the least ``quantity``, not the oracle or the protocol's own; None if there is none."""
        others = [name for name in self.result if name not in ORACLES and not name.startswith(OWN)]

        def typical(name: str) -> float:
            return geometric_mean([max(getattr(one, quantity), _LEAST_S) for one in self.result[name]])

        return min(others, key=typical, default=None)


def ratio_of(quantity: str, ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> Ratio:
    """Ratios of a quantity, seed by seed. Zero counts as a very small value: no wait is that short."""
    return paired_ratio(
        [max(getattr(one, quantity), _LEAST_S) for one in ours],
        [max(getattr(one, quantity), _LEAST_S) for one in theirs],
    )


@dataclass(frozen=True)
class Bar:
    """One row of the report's first table."""

    what: str
    bar: str
    measured: str
    is_met: bool


def bars(everything: Sequence[Measured]) -> list[Bar]:
    """The bars that could be measured; a shorter plan has fewer."""
    made: list[Callable[[Sequence[Measured]], list[Bar]]] = [
        _tails, _medians, _hits, _freshness, _imbalance, _no_sharing, _liars, _churn,
    ]  # fmt: skip
    return [bar for make in made for bar in make(everything)]


def losses(everything: Sequence[Measured]) -> list[tuple[Measured, str, str, Ratio]]:
    """(cell, quantity, better policy, mycelia / that policy) wherever the best baseline's mean TTFT is less:
    differences beyond noise first, the largest ones first."""
    found = []
    for one in everything:
        if one.cell.section in (FRESHNESS,) or OWN not in one.result:
            continue
        for quantity in ("ttft_p99_s", "ttft_p50_s"):
            best = one.best_baseline(quantity)
            if best is not None and (ratio := one.ratio(quantity, best)).value > 1:
                found.append((one, quantity, best, ratio))
    return sorted(found, key=lambda loss: (not loss[3].is_worse, -loss[3].value))


def _tails(everything: Sequence[Measured]) -> list[Bar]:
    ratios = []
    for one in _in(everything, SWEEP):
        best = one.best_baseline("ttft_p99_s")
        if best is not None:
            ratios.append((one.ratio("ttft_p99_s", best), one, best))
    if not ratios:
        return []
    total = len(ratios)
    worse = sum(ratio.is_worse for ratio, _, _ in ratios)
    on_all = sum(ratio.min > 1 for ratio, _, _ in ratios)
    better = sum(ratio.value < 1 for ratio, _, _ in ratios)
    clearly = sum(ratio.is_better for ratio, _, _ in ratios)
    most, where, who = max(ratios, key=lambda found: found[0].value)
    return [
        Bar(
            "p99 TTFT against the best baseline of each cell of the sweep, the oracle aside",
            "never worse by more than noise, better in most",
            f"worse by more than noise in {worse} of {total} (on every seed in {on_all}); better in {better}, of these"
            f" by more than noise in {clearly}; largest ratio {most} ({where.name}, {who})",
            worse == 0 and better * 2 > total,
        )
    ]


def _medians(everything: Sequence[Measured]) -> list[Bar]:
    made = []
    groups = (("200 ms round trips", ("rtt", "200")), ("Zipf 1.5", ("zipf", "1.5")))
    for told, label in groups:
        ratios = [
            (one.ratio("ttft_p50_s", "longest_prefix"), one)
            for one in _in(everything, SWEEP)
            if label in one.cell.labels and "longest_prefix" in one.result
        ]
        if ratios:
            most, where = max(ratios, key=lambda found: found[0].value)
            good = sum(ratio.value <= 0.8 for ratio, _ in ratios)
            made.append(
                Bar(
                    f"p50 TTFT against the longest prefix, {told}",
                    "<= 0.8x",
                    f"in {good} of {len(ratios)} cells; largest {most} ({where.name})",
                    good == len(ratios),
                )
            )
    return made


def _hits(everything: Sequence[Measured]) -> list[Bar]:
    found = [
        (one.mean("hit_ratio") / one.mean("hit_bound"), one.ratio("ttft_p99_s", ORACLE), one)
        for one in _in(everything, SWEEP)
        if ORACLE in one.result
    ]
    if not found:
        return []
    both = sum(share >= 0.95 and tail.value <= 1.2 for share, tail, _ in found)
    hits = sum(share >= 0.95 for share, _, _ in found)
    tails = sum(tail.value <= 1.2 for _, tail, _ in found)
    share, tail, where = min(found, key=lambda one: one[0])
    return [
        Bar(
            "hit ratio / that of one cache without limits, at a p99 TTFT within 1.2x of the oracle's",
            ">= 0.95",
            f"both in {both} of {len(found)} cells of the sweep, the hit ratio in {hits}, the p99 in {tails}; least"
            f" hit ratio {share:.3f} with p99 {tail.value:.2f}x ({where.name})",
            both == len(found),
        )
    ]


def _freshness(everything: Sequence[Measured]) -> list[Bar]:
    cells = {one.cell.labels: one for one in _in(everything, FRESHNESS)}
    fresh = cells.get((("digests", f"{FRESH[0]:g} s"), ("load", f"{FRESH[1]:g} s")))
    old = cells.get((("digests", "30 s"), ("load", "1 s")))
    if fresh is None or old is None:
        return []
    lost = 100 * (fresh.mean("hit_ratio") - old.mean("hit_ratio"))
    told = f"digests {FRESH[0]:g} s and load {FRESH[1]:g} s old"
    return [Bar(f"hit points lost by digests 30 s and load 1 s old, against {told}", "<= 3", f"{lost:.2f}", lost <= 3)]


def _imbalance(everything: Sequence[Measured]) -> list[Bar]:
    return [
        Bar(
            "max/mean utilisation of nodes, Zipf 1.5, 16 peers, load 0.7",
            "<= 1.3",
            f"{one.mean('load_imbalance'):.2f}; the oracle {one.mean('load_imbalance', ORACLE):.2f}",
            one.mean("load_imbalance") <= 1.3,
        )
        for one in _in(everything, IMBALANCE)
    ]


def _no_sharing(everything: Sequence[Measured]) -> list[Bar]:
    made = []
    for one in _in(everything, NO_SHARING):
        ratio = one.ratio("ttft_p99_s", "least_load")
        made.append(Bar("nothing shared: p99 TTFT against least load", "<= 1.02x", str(ratio), ratio.value <= 1.02))
    return made


def _liars(everything: Sequence[Measured]) -> list[Bar]:
    made = []
    cells = {one.cell.labels: one for one in _in(everything, LIARS)}
    for one in cells.values():
        load = ("load", one.cell.label("load"))
        honest = cells.get((load, ("liars", "0%")))
        if one.cell.scenario.liars and honest is not None:
            ratio = ratio_of("ttft_p50_s", one.result[OWN], honest.result[OWN])
            said = f"{ratio}; liars answered {one.mean('liar_share'):.0%}"
            who = f"{LIAR_SHARE:.0%} of nodes claim everything, load {load[1]}:"
            made.append(Bar(f"{who} p50 TTFT after 60 s against all honest", "<= 1.10x", said, ratio.value <= 1.1))
    return made


def _churn(everything: Sequence[Measured]) -> list[Bar]:
    cells = {one.cell.label("sessions"): one for one in _in(everything, CHURN)}
    still = cells.pop("none", None)
    if still is None:
        return []
    made = []
    for told, one in cells.items():
        ratio = ratio_of("hit_ratio", one.result[OWN], still.result[OWN])
        made.append(Bar(f"sessions of {told} (median): hit ratio against none leaving", ">= 0.9x", str(ratio),
                        ratio.value >= 0.9))  # fmt: skip
    return made


def _in(everything: Iterable[Measured], section: str) -> list[Measured]:
    return [one for one in everything if one.cell.section == section]
