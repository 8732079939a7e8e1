"""``mycelia simulate``: runs the simulator for each policy and seed, and prints one row a policy."""

import gc
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from node.bench.gossip import no_garbage_collection
from node.bench.report import Progress
from node.version import VERSION
from sim.outcome import Outcome
from sim.simulate import Scenario, simulate

_STEPS = 2
"""That a run names."""
_LEAST_WIDTH = 104
_LEGEND = """\
hit: share of prompt tokens found cached; bound: with one cache without limits. TTFT:
seconds to the first token; of seeds: the least and the largest p99. load: the busiest
node / mean. stale: cached tokens that a node was chosen for and did not hold. digest:
bytes/s received by a node. goodput: answers/s whose first token met the objective."""


@dataclass(frozen=True)
class Measured:
    """Mean over the seeds, and the least and the largest of them."""

    value: float
    min: float
    max: float


@dataclass(frozen=True)
class Ttft:
    """Time to first token."""

    p50: Measured
    p90: Measured
    p99: Measured


@dataclass(frozen=True)
class PolicyRow:
    """One policy; quantities as in ``sim.simulate.Outcome``."""

    policy: str
    hit_ratio: Measured
    hit_bound: Measured
    ttft_s: Ttft
    load_imbalance: Measured
    stale_share: Measured
    digest_bytes_per_s: Measured
    goodput: Measured
    requests: Measured
    failed: Measured


@dataclass(frozen=True)
class SimulationReport:
    """The stable shape of ``mycelia simulate --json``. All of it is of virtual time: the same on every machine."""

    version: str
    scenario: dict[str, Any]
    seeds: list[int]
    rows: list[PolicyRow]


def run_policies(
    scenario: Scenario, policies: Sequence[str], seeds: Sequence[int], shown: dict[str, Any]
) -> SimulationReport:
    """Every policy on every seed. ``shown``: the scenario as the report tells it. Raises LocalError as ``simulate``."""
    progress = Progress(_STEPS * len(policies) * len(seeds))
    rows = []
    with no_garbage_collection():
        for policy in policies:
            outcomes = []
            for seed in seeds:

                def step(what: str, policy: str = policy, seed: int = seed) -> None:
                    progress.step(f"{policy}, seed {seed}: {what}")

                outcomes.append(simulate(scenario, policy, seed, step))
                gc.collect()
            rows.append(_row(policy, outcomes))
    progress.close()
    return SimulationReport(VERSION, shown, list(seeds), rows)


def show_simulation(report: SimulationReport, as_json: bool) -> None:
    """Print the whole report to stdout."""
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return
    scenario = ", ".join(f"{name} {value}" for name, value in report.scenario.items() if value is not None)
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
            f"{row.goodput.value:.2f}",
        ]
        table.add_row(row.policy, *cells, *([f"{row.failed.value:g}"] if failed else []))
    console = Console(highlight=False)
    console.width = max(console.width, _LEAST_WIDTH)  # (a cell that is cut short is worse than a long line)
    console.print(f"{scenario}; {len(report.seeds)} seeds", soft_wrap=True)
    console.print(table)
    console.print(_LEGEND)


def _row(policy: str, outcomes: Sequence[Outcome]) -> PolicyRow:
    measured = {
        field.name: _measured([getattr(one, field.name) for one in outcomes])
        for field in fields(Outcome)
        if field.name != "ttft_quantiles_s"
    }
    return PolicyRow(
        policy=policy,
        hit_ratio=measured["hit_ratio"],
        hit_bound=measured["hit_bound"],
        ttft_s=Ttft(measured["ttft_p50_s"], measured["ttft_p90_s"], measured["ttft_p99_s"]),
        load_imbalance=measured["load_imbalance"],
        stale_share=measured["stale_share"],
        digest_bytes_per_s=measured["digest_bytes_per_s"],
        goodput=measured["goodput"],
        requests=measured["num_requests"],
        failed=measured["num_failed"],
    )


def _measured(values: Sequence[float]) -> Measured:
    digits = 4
    return Measured(round(statistics.fmean(values), digits), round(min(values), digits), round(max(values), digits))
