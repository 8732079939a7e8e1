"""``mycelia simulate``: its command line. Heavy imports happen inside."""

from pathlib import Path

import click

from node.bench.options import FiniteRange as _Finite

DEFAULT_RATE = 8.0
_DEFAULT_SEEDS = 3


@click.command(
    epilog="""\b
Examples:
  mycelia simulate
  mycelia simulate --policy all --seeds 5
  mycelia simulate --policy mycelia --policy lmetric --rtt 200 --rate 10
  mycelia simulate --workload mooncake:conversation_trace.jsonl.gz --rate 1
  mycelia simulate --workload multi-turn --churn 20 --load-age 5 --digest-age 30
  mycelia simulate --peers 1000 --entries 50 --rate 100 --seconds 600 --seeds 1 --json > rows.json"""
)
@click.option(
    "--workload",
    default="mmlu",
    show_default=True,
    metavar="NAME",
    help="mmlu, multi-turn, no-sharing, or mooncake:FILE, a trace in Mooncake's form.",
)
@click.option("--zipf", type=_Finite(0, 3), default=1.0, show_default=True, help="Skew of what is shared.")
@click.option(
    "--rate",
    type=_Finite(0, min_open=True),
    help=f"Prompts a second in all.  [default: {DEFAULT_RATE:g}; of a trace, its own]",
)
@click.option("--peers", type=click.IntRange(1, 10_000), default=30, show_default=True, help="Simulated nodes.")
@click.option("--entries", type=click.IntRange(1), help="Nodes where prompts enter.  [default: all, at most 50]")
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
    "--policy",
    "policies",
    multiple=True,
    default=("mycelia",),
    show_default=True,
    metavar="NAME|all",
    help="Who answers: mycelia, longest_prefix, lmetric, gorgo, sglang, chwbl, least_load, round_robin, random, oracle."
    " Repeatable.",
)
@click.option("--seeds", type=click.IntRange(1, 1_000), default=_DEFAULT_SEEDS, show_default=True, help="Runs of each.")
@click.option("--seconds", type=_Finite(1), default=240.0, show_default=True, help="Virtual, measured.")
@click.option("--warmup", type=_Finite(0), default=60.0, show_default=True, help="Virtual seconds before that.")
@click.option(
    "--objective",
    type=_Finite(0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Goodput counts the answers whose first token came this soon.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def simulate(
    workload: str,
    zipf: float,
    rate: float | None,
    peers: int,
    entries: int | None,
    connections: int,
    rtt: str,
    loss: float,
    digest_age: float | None,
    load_age: float | None,
    churn: float | None,
    policies: tuple[str, ...],
    seeds: int,
    seconds: float,
    warmup: float,
    objective: float,
    as_json: bool,
) -> None:
    """Simulate a swarm that answers prompts, under one or several rules of who answers.

    Nodes run the protocol itself, in virtual time; their machines are drawn from each seed: prefill 300 to 3,000
    tokens/s, decode 10 to 60, 1 to 8 slots, caches of 38,400 to 153,600 tokens. Equal seeds, equal numbers. A row is
    the mean over the seeds; --json also has the least and the largest.
    """
    from node.bench.simulate import run_policies, show_simulation
    from sim.policies import NAMES
    from sim.sessions import GENERATORS
    from sim.simulate import Scenario, load_trace

    kind, _, path = workload.partition(":")
    if kind == "mooncake" and not path:
        raise click.UsageError("--workload mooncake needs a file: mooncake:FILE")
    if (kind != "mooncake" and workload not in GENERATORS) or (kind == "mooncake") != bool(path):
        raise click.UsageError(f"no workload {workload}; there are {', '.join(GENERATORS)}, mooncake:FILE")
    unknown = [name for name in policies if name not in (*NAMES, "all")]
    if unknown:
        raise click.UsageError(f"no policy {unknown[0]}; there are {', '.join(NAMES)}, all")
    if entries is not None and entries > peers:
        raise click.UsageError(f"--entries {entries} of --peers {peers}")
    trace = load_trace(Path(path)) if path else ()
    rtt_s, rtt_file = _read_rtt(rtt)
    scenario = Scenario(
        workload=kind,
        trace=trace,
        zipf=zipf,
        rate=rate if rate or trace else DEFAULT_RATE,
        num_peers=peers,
        num_entries=entries,
        connections=connections,
        rtt_s=rtt_s,
        rtt_file=rtt_file,
        loss=loss,
        digest_age_s=digest_age,
        load_age_s=load_age,
        churn_s=churn * 60 if churn else None,
        warm_s=warmup,
        measured_s=seconds,
        objective_s=objective,
    )
    shown = {
        "workload": workload,
        "zipf": zipf if kind != "mooncake" else None,
        "rate": scenario.rate,
        "peers": peers,
        "entries": scenario.entries,
        "connections": connections,
        "rtt": rtt,
        "loss": loss or None,
        "digest_age_s": digest_age,
        "load_age_s": load_age,
        "churn_minutes": churn,
        "warmup_s": warmup,
        "seconds": seconds,
        "objective_s": objective,
    }
    chosen = NAMES if "all" in policies else tuple(dict.fromkeys(policies))
    show_simulation(run_policies(scenario, chosen, range(1, seeds + 1), shown), as_json)


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
