"""The simulations of ``make evaluation``: cells, each a scenario under several policies, in sections.

Run lengths are a compromise: on two cores all of it takes some hours. Where 30 machines are loaded, there are some 50
prompts a second, so a p99 of one run is that of a few thousand prompts.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mycelia.bench.report.runs import Run
from mycelia.sim.ablations import ABLATIONS
from mycelia.sim.data import TRACES, internet_of, recorded_of
from mycelia.sim.policies import NAMES, ORACLES, OWN
from mycelia.sim.scenario import Scenario

SWEEP, SIZES, IMBALANCE, FRESHNESS = "sweep", "sizes", "imbalance", "freshness"
NO_SHARING, LIARS, CHURN, TALKS, ABLATION = "no sharing", "liars", "churn", "conversations", "ablations"

INTERNET = "internet"
FRESH = (1.0, 0.1)
"""Ages of digests and load in seconds: no system announces anything fresher."""
LIAR_SHARE = 0.3
CHURN_S = 20 * 60.0

_BASE = Scenario(zipf=1.1, rate=None, load=0.7, digest_age_s=30.0, load_age_s=1.0, drain_s=120.0)
_SLOW_DRAIN_S = 600.0
_CLOSE = ("least_load", "longest_prefix", "lmetric", "gorgo", OWN, *ORACLES)
"""Policies of the sections that compare few: the paper's, the best baselines, and their bound."""

Labels = tuple[tuple[str, str], ...]
"""The labels of a cell within its section: (name, value)."""


@dataclass(frozen=True)
class Cell:
    """One scenario under some policies, on every seed."""

    section: str
    labels: Labels
    scenario: Scenario
    policies: tuple[str, ...]

    def label(self, name: str) -> str:
        """Raises KeyError for a label that the cell does not have."""
        return dict(self.labels)[name]

    def runs(self, num_seeds: int) -> list[Run]:
        return [Run(self.scenario, policy, seed) for policy in self.policies for seed in range(1, num_seeds + 1)]


@dataclass(frozen=True)
class Size:
    num_peers: int = 30
    delays: tuple[str, ...] = ("0", "20", "80", "200", INTERNET)
    """Round trips in ms between any two nodes, or the internet's."""
    zipfs: tuple[float, ...] = (0.0, 0.8, 1.1, 1.5)
    loads: tuple[float, ...] = (0.5, 0.7, 0.9)
    policies: tuple[str, ...] = NAMES
    peers: tuple[int, ...] = (8, 16, 64, 256)
    sweep_s: tuple[float, float] = (30.0, 20.0)
    """Warm-up and measured time of each cell of the sweep. A shorter warm-up measures empty caches."""
    large_s: tuple[float, float] = (40.0, 20.0)
    """``sweep_s`` for swarms of more than 64 nodes."""
    long_s: tuple[float, float] = (60.0, 60.0)
    """``sweep_s`` for the other sections."""
    even_s: tuple[float, float] = (60.0, 120.0)
    """``sweep_s`` where utilisation is compared: in half a minute, chance makes the busiest of 16 nodes 10 % busier."""
    slow_s: tuple[float, float] = (90.0, 300.0)
    """``sweep_s`` where prompts are few, or nodes come and go."""
    trace_s: tuple[float, float] = (200.0, 400.0)
    """``sweep_s`` for measured traces, whose caches fill slowly."""
    few: tuple[str, ...] = _CLOSE
    liar_loads: tuple[float, ...] = (0.3, 0.5)
    ablated: tuple[str, ...] = ("mmlu", "multi-turn")


FULL = Size()
SHORT = Size(
    delays=("0", "200", INTERNET),
    zipfs=(0.0, 1.5),
    loads=(0.5, 0.9),
    policies=_CLOSE,
    peers=(8, 16, 64),
    long_s=(60.0, 30.0),
    slow_s=(60.0, 120.0),
    few=("lmetric", "gorgo", OWN, *ORACLES),
    liar_loads=(0.5,),
    ablated=("mmlu",),
)
QUICK = Size(
    num_peers=12,
    delays=("20", INTERNET),
    zipfs=(0.8, 1.5),
    loads=(0.7,),
    policies=_CLOSE,
    peers=(8, 16),
    large_s=(30.0, 20.0),
    long_s=(60.0, 20.0),
    even_s=(60.0, 20.0),
    slow_s=(20.0, 60.0),
    trace_s=(20.0, 60.0),
)


SECTIONS = (SWEEP, SIZES, IMBALANCE, FRESHNESS, NO_SHARING, LIARS, CHURN, TALKS, ABLATION)


def plan(size: Size, data: Path | None, only: Collection[str] = SECTIONS) -> list[Cell]:
    """All cells in the sections ``only``, in the order of the report. data: the folder of measured traces and round
    trips; None: there are none. Raises LocalError when a file is missing."""
    rtt_file = internet_of(data) if data is not None else None
    base = replace(_BASE, num_peers=size.num_peers, rtt_file=rtt_file)
    cells = [*_sweep(size, base), *_sizes(size, base), *_robustness(size, base)]
    if data is not None:
        for name in TRACES:
            replayed = replace(base, workload=name, recorded=recorded_of(name, data), drain_s=_SLOW_DRAIN_S)
            cells.append(Cell(TALKS, (("workload", name),), _timed(replayed, size.trace_s), size.policies))
    return [cell for cell in cells if cell.section in only]


def _sweep(size: Size, base: Scenario) -> list[Cell]:
    base = _timed(base, size.sweep_s)
    return [
        Cell(
            SWEEP,
            (("rtt", delay), ("zipf", f"{zipf:g}"), ("load", f"{load:g}")),
            replace(base, rtt_s=None if delay == INTERNET else float(delay) / 1000, zipf=zipf, load=load),
            size.policies,
        )
        for delay in size.delays
        for zipf in size.zipfs
        for load in size.loads
    ]


def _sizes(size: Size, base: Scenario) -> list[Cell]:
    cells = []
    for num_peers in size.peers:
        lasts = size.large_s if num_peers > 64 else size.sweep_s
        scenario = _timed(replace(base, num_peers=num_peers), lasts)
        cells.append(Cell(SIZES, (("peers", str(num_peers)),), scenario, size.few))
    even = _timed(replace(base, num_peers=16, zipf=1.5), size.even_s)
    return [*cells, Cell(IMBALANCE, (("peers", "16"),), even, size.few)]


def _robustness(size: Size, base: Scenario) -> list[Cell]:
    long, slow = _timed(base, size.long_s), _timed(replace(base, drain_s=_SLOW_DRAIN_S), size.slow_s)
    cells = [
        Cell(
            FRESHNESS,
            (("digests", f"{digest_s:g} s"), ("load", f"{load_s:g} s")),
            replace(long, digest_age_s=digest_s, load_age_s=load_s),
            (OWN,),
        )
        for digest_s, load_s in (FRESH, (30.0, 0.1), (1.0, 1.0), (30.0, 1.0), (30.0, 5.0), (30.0, 30.0))
    ]
    cells.append(Cell(NO_SHARING, (), replace(long, workload="no-sharing"), size.policies))
    honest = size.num_peers - round(LIAR_SHARE * size.num_peers)
    for load in size.liar_loads:
        for share in (0.0, LIAR_SHARE):
            swarm = replace(long, load=load, liars=share, num_entries=honest)
            cells.append(Cell(LIARS, (("load", f"{load:g}"), ("liars", f"{share:.0%}")), swarm, size.few))
    entries = size.num_peers // 3
    for churn_s, told in ((None, "none"), (CHURN_S, f"{CHURN_S / 60:g} min")):
        swarm = replace(slow, churn_s=churn_s, num_entries=entries, load=0.5)
        cells.append(Cell(CHURN, (("sessions", told),), swarm, (OWN,)))
    cells.append(Cell(TALKS, (("workload", "multi-turn"),), replace(slow, workload="multi-turn"), size.policies))
    for workload in size.ablated:
        swarm = replace(long if workload == "mmlu" else slow, workload=workload)
        cells.append(Cell(ABLATION, (("workload", workload),), swarm, (OWN, *ABLATIONS)))
    return cells


def _timed(scenario: Scenario, lasts: tuple[float, float]) -> Scenario:
    return replace(scenario, warm_s=lasts[0], measured_s=lasts[1])


def command_of(cell: Cell, num_seeds: int, data: str = "DIR") -> str:
    """The ``mycelia simulate`` command that gives this cell's numbers."""
    scenario = cell.scenario
    rtt = INTERNET if scenario.rtt_s is None else f"{1000 * scenario.rtt_s:g}"
    options: Mapping[str, object] = {
        "data": data if scenario.rtt_file or scenario.recorded else None,
        "workload": scenario.workload if scenario.workload != "mmlu" else None,
        "zipf": f"{scenario.zipf:g}" if scenario.recorded is None else None,
        "load": f"{scenario.load:g}",
        "peers": scenario.num_peers,
        "entries": scenario.num_entries,
        "rtt": rtt,
        "digest-age": _number(scenario.digest_age_s),
        "load-age": _number(scenario.load_age_s),
        "churn": _number(scenario.churn_s and scenario.churn_s / 60),
        "liars": _number(scenario.liars or None),
        "warmup": f"{scenario.warm_s:g}",
        "seconds": f"{scenario.measured_s:g}",
        "drain": f"{scenario.drain_s:g}",
        "seeds": num_seeds,
    }
    told = " ".join(f"--{name} {value}" for name, value in options.items() if value is not None)
    return f"mycelia simulate {told} {_policies(cell.policies)}"


def _policies(names: Sequence[str]) -> str:
    if names == NAMES:
        return "--policy all"
    if names == (OWN, *ABLATIONS):
        return "--policy ablations"
    return " ".join(f"--policy {name}" for name in names)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:g}"
