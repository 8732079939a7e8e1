"""Writes ``docs/evaluation.md``, from the template ``evaluation.md.j2``, and the data for its page of details."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from statistics import fmean

import msgspec
from jinja2 import Environment, StrictUndefined

from mycelia.bench.evaluation.bars import QUANTITIES, Measured, Quantity, against_best, against_oracle, bars, losses
from mycelia.bench.evaluation.plan import CONDITIONS, MMLU, ORACLE, RULES, SECTIONS, SYSTEMS, TERMS, command_of
from mycelia.sim.outcome import Outcome
from mycelia.sim.policies import OWN

_MAX_LOSSES = 20
_TEMPLATE = files("mycelia.bench.evaluation").joinpath("evaluation.md.j2")
_DIGITS = 3
_SHOWN = (
    *("ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "goodput_2s", "goodput_5s", "hit_ratio", "hit_bound", "utilisation"),
    *("load_imbalance", "num_requests", "num_refused", "num_failed"),
)
"""Fields of an outcome that the page of details shows."""


@dataclass(frozen=True)
class Made:
    """How the numbers were made."""

    command: str
    commit: str
    code_version: str
    num_seeds: int
    num_peers: int
    internet: str
    is_quick: bool
    has_recorded: bool
    num_planned: int
    """Cells of the whole plan."""


@dataclass(frozen=True)
class Group:
    """A row of a table: cells in each of which Mycelia is compared with the best other rule."""

    name: str
    cells: Sequence[Measured]

    def told(self, quantity: Quantity) -> str:
        """The mean ratio, and in bold when it is beyond the bar of a cell by more than noise."""
        ratio = against_best(quantity, self.cells)
        if ratio is None:
            return ""
        return f"**{ratio}**" if quantity.misses(ratio) else str(ratio)

    @property
    def num_missed(self) -> int:
        """Comparisons, of a cell and a quantity, that are beyond the bar by more than noise."""
        ratios = [(quantity, one.best_ratio(quantity)) for one in self.cells for quantity in QUANTITIES]
        return sum(ratio is not None and quantity.misses(ratio) for quantity, ratio in ratios)

    @property
    def num_compared(self) -> int:
        return len(self.cells) * len(QUANTITIES)

    @property
    def best(self) -> str:
        """The rule that is most often the best other one."""
        names = Counter(one.best_other(quantity) or "" for one in self.cells for quantity in QUANTITIES)
        return names.most_common(1)[0][0]


@dataclass(frozen=True)
class Beside:
    """Mycelia / another policy over many cells, on the seeds that both have."""

    policy: str
    means: dict[str, float]
    """Field of a quantity -> the geometric mean of the cells' ratios."""
    better: dict[str, int]
    """Field of a quantity -> cells in which Mycelia is better."""
    num_cells: int

    def told(self, quantity: Quantity) -> str:
        return f"{self.means[quantity.field]:.2f} ({self.better[quantity.field]})"


def page_of(everything: Sequence[Measured], made: Made) -> str:
    """The whole document. everything: the complete cells, in the order of the plan."""
    sections = {name: [one for one in everything if one.cell.section == name] for name in SECTIONS}
    mmlu = [one for one in sections[SYSTEMS] if one.cell.label("workload") == MMLU]
    environment = Environment(  # noqa: S701  Markdown
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        made=made,
        num_cells=len(everything),
        quantities=QUANTITIES,
        bars=bars(everything),
        losses=losses(sections[RULES] + sections[CONDITIONS]),
        max_losses=_MAX_LOSSES,
        loads=sorted({one.cell.label("load") for one in sections[RULES]}),
        distances=sorted({one.cell.label("rtt") for one in sections[RULES]}),
        workloads=grouped(sections[RULES], "workload"),
        conditions=grouped(sections[CONDITIONS], "condition"),
        systems=grouped(sections[SYSTEMS], "workload"),
        rules=beside_each(sections[RULES]),
        systems_rules=beside_each(mmlu),
        oracle={one.field: against_oracle(one, sections[ORACLE]) for one in QUANTITIES},
        terms=beside_each(sections[TERMS]),
        example=command_of(everything[0].cell, made.num_seeds),
    )


def grouped(cells: Iterable[Measured], label: str) -> list[Group]:
    """Cells by the value of a label, and a last group of all."""
    groups: dict[str, list[Measured]] = {}
    for one in cells:
        groups.setdefault(one.cell.label(label), []).append(one)
    every = [one for group in groups.values() for one in group]
    return [Group(name, group) for name, group in groups.items()] + ([Group("all", every)] if len(groups) > 1 else [])


def beside_each(cells: Sequence[Measured]) -> list[Beside]:
    """Mycelia beside every other policy of ``cells``."""
    policies = dict.fromkeys(name for one in cells for name in one.result if name != OWN)
    return [_beside(name, [one for one in cells if name in one.result]) for name in policies]


def _beside(policy: str, cells: Sequence[Measured]) -> Beside:
    means, better = {}, {}
    for quantity in QUANTITIES:
        logs = []
        for one in cells:
            pairs = zip(one.values(quantity, OWN), one.values(quantity, policy), strict=False)
            logs.append(fmean(math.log(ours / theirs) for ours, theirs in pairs))
        means[quantity.field] = math.exp(fmean(logs))
        better[quantity.field] = sum(quantity.is_better(log, 0.0) for log in logs)
    return Beside(policy, means, better, len(cells))


def data_of(everything: Sequence[Measured], made: Made) -> str:
    """A script that defines EVALUATION: every cell, every rule, every seed. A page opened from a folder can load a
    script, but not JSON."""
    cells = [
        {
            "section": one.cell.section,
            "labels": dict(one.cell.labels),
            "command": command_of(one.cell, made.num_seeds),
            "rate": round(fmean(of_seed.rate for of_seed in one.result[OWN]), _DIGITS),
            "rules": {policy: _columns(outcomes) for policy, outcomes in one.result.items()},
        }
        for one in everything
    ]
    told = {"made": asdict(made), "quantities": [asdict(one) for one in QUANTITIES], "cells": cells}
    return f"const EVALUATION = {msgspec.json.encode(told).decode()};\n"


def _columns(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Field -> its values, seed by seed."""
    return {name: [_rounded(getattr(outcome, name)) for outcome in outcomes] for name in _SHOWN}


def _rounded(value: float) -> float:
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded
