"""The command line of ``mycelia simulate``. Heavy imports happen inside."""

import shlex
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import click

from mycelia.bench.options import as_json, epilog, options_of
from mycelia.bench.report.extra import check_extra
from mycelia.node.plugins import OWN_POLICY
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.scenario import Scenario
from mycelia.sim.setting import setting

DEFAULT_RATE = 8.0


@dataclass(frozen=True)
class SimulationPlan:
    """The settings of a run and its report, besides the scenario."""

    data: Path | None = setting(
        None,
        "Folder with measured data: request traces, and the round trips that --rtt internet then has.",
        metavar="DIR",
        path="folder",
    )
    rate: float | None = setting(
        None, f"Prompts per second in the whole swarm.  [default: {DEFAULT_RATE:g}; of a trace, its own]", above=0
    )
    rtt: str = setting(
        "internet",
        "Round trip between any two nodes; or that of a modelled internet; or JSON with a square matrix `rtt_ms`,"
        " gzipped or not.",
        metavar="MS|internet|FILE",
    )
    policies: tuple[str, ...] = setting(
        (OWN_POLICY,),
        "Rule that chooses the serving node: mycelia, dynamo, llmd, preble, sglang, lmetric, gorgo, longest_prefix,"
        " least_ttft, chwbl, least_load, round_robin, random, oracle; ablations: mycelia with and without each term of"
        " its cost. Repeatable.",
        "--policy",
        metavar="NAME|all|ablations",
    )
    seeds: int = setting(3, "Runs of each policy, each with another seed.", least=1, most=1_000)
    jobs: int | None = setting(None, "Runs at once.  [default: the number of cores]", least=1, most=256)
    report: Path | None = setting(
        None,
        "Also write a page with plots, one HTML file that needs nothing else; needs mycelia[bench].",
        metavar="FILE",
        path="output",
    )


@click.command(
    epilog=epilog(
        "simulate",
        "simulate --policy all --seeds 5",
        "simulate --policy all --load 0.7 --zipf 1.5 --report swarm.html",
        "simulate --policy mycelia --policy lmetric --rtt 200 --rate 10",
        "simulate --policy ablations --workload multi-turn --load 0.7",
        "simulate --policy all --load 0.5 --liars 0.3 --digest-age 30",
        "simulate --workload mooncake:conversation_trace.jsonl.gz --rate 1",
        "simulate --workload tools --load 0.5 --bursts 10",
        "simulate --workload agents --load 0.7 --warmup 300 --seconds 600",
        "simulate --data traces/ --workload hotspot --load 0.7 --policy all",
        "simulate --workload multi-turn --churn 20 --load-age 5 --digest-age 30",
        "simulate --peers 1000 --entries 50 --rate 100 --seconds 600 --seeds 1 --json > rows.json",
    )
)
@options_of(Scenario)
@options_of(SimulationPlan)
@as_json
def simulate(scenario: Scenario, plan: SimulationPlan, as_json: bool) -> None:
    """Simulate a swarm that answers prompts, with one or several routing policies.

    Nodes run the protocol itself, in virtual time; their machines are drawn from each seed: prefill 300 to 3,000
    tokens/s, decode 10 to 60, 1 to 8 slots, caches of 38,400 to 153,600 tokens. Equal seeds give equal numbers. A row
    is the mean over the seeds; --json also has the least and the largest.
    """
    if plan.rate is not None and scenario.load is not None:
        raise click.UsageError("--rate and --load say the same thing twice")
    policies = _read_policies(plan.policies)
    from mycelia.sim.data import recorded_of

    liars = scenario.liars
    try:
        recorded = recorded_of(scenario.workload, plan.data)
    except LocalError as exc:
        raise click.UsageError(str(exc)) from exc
    rtt_s, rtt_file = _read_rtt(plan.rtt, plan.data)
    has_rate = plan.rate or scenario.load or (recorded is not None and recorded.rate)
    rate = plan.rate if has_rate else DEFAULT_RATE
    scenario = replace(scenario, recorded=recorded, rate=rate, rtt_s=rtt_s, rtt_file=rtt_file)
    if scenario.num_entries is not None and scenario.num_entries > scenario.num_peers - scenario.num_liars:
        honest = " that are no liars" if liars else ""
        raise click.UsageError(f"--entries {scenario.num_entries} of --peers {scenario.num_peers}{honest}")
    shown = {
        "workload": scenario.workload,
        "zipf": scenario.zipf if recorded is None else None,
        "rate": rate,
        "load": scenario.load,
        "peers": scenario.num_peers,
        "entries": scenario.entries,
        "connections": scenario.connections,
        "rtt": "internet, measured" if plan.rtt == "internet" and rtt_file else plan.rtt,
        "loss": scenario.loss or None,
        "digest_age_s": scenario.digest_age_s,
        "load_age_s": scenario.load_age_s,
        "churn_minutes": scenario.churn_s / 60 if scenario.churn_s else None,
        "liars": liars or None,
        "bursts_s": scenario.burst_s,
        "unevenness": _other(scenario.unevenness, 10.0),
        "caches": _other(scenario.cache_share, 1.0),
        "wrong_rates": _other(scenario.wrong_rates, 1.0),
        "warmup_s": scenario.warm_s,
        "seconds": scenario.measured_s,
        "comparison": str(scenario.comparison),
        "without": " ".join(scenario.without) or None,
    }
    from mycelia.bench.report.runs import num_cores
    from mycelia.bench.simulate.simulate import run_policies, show_simulation

    # (the table has no intervals)
    compares = OWN_POLICY in policies and len(policies) > 1 and (as_json or plan.report is not None)
    if compares:
        check_extra("scipy", "a comparison of policies")
    if plan.report is not None:
        check_extra("matplotlib", "--report")
    with _report_file(plan.report) as file:
        report = run_policies(scenario, policies, range(1, plan.seeds + 1), shown, plan.jobs or num_cores(), compares)
        if file is not None:
            from mycelia.bench.simulate.page import page_of

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


def _other(value: float, usual: float) -> float | None:
    """None for the usual value, which is not shown."""
    return None if value == usual else value


def _report_file(path: Path | None) -> "AbstractContextManager[IO[str] | None]":
    """The file is made at once, so that an error shows before an hour of simulation."""
    from mycelia.bench.report.atomic import replaced

    return nullcontext() if path is None else replaced(path)


def _read_rtt(text: str, data: Path | None) -> tuple[float | None, Path | None]:
    """(seconds, None) or (None, file); neither for the modelled internet."""
    from mycelia.sim.data import internet_of

    if text == "internet":
        return None, None if data is None else internet_of(data)
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
