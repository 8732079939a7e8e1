"""``make evaluation``: every simulation of docs/evaluation.md, that document, and the data of docs/evaluation/.

Runs are kept in a folder as they end, so that an interrupted evaluation continues where it stopped. All rules of a cell
are run on the first seed, and only those that were among the best there on the others (``bars.contenders``).
"""

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from statistics import fmean

import click

from mycelia.bench.evaluation.bars import Measured, contenders
from mycelia.bench.evaluation.cache import Cache, Kept, code_version
from mycelia.bench.evaluation.plan import FULL, QUICK, SECTIONS, Cell, plan
from mycelia.bench.evaluation.text import Made, data_of, page_of
from mycelia.bench.options import FiniteRange
from mycelia.bench.report.atomic import replaced
from mycelia.bench.report.extra import check_extra
from mycelia.bench.report.report import Progress
from mycelia.bench.report.runs import Run, num_cores, outcomes
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.outcome import Outcome

_FOLDER = Path("docs")
_KEPT = Path(".evaluation")
_SEEDS = 3
_CONTENDING = 0.6
"""Share of the rules that usually run on all seeds, for the estimate of the time left."""


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Recorded workloads and measured round trips, see sim/data.py.  [default: none, and a modelled internet]",
)
@click.option("--jobs", type=click.IntRange(1, 256), help="Runs at once.  [default: the number of cores]")
@click.option("--seeds", type=click.IntRange(1, 100), default=_SEEDS, show_default=True, help="Runs of each.")
@click.option("--quick", is_flag=True, help="A few small cells in ten minutes, to see that all of it works.")
@click.option("--only", type=click.Choice(SECTIONS), multiple=True, help="These sections.  [default: all]")
@click.option(
    "--minutes",
    type=FiniteRange(min=0),
    help="Stop after this time, and write what is complete; 0: write what was run before.  [default: run everything]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Folder of evaluation.md and evaluation/.  [default: {_FOLDER}; with --quick {_KEPT}/quick]",
)
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), default=_KEPT, help="Where runs are kept.")
def evaluate(
    data: Path | None,
    jobs: int | None,
    seeds: int,
    quick: bool,
    only: tuple[str, ...],
    minutes: float | None,
    out: Path | None,
    keep: Path,
) -> None:
    """Simulate everything in docs/evaluation.md and write it. After an interruption, continue."""
    check_extra("scipy", "the evaluation")
    size = QUICK if quick else FULL
    cells = plan(size, data, only or SECTIONS)
    folder = out or (keep / "quick" if quick else _FOLDER)
    stop_at = None if minutes is None else time.monotonic() + 60 * minutes
    measured = measure(cells, seeds, jobs or num_cores(), Cache(keep), stop_at)
    if not measured:
        raise LocalError("no cell is complete yet: give it more --minutes; what was run is kept")
    made = Made(
        command=told_command(quick, data is not None, seeds, only),
        commit=_commit(),
        code_version=code_version(),
        num_seeds=seeds,
        num_peers=size.num_peers,
        internet="a matrix of measured round trips" if data else "a model: 38 ms + 0.016 ms/km, plus last miles",
        is_quick=quick,
        has_recorded=data is not None,
        num_planned=len(cells),
    )
    details = folder / "evaluation"
    details.mkdir(parents=True, exist_ok=True)
    for path, text in (
        (folder / "evaluation.md", page_of(measured, made)),
        (details / "cells.js", data_of(measured, made)),
    ):
        with replaced(path) as file:
            file.write(text)
    click.echo(f"{folder / 'evaluation.md'} is written: {len(measured)} of {len(cells)} cells.")


def measure(
    cells: Sequence[Cell], num_seeds: int, jobs: int, cache: Cache, stop_at: float | None = None
) -> list[Measured]:
    """Run what ``cells`` need and is not kept, until ``stop_at``, a time of ``time.monotonic``. The complete cells.
    Raises LocalError as ``simulate``."""
    work = _Work(cells, num_seeds, jobs, cache, stop_at)
    try:
        for group in _groups(cells):
            work.run([run for cell in group for run in cell.runs(cell.policies, [1])])
            work.run([run for cell in group for run in work.rest_of(cell)])
            for cell in group:
                work.progress.step(cell.name)
    except _TimeOver:
        work.load()
    finally:
        work.progress.close()
    return [one for cell in cells if (one := work.measured(cell)) is not None]


def told_command(quick: bool, has_data: bool, num_seeds: int, only: Sequence[str]) -> str:
    """A command that gives the same numbers, without what differs between machines: folders and cores."""
    options = [
        *(["--quick"] if quick else []),
        *(["--data DIR"] if has_data else []),
        *([f"--seeds {num_seeds}"] if num_seeds != _SEEDS else []),
        *(f"--only {section}" for section in only),
    ]
    return f'make evaluation ARGS="{" ".join(options)}"' if options else "make evaluation"


class _TimeOver(Exception):
    pass


class _Work:
    """Runs, and an estimate of the time that the others will take."""

    def __init__(self, cells: Sequence[Cell], num_seeds: int, jobs: int, cache: Cache, stop_at: float | None) -> None:
        self._cells = cells
        self._seeds = range(2, num_seeds + 1)
        self._jobs = jobs
        self._cache = cache
        self._stop_at = stop_at
        self._found: dict[Run, Outcome] = {}
        self._took: dict[object, list[float]] = {}
        """Seconds of runs of each kind."""
        self.progress = Progress(len(cells))

    def run(self, runs: Sequence[Run]) -> None:
        """Equal runs are run once. Raises _TimeOver when the time is over before the end."""
        self._load(runs)
        missing = [run for run in dict.fromkeys(runs) if run not in self._found]
        if not missing:
            return
        self._check_time()
        with closing(outcomes(missing, self._jobs)) as ended:
            for place, outcome, seconds in ended:
                run, kept = missing[place], Kept(outcome, seconds)
                self._cache.put(run, kept)
                self._take(run, kept)
                self.progress.show(f"{_name(run)}: {seconds:.0f} s; about {self._left_s() / 60:.0f} min left")
                self._check_time()

    def load(self) -> None:
        """Takes all kept runs."""
        for cell in self._cells:
            self._load(cell.runs(cell.policies, [1, *self._seeds]))

    def _load(self, runs: Sequence[Run]) -> None:
        for run in runs:
            if run not in self._found and (kept := self._cache.get(run)) is not None:
                self._take(run, kept)

    def _take(self, run: Run, kept: Kept) -> None:
        self._found[run] = kept.outcome
        self._took.setdefault(_kind(run), []).append(kept.seconds)

    def _check_time(self) -> None:
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            raise _TimeOver

    def rest_of(self, cell: Cell) -> list[Run]:
        """The runs of a cell that follow from those of its first seed."""
        first = {policy: self._found[Run(cell.scenario, policy, 1)] for policy in cell.policies}
        return cell.runs(contenders(cell, first), self._seeds)

    def measured(self, cell: Cell) -> Measured | None:
        """None unless the cell is complete."""
        if not all(run in self._found for run in cell.runs(cell.policies, [1])):
            return None
        if not all(run in self._found for run in self.rest_of(cell)):
            return None
        outcomes: Mapping[str, list[Outcome]] = {
            policy: [self._found[run] for run in cell.runs([policy], [1, *self._seeds]) if run in self._found]
            for policy in cell.policies
        }
        return Measured(cell, outcomes)

    def _expected(self, cell: Cell) -> list[Run]:
        """The runs of a cell, and more than it needs if it is not known yet which rules are among the best."""
        first = cell.runs(cell.policies, [1])
        is_known = all(run in self._found for run in first)
        return [*first, *(self.rest_of(cell) if is_known else cell.runs(cell.policies, self._seeds))]

    def _left_s(self) -> float:
        seconds = 0.0
        for cell in self._cells:
            left = [run for run in self._expected(cell) if run not in self._found]
            is_known = all(run in self._found for run in cell.runs(cell.policies, [1]))
            seconds += sum(self._expected_s(run) * (1 if is_known or run.seed == 1 else _CONTENDING) for run in left)
        return seconds / self._jobs

    def _expected_s(self, run: Run) -> float:
        known = self._took.get(_kind(run))
        return fmean(known) if known else fmean(one for kind in self._took.values() for one in kind)


def _groups(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Neighbouring cells of one section and workload: enough runs for all cores, and soon complete."""
    for _, group in groupby(cells, key=lambda cell: (cell.section, cell.scenario.workload)):
        yield list(group)


def _kind(run: Run) -> object:
    """Runs of one kind take similar times."""
    scenario = run.scenario
    return scenario.workload, scenario.num_peers, scenario.warm_s, scenario.measured_s, scenario.load


def _name(run: Run) -> str:
    return f"{run.scenario.workload}, {run.policy}, seed {run.seed}"


def _commit() -> str:
    """The short name of the commit in the working directory, with + for changes; empty if there is none."""
    try:
        commit, changes = (
            subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S607
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "proto", "sim"])
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}{'+' if changes else ''}"


def main() -> None:
    try:
        evaluate()
    except LocalError as exc:
        raise SystemExit(f"error: {exc}") from exc


if __name__ == "__main__":
    main()
