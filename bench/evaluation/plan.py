"""The simulations of ``make evaluation`` as data: workloads, conditions, and the cells that follow from them.

A cell is a scenario under several rules, on every seed. Cells come in sections:

- ``rules``: every workload at every load and distance, where all rules have the same mechanisms (hand-backs, moves,
  load subscriptions, bounded queues, luck; see ``sim/mechanisms.py``).
- ``conditions``: the same comparison where one thing is worse than usual.
- ``systems``: whole systems as they are: only Mycelia has its mechanisms.
- ``terms``: Mycelia with and without each term and mechanism.
- ``oracles``: Mycelia beside rules that know the true state of every engine.

Cells come in the order of what they say, so that an evaluation that is stopped early has the most important ones. All
take two cores some ten hours: with 30 machines at a load of 0.7 some 60 prompts of MMLU come a second, so a p99 of one
run is that of some 1,300 prompts; of other workloads, of 300 to 2,000.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mycelia.bench.report.runs import Run
from mycelia.sim.data import RECORDED, internet_of, recorded_of
from mycelia.sim.policies import ABLATIONS, ORACLES, OTHERS, OWN
from mycelia.sim.scenario import Comparison, Scenario
from mycelia.sim.traces import Recorded

RULES, CONDITIONS, SYSTEMS, TERMS, ORACLE = SECTIONS = ("rules", "conditions", "systems", "terms", "oracles")
INTERNET = "internet"
MIDDLE_LOAD = 0.7
MMLU = "mmlu"

Labels = tuple[tuple[str, str], ...]
"""The labels of a cell within its section: (name, value)."""
_PLAIN = ("workload", "condition")
"""Labels whose values say enough."""


@dataclass(frozen=True)
class Workload:
    """A workload and how long its runs are: where prompts are few or sessions long, longer."""

    name: str
    warm_s: float
    measured_s: float
    drain_s: float = 300.0


WORKLOADS = (
    Workload("mmlu", 30, 25),
    Workload("tools", 40, 40),
    Workload("dialogues", 30, 60),
    Workload("no-sharing", 20, 30),
    Workload("multi-turn", 60, 100),
    Workload("agents", 200, 350, 600),
    Workload("hotspot", 60, 120, 600),
    Workload("conversation", 100, 200, 600),
)
"""Those with quick runs first."""


@dataclass(frozen=True)
class Condition:
    """One thing that is worse than usual, as changes of a scenario."""

    name: str
    changes: Mapping[str, Any]


def _condition(name: str, **changes: Any) -> Condition:
    return Condition(name, MappingProxyType(changes))


CONDITION_LIST = (
    _condition("one entry", num_entries=1),
    _condition("bursts of 10 s", burst_s=10.0),
    _condition("machines 1 to 20", unevenness=20.0),
    _condition("rates wrong by 2x", wrong_rates=2.0),
    _condition("without luck", without=("luck",)),
    _condition("load 10 s old", load_age_s=10.0),
    _condition("digests 5 min, load 10 s old", digest_age_s=300.0, load_age_s=10.0, num_peers=12, warm_s=330.0),
    _condition("caches of a tenth", cache_share=0.1),
    _condition("100 nodes, 10% loss", num_peers=100, loss=0.1, warm_s=20.0, measured_s=12.0),
    _condition("30% liars", liars=0.3, load=0.5),
    _condition("nodes leave after 5 min", churn_s=300.0, num_entries=10, load=0.5),
)


@dataclass(frozen=True)
class Cell:
    """One scenario under some rules, on every seed."""

    section: str
    labels: Labels
    scenario: Scenario
    policies: tuple[str, ...]

    @property
    def name(self) -> str:
        """The labels in a few words."""
        return ", ".join(value if name in _PLAIN else f"{name} {value}" for name, value in self.labels)

    def label(self, name: str) -> str:
        """Raises KeyError for a label that the cell does not have."""
        return dict(self.labels)[name]

    def runs(self, policies: Sequence[str], seeds: Sequence[int]) -> list[Run]:
        return [Run(self.scenario, policy, seed) for policy in policies for seed in seeds]


@dataclass(frozen=True)
class Size:
    num_peers: int = 30
    distances: tuple[str, ...] = (INTERNET, "20")
    """Round trips between any two nodes: the internet's, or all the same, in ms."""
    loads: tuple[float, ...] = (MIDDLE_LOAD, 0.5, 0.9)
    workloads: tuple[Workload, ...] = WORKLOADS
    conditions: tuple[Condition, ...] = CONDITION_LIST
    conditioned: tuple[str, ...] = ("tools", MMLU)
    """Workloads of the conditions."""
    rules: tuple[str, ...] = (*(name for name in OTHERS if name not in ("random", "round_robin")), OWN)
    systems: tuple[str, ...] = (*OTHERS, OWN)
    terms: tuple[str, ...] = (OWN, *ABLATIONS)
    oracles: tuple[str, ...] = (OWN, *ORACLES)


FULL = Size()
_FEW = ("least_load", "least_ttft", "longest_prefix", "lmetric", "gorgo", "llmd", OWN)
QUICK = Size(
    num_peers=12,
    distances=(INTERNET,),
    loads=(MIDDLE_LOAD,),
    workloads=tuple(one for one in WORKLOADS if one.name not in ("multi-turn", "conversation")),
    conditions=tuple(
        _condition(one.name, **{**one.changes, "num_peers": 12, "warm_s": 20.0})
        for one in CONDITION_LIST
        if one.name in ("one entry", "bursts of 10 s", "load 10 s old")
    ),
    conditioned=("tools",),
    rules=_FEW,
    systems=_FEW,
    terms=(),
    oracles=(),
)


def plan(size: Size, data: Path | None, only: Collection[str] = SECTIONS) -> list[Cell]:
    """All cells in the sections ``only``, the most important ones first. data: the folder of recorded workloads and
    measured round trips; None: there are none. Raises LocalError when a file is missing."""
    rtt_file = internet_of(data) if data is not None else None
    base = Scenario(zipf=1.1, rate=None, num_peers=size.num_peers, rtt_file=rtt_file, digest_age_s=30.0, load_age_s=1.0)
    there = [one for one in size.workloads if data is not None or one.name not in RECORDED]
    recorded = {one.name: recorded_of(one.name, data) for one in there}
    make = partial(_cell, size, base, recorded)
    middle = [make(RULES, one, MIDDLE_LOAD, INTERNET) for one in there]
    rest = [
        make(RULES, one, load, distance)
        for one in there
        for distance in size.distances
        for load in size.loads
        if (load, distance) != (MIDDLE_LOAD, INTERNET)
    ]
    conditions = [
        make(CONDITIONS, one, MIDDLE_LOAD, INTERNET, condition)
        for one in there
        if one.name in size.conditioned
        for condition in size.conditions
    ]
    systems = [
        make(SYSTEMS, one, load, distance)
        for one in there
        for distance in size.distances
        for load in size.loads
        if one.name == MMLU or (load, distance) == (MIDDLE_LOAD, INTERNET)
    ]
    terms = [make(TERMS, one, MIDDLE_LOAD, INTERNET) for one in there if size.terms]
    oracles = [make(ORACLE, one, MIDDLE_LOAD, INTERNET) for one in there if size.oracles]
    return [cell for cell in chain(middle, conditions, systems, rest, terms, oracles) if cell.section in only]


def _cell(
    size: Size,
    base: Scenario,
    recorded: Mapping[str, Recorded | None],
    section: str,
    workload: Workload,
    load: float,
    distance: str,
    condition: Condition | None = None,
) -> Cell:
    scenario = replace(
        base,
        workload=workload.name,
        recorded=recorded[workload.name],
        load=load,
        rtt_s=None if distance == INTERNET else float(distance) / 1000,
        warm_s=float(workload.warm_s),
        measured_s=float(workload.measured_s),
        drain_s=float(workload.drain_s),
        comparison=Comparison.SYSTEMS if section == SYSTEMS else Comparison.EQUAL,
    )
    labels: Labels = (("workload", workload.name), ("rtt", distance), ("load", f"{load:g}"))
    policies = {
        RULES: size.rules,
        CONDITIONS: size.rules,
        SYSTEMS: size.systems,
        TERMS: size.terms,
        ORACLE: size.oracles,
    }[section]
    if condition is not None:
        scenario = replace(scenario, **condition.changes)
        labels = (("condition", condition.name), ("workload", workload.name))
    return Cell(section, labels, scenario, policies)


def command_of(cell: Cell, num_seeds: int, data: str = "DIR") -> str:
    """The ``mycelia simulate`` command that gives this cell's numbers, and those of all other rules."""
    scenario, usual = cell.scenario, Scenario()
    rtt = INTERNET if scenario.rtt_s is None else f"{1000 * scenario.rtt_s:g}"
    options: Mapping[str, object] = {
        "data": data if scenario.rtt_file or scenario.recorded else None,
        "workload": _unusual(scenario.workload, usual.workload),
        "zipf": f"{scenario.zipf:g}",
        "load": f"{scenario.load:g}",
        "comparison": _unusual(scenario.comparison, usual.comparison),
        "without": " --without ".join(scenario.without) or None,
        "peers": scenario.num_peers,
        "entries": scenario.num_entries,
        "rtt": rtt,
        "loss": _unusual(scenario.loss, usual.loss),
        "digest-age": scenario.digest_age_s,
        "load-age": scenario.load_age_s,
        "churn": None if scenario.churn_s is None else scenario.churn_s / 60,
        "liars": _unusual(scenario.liars, usual.liars),
        "bursts": scenario.burst_s,
        "unevenness": _unusual(scenario.unevenness, usual.unevenness),
        "caches": _unusual(scenario.cache_share, usual.cache_share),
        "wrong-rates": _unusual(scenario.wrong_rates, usual.wrong_rates),
        "warmup": scenario.warm_s,
        "seconds": scenario.measured_s,
        "drain": scenario.drain_s,
        "seeds": num_seeds,
        "policy": "ablations" if cell.section == TERMS else "all",
    }
    told = " ".join(f"--{name} {_text(value)}" for name, value in options.items() if value is not None)
    return f"mycelia simulate {told}"


def _unusual(value: object, usual: object) -> object:
    return None if value == usual else value


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
