"""``mycelia bench auto``: swarms whose nodes choose their models, in the simulator."""

from mycelia.bench.plans import AutoBench
from mycelia.bench.report.report import Progress, Report, Row, report_of, row_of
from mycelia.sim.supply import SupplyOutcome, SupplyScenario, simulate_supply


def bench_auto(bench: AutoBench) -> Report:
    """Run the benchmark. Rows of one run each are medians over the seeds."""
    rows: list[Row] = []
    with Progress(len(bench.demands) * len(bench.rules) * bench.runs) as progress:
        for demand in bench.demands:
            for rule in bench.rules:
                outcomes = []
                for seed in range(bench.seed, bench.seed + bench.runs):
                    progress.step(f"{demand}, {rule}, seed {seed}")
                    outcomes.append(simulate_supply(_scenario(bench, demand, rule, seed)))
                rows += _rows(f"{demand}_{rule}", outcomes)
    return report_of("auto", rows)


def _scenario(bench: AutoBench, demand: str, rule: str, seed: int) -> SupplyScenario:
    return SupplyScenario(rule, demand, bench.nodes, bench.days, bench.load, bench.liars, seed)


def _rows(name: str, outcomes: list[SupplyOutcome]) -> list[Row]:
    return [
        row_of(f"{name}_answered", "ratio", [one.share for one in outcomes]),
        row_of(f"{name}_moves", "per node and day", [one.moves_per_node_day for one in outcomes]),
        row_of(f"{name}_at_once", "nodes", [one.most_at_once for one in outcomes]),
    ]
