"""``mycelia simulate``: its command line. Heavy imports happen inside."""

import shlex
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from mycelia.bench.options import FiniteRange as _Finite

if TYPE_CHECKING:
    from mycelia.sim.traces import TraceRow

DEFAULT_RATE = 8.0
_DEFAULT_SEEDS = 3


@click.command(
    epilog="""\b
Examples:
  mycelia simulate
  mycelia simulate --policy all --seeds 5
  mycelia simulate --policy all --load 0.7 --zipf 1.5 --report swarm.html
  mycelia simulate --policy mycelia --policy lmetric --rtt 200 --rate 10
  mycelia simulate --policy ablations --workload multi-turn --load 0.7
  mycelia simulate --policy all --load 0.5 --liars 0.3 --digest-age 30
  mycelia simulate --workload mooncake:conversation_trace.jsonl.gz --rate 1
  mycelia simulate --data traces/ --workload hotspot --load 0.7 --policy all
  mycelia simulate --workload multi-turn --churn 20 --load-age 5 --digest-age 30
  mycelia simulate --peers 1000 --entries 50 --rate 100 --seconds 600 --seeds 1 --json > rows.json"""
)
@click.option(
    "--workload",
    default="mmlu",
    show_default=True,
    metavar="NAME",
    help="mmlu, multi-turn, no-sharing, or mooncake:FILE, a trace in Mooncake's form; with --data also conversation and"
    " hotspot.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Where measured data lies: request traces, and the round trips that --rtt internet then has.",
)
@click.option("--zipf", type=_Finite(0, 3), default=1.0, show_default=True, help="Skew of what is shared.")
@click.option(
    "--rate",
    type=_Finite(0, min_open=True),
    help=f"Prompts a second in all.  [default: {DEFAULT_RATE:g}; of a trace, its own]",
)
@click.option(
    "--load",
    type=_Finite(0, min_open=True),
    metavar="SHARE",
    help="Prompts a second / what the machines could answer with perfect caches and balance; instead of --rate.",
)
@click.option("--peers", type=click.IntRange(1, 10_000), default=30, show_default=True, help="Simulated nodes.")
@click.option("--entries", type=click.IntRange(1), help="Nodes where prompts enter.  [default: all honest, at most 50]")
@click.option(
    "--connections",
    type=click.IntRange(1, 10_000),
    default=32,
    show_default=True,
    help="That a node dials for; prompts go to nodes it is connected with.",
)
@click.option(
    "--rtt",
    default="internet",
    show_default=True,
    metavar="MS|internet|FILE",
    help="Between all nodes; or that of a modelled internet; or JSON with a square matrix `rtt_ms`, gzipped or not.",
)
@click.option("--loss", type=_Finite(0, 0.9), default=0.0, show_default=True, help="Of messages, on each hop.")
@click.option(
    "--digest-age",
    type=_Finite(0),
    metavar="SECONDS",
    help="Between a node's digests.  [default: as nodes do]",
)
@click.option(
    "--load-age",
    type=_Finite(0),
    metavar="SECONDS",
    help="Between a node's reports of its load.  [default: as nodes do]",
)
@click.option(
    "--churn",
    type=_Finite(0, min_open=True),
    metavar="MINUTES",
    help="Median session of nodes where no prompts enter; volunteers' is about 120.  [default: nobody leaves]",
)
@click.option(
    "--liars",
    type=_Finite(0, 1, max_open=True),
    default=0.0,
    metavar="SHARE",
    help="Of the nodes: they claim to hold everything and to be idle and fast; no prompts enter there.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    default=("mycelia",),
    show_default=True,
    metavar="NAME|all|ablations",
    help="Who answers: mycelia, longest_prefix, lmetric, gorgo, sglang, chwbl, least_load, round_robin, random, oracle;"
    " ablations: mycelia with and without each term of its cost. Repeatable.",
)
@click.option("--seeds", type=click.IntRange(1, 1_000), default=_DEFAULT_SEEDS, show_default=True, help="Runs of each.")
@click.option("--seconds", type=_Finite(1), default=240.0, show_default=True, help="Virtual, measured.")
@click.option("--warmup", type=_Finite(0), default=60.0, show_default=True, help="Virtual seconds before that.")
@click.option(
    "--drain",
    type=_Finite(0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Virtual, for the last answers; what has no first token by then counts with the time it has waited.",
)
@click.option(
    "--objective",
    type=_Finite(0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Goodput counts the answers whose first token came this soon.",
)
@click.option("--jobs", type=click.IntRange(1, 256), help="Runs at once.  [default: the number of cores]")
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write a page with plots, one HTML file that needs nothing else.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def simulate(
    workload: str,
    data: Path | None,
    zipf: float,
    rate: float | None,
    load: float | None,
    peers: int,
    entries: int | None,
    connections: int,
    rtt: str,
    loss: float,
    digest_age: float | None,
    load_age: float | None,
    churn: float | None,
    liars: float,
    policies: tuple[str, ...],
    seeds: int,
    seconds: float,
    warmup: float,
    drain: float,
    objective: float,
    jobs: int | None,
    report_path: Path | None,
    as_json: bool,
) -> None:
    """Simulate a swarm that answers prompts, under one or several rules of who answers.

    Nodes run the protocol itself, in virtual time; their machines are drawn from each seed: prefill 300 to 3,000
    tokens/s, decode 10 to 60, 1 to 8 slots, caches of 38,400 to 153,600 tokens. Equal seeds, equal numbers. A row is
    the mean over the seeds; --json also has the least and the largest.
    """
    from mycelia.bench.report.runs import num_cores
    from mycelia.bench.simulate.page import page_of
    from mycelia.bench.simulate.simulate import run_policies, show_simulation
    from mycelia.sim.data import internet_of
    from mycelia.sim.simulate import TRACE, Scenario

    if rate is not None and load is not None:
        raise click.UsageError("--rate and --load say the same thing twice")
    chosen = _read_policies(policies)
    kind, trace = _read_workload(workload, data)
    rtt_s, rtt_file = _read_rtt(rtt)
    if rtt == "internet" and data is not None:
        rtt_file = internet_of(data)
    scenario = Scenario(
        workload=kind,
        trace=trace,
        zipf=zipf,
        rate=rate if rate or load or trace else DEFAULT_RATE,
        load=load,
        num_peers=peers,
        num_entries=entries,
        connections=connections,
        rtt_s=rtt_s,
        rtt_file=rtt_file,
        loss=loss,
        digest_age_s=digest_age,
        load_age_s=load_age,
        churn_s=churn * 60 if churn else None,
        liars=liars,
        warm_s=warmup,
        measured_s=seconds,
        drain_s=drain,
        objective_s=objective,
    )
    if entries is not None and entries > peers - scenario.num_liars:
        honest = " that are no liars" if liars else ""
        raise click.UsageError(f"--entries {entries} of --peers {peers}{honest}")
    shown = {
        "workload": workload,
        "zipf": zipf if kind != TRACE else None,
        "rate": scenario.rate,
        "load": load,
        "peers": peers,
        "entries": scenario.entries,
        "connections": connections,
        "rtt": "internet, measured" if rtt == "internet" and rtt_file else rtt,
        "loss": loss or None,
        "digest_age_s": digest_age,
        "load_age_s": load_age,
        "churn_minutes": churn,
        "liars": liars or None,
        "warmup_s": warmup,
        "seconds": seconds,
        "objective_s": objective,
    }
    with _report_file(report_path) as file:
        report = run_policies(scenario, chosen, range(1, seeds + 1), shown, jobs or num_cores())
        if file is not None:
            file.write(page_of(report, shlex.join(["mycelia", *sys.argv[1:]])))
    show_simulation(report, as_json)


def _read_policies(names: tuple[str, ...]) -> tuple[str, ...]:
    from mycelia.sim.ablations import ABLATIONS
    from mycelia.sim.policies import NAMES, OWN

    groups = {"all": NAMES, "ablations": (OWN, *ABLATIONS)}
    unknown = [name for name in names if name not in (*NAMES, *ABLATIONS, *groups)]
    if unknown:
        raise click.UsageError(f"no policy {unknown[0]}; there are {', '.join((*NAMES, *ABLATIONS, *groups))}")
    return tuple(dict.fromkeys(one for name in names for one in groups.get(name, (name,))))


def _read_workload(workload: str, data: Path | None) -> tuple[str, "tuple[TraceRow, ...]"]:
    """(kind, the rows of its trace)."""
    from mycelia.sim.data import TRACES, trace_of
    from mycelia.sim.sessions import GENERATORS
    from mycelia.sim.simulate import TRACE, load_trace

    kind, _, path = workload.partition(":")
    if workload in TRACES:
        if data is None:
            raise click.UsageError(f"--workload {workload} is a measured trace: it needs --data DIR")
        return TRACE, load_trace(trace_of(data, workload))
    if kind == TRACE and not path:
        raise click.UsageError("--workload mooncake needs a file: mooncake:FILE")
    if kind == TRACE:
        return TRACE, load_trace(Path(path))
    if workload not in GENERATORS:
        raise click.UsageError(f"no workload {workload}; there are {', '.join((*GENERATORS, *TRACES))}, mooncake:FILE")
    return workload, ()


def _report_file(path: Path | None) -> "AbstractContextManager[IO[str] | None]":
    """Made now: that it cannot be written shall show before an hour of simulation."""
    from mycelia.bench.report.atomic import replaced

    return nullcontext() if path is None else replaced(path)


def _read_rtt(text: str) -> tuple[float | None, Path | None]:
    """(seconds, None) or (None, file); neither for the modelled internet."""
    if text == "internet":
        return None, None
    try:
        milliseconds = float(text)
    except ValueError:
        path = Path(text)
        if path.is_file():
            return None, path
        raise click.UsageError(f"--rtt {text} is no number of milliseconds, not 'internet' and no file") from None
    if not 0 <= milliseconds <= 60_000:  # (NaN neither)
        raise click.UsageError("--rtt must be 0 to 60000 milliseconds")
    return milliseconds / 1000, None
