"""``make evaluation``: every experiment of docs/evaluation.md, and that document.

Runs are kept in a directory as they end, so that an interrupted evaluation continues where it stopped.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import click

from mycelia.bench.evaluation.bars import Measured
from mycelia.bench.evaluation.cache import Cache, code_version, outcomes_kept
from mycelia.bench.evaluation.plan import FULL, QUICK, SECTIONS, SHORT, Cell, plan
from mycelia.bench.evaluation.text import Made, page_of
from mycelia.bench.report.atomic import replaced
from mycelia.bench.report.extra import check_extra
from mycelia.bench.report.report import Progress
from mycelia.bench.report.runs import Run, num_cores
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.outcome import Outcome

_DOCUMENT = Path("docs/evaluation.md")
_KEPT = Path(".evaluation")
_SEEDS = 3


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Measured traces and round trips, see sim/data.py.  [default: a modelled internet, no traces]",
)
@click.option("--jobs", type=click.IntRange(1, 256), help="Runs at once.  [default: the number of cores]")
@click.option("--seeds", type=click.IntRange(1, 100), default=_SEEDS, show_default=True, help="Runs of each.")
@click.option("--short", "scale", flag_value="short", help="Fewer cells and shorter runs: half an hour on two cores.")
@click.option("--quick", "scale", flag_value="quick", help="A few small cells, to see that all of it works.")
@click.option("--only", type=click.Choice(SECTIONS), multiple=True, help="These sections.  [default: all]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The document.  [default: {_DOCUMENT}; with --quick {_KEPT}/quick.md]",
)
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), default=_KEPT, help="Where runs are kept.")
def evaluate(
    data: Path | None,
    jobs: int | None,
    seeds: int,
    scale: str | None,
    only: tuple[str, ...],
    out: Path | None,
    keep: Path,
) -> None:
    """Simulate every experiment of docs/evaluation.md and write it. After an interruption, continue."""
    check_extra("scipy", "the evaluation")
    size = {None: FULL, "short": SHORT, "quick": QUICK}[scale]
    cells = plan(size, data, only or SECTIONS)
    cache = Cache(keep)
    path = out or (keep / "quick.md" if scale == "quick" else _DOCUMENT)
    made = Made(
        command=told_command(scale, data is not None, seeds, only),
        code_version=code_version(),
        num_seeds=seeds,
        num_peers=size.num_peers,
        internet="a matrix of measured round trips" if data else "a model: 38 ms + 0.016 ms/km, plus last miles",
        scale=scale or "full",
        with_traces=data is not None,
    )
    with replaced(path) as file:
        file.write(page_of(measure(cells, seeds, jobs or num_cores(), cache), made))
    click.echo(f"{path} is written.")


def measure(cells: Sequence[Cell], num_seeds: int, jobs: int, cache: Cache) -> list[Measured]:
    """All outcomes that ``cells`` need, kept ones included. Raises LocalError as ``simulate``."""
    runs = [run for cell in cells for run in cell.runs(num_seeds)]
    distinct = list(dict.fromkeys(runs))
    found: dict[Run, Outcome] = {}
    work_left = sum(map(_work, distinct))
    began, done = time.monotonic(), 0.0
    with Progress(len(distinct)) as progress:
        for run, outcome, is_new in outcomes_kept(distinct, jobs, cache):
            found[run] = outcome
            work_left -= _work(run)
            done += _work(run) if is_new else 0.0
            left = f", about {work_left * (time.monotonic() - began) / done / 60:.0f} min left" if done else ", kept"
            progress.step(f"{run.policy}, seed {run.seed}{left}")
    return [
        Measured(
            cell,
            {
                policy: [found[Run(cell.scenario, policy, seed)] for seed in range(1, num_seeds + 1)]
                for policy in cell.policies
            },
        )
        for cell in cells
    ]


def told_command(scale: str | None, has_data: bool, num_seeds: int, only: Sequence[str]) -> str:
    """A command that gives the same numbers, without what differs between machines: folders and cores."""
    options = [
        *([f"--{scale}"] if scale else []),
        *(["--data DIR"] if has_data else []),
        *([f"--seeds {num_seeds}"] if num_seeds != _SEEDS else []),
        *(f"--only '{section}'" for section in only),
    ]
    return f'make evaluation ARGS="{" ".join(options)}"' if options else "make evaluation"


def _work(run: Run) -> float:
    """The approximate work of a run: its number of prompts."""
    scenario = run.scenario
    return (scenario.load or 1.0) * scenario.num_peers * (20.0 + scenario.warm_s + scenario.measured_s)


def main() -> None:
    try:
        evaluate()
    except LocalError as exc:
        raise SystemExit(f"error: {exc}") from exc


if __name__ == "__main__":
    main()
