"""``mycelia simulate``: runs the simulator for each policy and seed, and prints one row for each policy."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mycelia.bench.report.intervals import Measured, Ratio, measured, paired_ratio
from mycelia.bench.report.report import Progress
from mycelia.bench.report.runs import Run, outcomes
from mycelia.node.version import VERSION
from mycelia.sim.outcome import Outcome
from mycelia.sim.policies import OWN
from mycelia.sim.scenario import Scenario

_LEAST_WIDTH = 112
_DIGITS = 4
_QUANTITIES = [one.name for one in fields(Outcome) if one.name != "ttft_quantiles_s"]
_RENAMED = {
    "num_requests": "requests",
    "num_failed": "failed",
    "num_returned": "returned",
    "num_refused": "refused",
    "num_too_long": "too_long",
}
"""Fields of an outcome that have other names in a row."""
_LEGEND = """\
hit: share of prompt tokens found cached; bound: with one cache without limits. TTFT:
seconds to the first token; of seeds: the least and the largest p99. load: the share of
its capacity that the busiest node used / mean. stale: cached tokens that a node was chosen
for and did not hold. digest: bytes/s received by a node. goodput: answers/s whose first
token came within 2 s and within 5 s of the first time the client asked. A client that is
refused comes again when it was told to."""


@dataclass(frozen=True)
class Ttft:
    p50: Measured
    p90: Measured
    p99: Measured


@dataclass(frozen=True)
class PolicyRow:
    """One policy; quantities as in ``sim.outcome.Outcome``."""

    policy: str
    hit_ratio: Measured
    hit_bound: Measured
    ttft_s: Ttft
    load_imbalance: Measured
    stale_share: Measured
    digest_bytes_per_s: Measured
    goodput_2s: Measured
    goodput_5s: Measured
    requests: Measured
    failed: Measured
    returned: Measured
    refused: Measured
    too_long: Measured
    rate: Measured
    utilisation: Measured
    liar_share: Measured
    ttft_quantiles_s: list[float]
    """At ``sim.outcome.QUANTILES``, each the mean over the seeds."""


@dataclass(frozen=True)
class Paired:
    """The protocol's own rule / another one, on the same seeds."""

    policy: str
    ttft_p50: Ratio
    ttft_p99: Ratio


@dataclass(frozen=True)
class SimulationReport:
    """The stable shape of ``mycelia simulate --json``. All of it is of virtual time: the same on every machine."""

    version: str
    scenario: dict[str, Any]
    seeds: list[int]
    rows: list[PolicyRow]
    paired: list[Paired]
    """The comparison with each other policy; empty without the protocol's own, and if not requested."""


def run_policies(
    scenario: Scenario, policies: Sequence[str], seeds: Sequence[int], shown: dict[str, Any], jobs: int, compares: bool
) -> SimulationReport:
    """Every policy on every seed, ``jobs`` runs at once. shown: the scenario as the report names it. compares: fills
    ``paired``, which needs the extra ``bench``. Raises LocalError as ``simulate``."""
    runs = [Run(scenario, policy, seed) for policy in policies for seed in seeds]
    found: dict[Run, Outcome] = {}
    with Progress(len(runs)) as progress:
        progress.show(f"{len(runs)} runs, {min(jobs, len(runs))} at once")
        for place, outcome, _ in outcomes(runs, jobs):
            found[runs[place]] = outcome
            progress.step(f"{runs[place].policy}, seed {runs[place].seed}")
    by_policy = {policy: [found[Run(scenario, policy, seed)] for seed in seeds] for policy in policies}
    rows = [row_of_policy(policy, by_policy[policy]) for policy in policies]
    return SimulationReport(VERSION, shown, list(seeds), rows, _paired(by_policy) if compares else [])


def row_of_policy(policy: str, of_seeds: Sequence[Outcome]) -> PolicyRow:
    """Raises ValueError without an outcome."""
    over_seeds = {name: measured([getattr(one, name) for one in of_seeds]) for name in _QUANTITIES}
    quantiles = zip(*(one.ttft_quantiles_s for one in of_seeds), strict=True)
    rest = {_RENAMED.get(name, name): value for name, value in over_seeds.items() if not name.startswith("ttft")}
    return PolicyRow(
        policy=policy,
        ttft_s=Ttft(over_seeds["ttft_p50_s"], over_seeds["ttft_p90_s"], over_seeds["ttft_p99_s"]),
        ttft_quantiles_s=[round(statistics.fmean(values), _DIGITS) for values in quantiles],
        **rest,
    )


def show_simulation(report: SimulationReport, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return
    failed = any(row.failed.max for row in report.rows)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("policy", no_wrap=True)
    names = ["hit/bound", "TTFT p50", "p90", "p99 s", "of seeds", "load", "stale", "digest", "goodput"]
    for name in [*names, "failed"] if failed else names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        ttft = row.ttft_s
        cells = [
            f"{row.hit_ratio.value:.3f}/{row.hit_bound.value:.3f}",
            f"{ttft.p50.value:.2f}",
            f"{ttft.p90.value:.2f}",
            f"{ttft.p99.value:.2f}",
            f"{ttft.p99.min:.1f}-{ttft.p99.max:.1f}",
            f"{row.load_imbalance.value:.1f}",
            f"{row.stale_share.value:.3f}",
            f"{row.digest_bytes_per_s.value:.0f}",
            f"{row.goodput_2s.value:.2f}/{row.goodput_5s.value:.2f}",
        ]
        table.add_row(row.policy, *cells, *([f"{row.failed.value:.0f}"] if failed else []))
    console = Console(highlight=False)
    console.width = max(console.width, _LEAST_WIDTH)  # (a truncated table cell is worse than a long line)
    console.print(f"{told_scenario(report)}; {len(report.seeds)} seeds", soft_wrap=True)
    console.print(table)
    console.print(_LEGEND)


def told_scenario(report: SimulationReport) -> str:
    return ", ".join(f"{name} {value}" for name, value in report.scenario.items() if value is not None)


def _paired(by_policy: dict[str, list[Outcome]]) -> list[Paired]:
    paired = []
    own = by_policy.get(OWN, [])
    for policy, others in by_policy.items():
        ttfts = [(one.ttft_p50_s, one.ttft_p99_s) for one in (*own, *others)]
        if policy == OWN or not own or min(min(pair) for pair in ttfts) <= 0:
            continue
        p50, p99 = (
            paired_ratio([getattr(one, name) for one in own], [getattr(one, name) for one in others])
            for name in ("ttft_p50_s", "ttft_p99_s")
        )
        paired.append(Paired(policy, p50, p99))
    return paired
