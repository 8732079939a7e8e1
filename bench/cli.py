"""``mycelia bench``: the command line of the benchmarks. Heavy imports happen inside the commands."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import click

from mycelia.bench.attacks.options import attacks
from mycelia.bench.options import FiniteRange
from mycelia.node.commands.running import run

MODEL_HELP = "Registered name, or a GGUF file."


@click.group(
    epilog="""\b
Examples:
  mycelia bench engine
  mycelia bench engine --against llama-server --threads 2 --json > engine.json
  mycelia bench index --against dynamo
  mycelia bench gossip --nodes 200
  mycelia bench scale --nodes 10000 --only reuse
  mycelia bench chaos-sim --nodes 50 --minutes 10
  mycelia bench swarm --json > swarm.json"""
)
def bench() -> None:
    """Measure on this machine, beside what you would use instead."""


bench.add_command(attacks)


@bench.command(
    epilog="""\b
Examples:
  mycelia bench engine
  mycelia bench engine --model ./model.gguf --threads 8 --json > engine.json
  mycelia bench engine --against llama-server"""
)
@click.option("--model", default="smollm2", show_default=True, metavar="NAME|PATH", help=MODEL_HELP)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True)
@click.option("--cells", type=click.IntRange(2_048, 16_777_216), default=8_192, show_default=True, help="KV cells.")
@click.option("--slots", type=click.IntRange(8, 64), default=8, show_default=True, help="Requests that run at once.")
@click.option("--runs", type=click.IntRange(1, 1_000), default=5, show_default=True)
@click.option("--against", type=click.Choice(["llama-server"]), help="Measure this too, run for run, and print ratios.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def engine(
    model: str, threads: int, cells: int, slots: int, runs: int, against: str | None, seed: int, as_json: bool
) -> None:
    """The engine: time to first token cold and warm, shared prefixes, throughput, event-loop lag."""
    from mycelia.bench.engine.engine import bench_engine
    from mycelia.bench.engine.target import Settings
    from mycelia.bench.report.report import show
    from mycelia.node.engine.models import resolve_model

    settings = Settings(threads=threads, cells=cells, slots=slots)
    show(run(partial(bench_engine, resolve_model(model), settings, runs, against, seed)), as_json)


@bench.command(
    epilog="""\b
Examples:
  mycelia bench index
  mycelia bench index --peers 100 --residencies 100000 --against dynamo"""
)
@click.option("--peers", type=click.IntRange(1, 100_000), default=1_000, show_default=True)
@click.option(
    "--residencies", type=click.IntRange(1_000, 100_000_000), default=1_000_000, show_default=True, help="Blocks held."
)
@click.option("--zipf", type=click.FloatRange(0, 3), default=0.8, show_default=True, help="Skew of the prompts.")
@click.option(
    "--families",
    type=click.IntRange(0, 10_000),
    default=64,
    show_default=True,
    help="Beginnings that prompts share; 0: they share nothing, the worst case.",
)
@click.option("--runs", type=click.IntRange(1, 1_000), default=5, show_default=True)
@click.option("--against", type=click.Choice(["dynamo"]), help="Measure this too, prompt for prompt, and print ratios.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the population.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def index(
    peers: int, residencies: int, zipf: float, families: int, runs: int, against: str | None, seed: int, as_json: bool
) -> None:
    """The index of who holds which blocks: lookups, updates, memory."""
    from mycelia.bench.report.report import show
    from mycelia.bench.routing.index import bench_index

    show(bench_index(peers, residencies, zipf, families, runs, against, seed), as_json)


@bench.command(
    epilog="""\b
Examples:
  mycelia bench gateway
  mycelia bench gateway --runs 1 --json | jq '.rows[] | select(.name == "hop_added_ttft_ms_p50").value'"""
)
@click.option("--requests", type=click.IntRange(1, 10_000), default=30, show_default=True, help="Of each kind, a run.")
@click.option("--streams", type=click.IntRange(1, 127), default=64, show_default=True, help="At the same time.")
@click.option("--runs", type=click.IntRange(1, 1_000), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def gateway(requests: int, streams: int, runs: int, as_json: bool) -> None:
    """The HTTP gateway: what it and a hop add to the first token, many streams, many wrong keys."""
    from mycelia.bench.gateway import GatewayBench, bench_gateway
    from mycelia.bench.report.report import show

    show(run(partial(bench_gateway, GatewayBench(runs, requests, streams))), as_json)


@bench.command(
    epilog="""\b
Examples:
  mycelia bench routing
  mycelia bench routing --nodes 1000 --tokens 8192"""
)
@click.option("--nodes", type=click.IntRange(1, 2_000), default=256, show_default=True, help="To choose from.")
@click.option("--tokens", type=click.IntRange(256, 100_000), default=2_048, show_default=True, help="Of a prompt.")
@click.option("--runs", type=click.IntRange(1, 1_000), default=5, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of who holds what.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def routing(nodes: int, tokens: int, runs: int, seed: int, as_json: bool) -> None:
    """What one decision takes of the node where a prompt enters."""
    from mycelia.bench.report.report import show
    from mycelia.bench.routing.routing import bench_routing

    show(bench_routing(nodes, tokens, runs, seed), as_json)


@bench.command(
    epilog="""\b
Examples:
  mycelia bench gossip --nodes 200
  mycelia bench gossip --nodes 200 --rtt rtt.json.gz --json > gossip.json"""
)
@click.option("--nodes", type=click.IntRange(8, 10_000), default=1_000, show_default=True, help="Simulated nodes.")
@click.option(
    "--rtt",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="JSON with a square matrix `rtt_ms`, gzipped or not; without it, latencies of a modelled internet.",
)
@click.option("--only", "rows", multiple=True, metavar="ROW", help="Measure this row only; may be repeated.")
@click.option("--seed", type=int, default=1, show_default=True, help="Equal seeds, equal runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def gossip(nodes: int, rtt: Path | None, rows: tuple[str, ...], seed: int, as_json: bool) -> None:
    """The metadata plane, simulated: how soon digests converge, what they cost. Takes tens of minutes at 1,000 nodes.

    Rows about bytes, and the partition, use at most 256 nodes: beyond that a swarm splits into cells.
    """
    from mycelia.bench.report.report import show
    from mycelia.bench.scale.gossip import bench_gossip

    show(bench_gossip(nodes, rtt, seed, rows), as_json)


@bench.command(
    epilog="""\b
Examples:
  mycelia bench scale --nodes 100
  mycelia bench scale --nodes 10000 --only cells --only dht --only reuse
  mycelia bench scale --nodes 1000 --only growth --json > growth.json"""
)
@click.option("--nodes", type=click.IntRange(40, 100_000), default=1_000, show_default=True, help="Of one model.")
@click.option(
    "--only",
    "groups",
    multiple=True,
    metavar="GROUP",
    help="Measure only these rows: cells, digests, dht, reuse or growth; may be repeated.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Equal seeds, equal runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def scale(nodes: int, groups: tuple[str, ...], seed: int, as_json: bool) -> None:
    """Swarms larger than a cell, simulated: how they split, what finding prefixes in other cells costs and gains.

    The digests are those of two cells, all nodes are in the DHT. Growth is of at most 1,000 nodes, all of them
    simulated, which takes tens of minutes.
    """
    from mycelia.bench.report.report import show
    from mycelia.bench.scale.scale import bench_scale

    show(bench_scale(nodes, seed, groups), as_json)


@bench.command(
    epilog="""\b
Examples:
  mycelia bench soak
  mycelia bench soak --minutes 5 --model fake --plot soak.svg
  mycelia bench soak --minutes 480 --nodes 8 --every 60 --json > soak.json"""
)
@click.option("--minutes", type=FiniteRange(0.2, 100_000), default=30.0, show_default=True)
@click.option("--nodes", type=click.IntRange(2, 32), default=4, show_default=True, help="Half of them are killed.")
@click.option(
    "--every", type=FiniteRange(1, 36_000), default=30.0, show_default=True, metavar="SECONDS", help="Between kills."
)
@click.option("--model", default="smollm2", show_default=True, metavar="NAME|PATH", help=MODEL_HELP)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Of each engine.")
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Also draw memory over time, SVG."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of clients and kills.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def soak(
    minutes: float, nodes: int, every: float, model: str, threads: int, plot: Path | None, seed: int, as_json: bool
) -> None:
    """Real nodes under mixed load while others are killed: whether memory, files, tasks or streams pile up."""
    from mycelia.bench.chaos.soak import SoakBench, bench_soak, plot_of
    from mycelia.bench.report.atomic import replaced
    from mycelia.bench.report.report import show

    plan = SoakBench(minutes * 60, nodes, every, model, threads, seed=seed)
    with nullcontext() if plot is None else replaced(plot) as file:
        report, measured = run(partial(bench_soak, plan))
        if file is not None:
            file.write(plot_of(measured))
    show(report, as_json)


@bench.command(
    epilog="""\b
Examples:
  mycelia bench overload
  mycelia bench overload --load 1 --load 3 --seeds 1
  mycelia bench overload --real --json > overload.json"""
)
@click.option("--real", is_flag=True, help="Real nodes with fake engines on this machine instead of simulated ones.")
@click.option(
    "--load",
    "loads",
    type=FiniteRange(0.05, 20),
    multiple=True,
    help="Prompts a second, of what the nodes can answer. Repeatable; ratios are to 1.  "
    "[default: 0.5, 0.8, 1, 1.5, 2 and 3; with --real 1 and 3]",
)
@click.option("--nodes", type=click.IntRange(2, 256), help="[default: 8; with --real 4]")
@click.option("--seconds", type=FiniteRange(5, 3_600), help="That are measured.  [default: 60; with --real 45]")
@click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Runs; --real takes one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def overload(
    real: bool, loads: tuple[float, ...], nodes: int | None, seconds: float | None, seeds: int, as_json: bool
) -> None:
    """A swarm that is asked up to three times what it can answer: goodput, refusals, whether Retry-After is true.

    Users that are refused come again when told (rows retry_), or go away (leave_); one in twenty knocks, to see when it
    would be let in. Some 15 minutes; with real nodes seven, for which the machine should have nothing else to do.
    """
    from mycelia.bench.overload.overload import OverloadBench, bench_overload
    from mycelia.bench.overload.real import RealOverload, bench_real_overload
    from mycelia.bench.report.report import show

    if real:
        usual = RealOverload()
        plan = RealOverload(loads or usual.loads, nodes or usual.num_nodes, seconds or usual.seconds)
        show(run(partial(bench_real_overload, plan)), as_json)
        return
    one = OverloadBench()
    wanted = OverloadBench(
        loads or one.loads, nodes or one.num_peers, seconds or one.seconds, tuple(range(1, seeds + 1))
    )
    show(bench_overload(wanted), as_json)


@bench.command(
    "chaos-sim",
    epilog="""\b
Examples:
  mycelia bench chaos-sim
  mycelia bench chaos-sim --nodes 30 --minutes 20 --rate 2
  mycelia bench chaos-sim --fault kill --fault partition --session 5 --partition-every 60 --json""",
)
@click.option("--nodes", type=click.IntRange(2, 1_000), default=200, show_default=True, help="Simulated.")
@click.option("--minutes", type=FiniteRange(0.1, 10_000), default=60.0, show_default=True, help="Virtual.")
@click.option("--rate", type=FiniteRange(0.001, 1_000), default=5.0, show_default=True, help="Prompts a second in all.")
@click.option(
    "--workload", type=click.Choice(["multi-turn", "mmlu", "no-sharing"]), default="multi-turn", show_default=True
)
@click.option("--loss", type=FiniteRange(0, 0.9), default=0.1, show_default=True, help="Of messages, on each hop.")
@click.option(
    "--session",
    type=FiniteRange(0.1, 100_000),
    default=20.0,
    show_default=True,
    metavar="MINUTES",
    help="Median time that a node stays.",
)
@click.option("--partition-every", type=FiniteRange(1, 100_000), default=300.0, show_default=True, metavar="SECONDS")
@click.option("--partition", type=FiniteRange(1, 100_000), default=30.0, show_default=True, metavar="SECONDS")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="KIND",
    help="kill, leave, freeze, engine, delay, loss, partition, slow-disk, full-disk, clock, storm, flap. Repeatable."
    "  [default: all]",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of everything: equal seeds, equal runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def chaos_sim(
    nodes: int,
    minutes: float,
    rate: float,
    workload: str,
    loss: float,
    session: float,
    partition_every: float,
    partition: float,
    faults: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> None:
    """A simulated swarm whose machines, disks, clocks and lines fail, and whether every prompt is answered.

    Nodes run the protocol itself, in virtual time; machines and faults are drawn from the seed. An hour of 200 nodes
    takes some 40 minutes of one core, and 5 GiB.
    """
    from mycelia.bench.chaos.chaos_sim import bench_chaos_sim
    from mycelia.bench.report.report import show
    from mycelia.sim.chaos import ChaosScenario
    from mycelia.sim.faults import FAULTS, FaultPlan

    unknown = [kind for kind in faults if kind not in FAULTS]
    if unknown:
        raise click.UsageError(f"no fault {unknown[0]}; there are {', '.join(FAULTS)}")
    plan = FaultPlan(faults or FAULTS, session * 60, partition_every, partition)
    scenario = ChaosScenario(nodes, loss, minutes * 60, rate, workload, plan)
    show(bench_chaos_sim(scenario, seed), as_json)


@bench.command(
    epilog="""\b
Examples:
  mycelia bench chaos
  mycelia bench chaos --fault kill --fault freeze --fault engine --streams 40
  mycelia bench chaos --fault all --every 8
  mycelia bench chaos --seed 7 --json > chaos.json"""
)
@click.option("--nodes", type=click.IntRange(2, 32), default=4, show_default=True, help="Real processes.")
@click.option("--streams", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Answers in all.")
@click.option("--at-once", type=click.IntRange(1, 64), default=4, show_default=True, help="Clients.")
@click.option("--prompts", type=click.IntRange(1, 10_000), default=25, show_default=True, help="Different ones.")
@click.option("--max-tokens", type=click.IntRange(2, 4_096), default=64, show_default=True, help="Of an answer.")
@click.option(
    "--every", type=FiniteRange(0.1, 3_600), default=5.0, show_default=True, metavar="SECONDS", help="Between faults."
)
@click.option(
    "--fault",
    "faults",
    type=click.Choice(
        [
            "kill",
            "freeze",
            "engine",
            "storm",
            "flap",
            "full-disk",
            "slow-disk",
            "clock",
            "delay",
            "loss",
            "partition",
            "all",
        ]
    ),
    multiple=True,
    default=("kill",),
    show_default=True,
    help="SIGKILL and start again; SIGSTOP for 12 s; SIGKILL of the engine process; all nodes but one killed at once;"
    " one killed again and again; no file can be written for 12 s; each file that is reached for takes 0.25 s more"
    " (Debian's strace); the clock jumps by an hour (Debian's faketime); lines take 0.5 s more,"
    " lose 0.3 of what is sent, or are cut between two parts. Repeatable.",
)
@click.option("--model", default="smollm2", show_default=True, metavar="NAME|PATH", help=MODEL_HELP)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Of each engine.")
@click.option("--exact/--fast", default=True, show_default=True, help="Whether nodes run in exact mode.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the faults and the order of the prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def chaos(
    nodes: int,
    streams: int,
    at_once: int,
    prompts: int,
    max_tokens: int,
    every: float,
    faults: tuple[str, ...],
    model: str,
    threads: int,
    exact: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Real nodes that die under load, and every answer compared with that of a node left alone.

    Which node is struck follows from the seed; when exactly it is in the middle of what does not.
    """
    from mycelia.bench.chaos.chaos import ChaosBench, bench_chaos
    from mycelia.bench.chaos.trouble import FAULTS
    from mycelia.bench.report.report import show

    plan = ChaosBench(
        num_nodes=nodes,
        num_streams=streams,
        num_prompts=min(prompts, streams),
        max_tokens=max_tokens,
        at_once=at_once,
        every_s=every,
        faults=FAULTS if "all" in faults else faults,
        model=model,
        threads=threads,
        exact=exact,
        seed=seed,
    )
    show(run(partial(bench_chaos, plan)), as_json)


@bench.command(
    epilog="""\b
Examples:
  mycelia bench liveness
  mycelia bench liveness --nodes 8 --runs 10 --json > liveness.json"""
)
@click.option("--nodes", type=click.IntRange(3, 32), default=4, show_default=True, help="Real processes.")
@click.option("--runs", type=click.IntRange(1, 1_000), default=5, show_default=True, help="Of everything.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def liveness(nodes: int, runs: int, as_json: bool) -> None:
    """How soon nodes know that another one was killed, is frozen, cut off, without an engine, or back.

    Real nodes on this machine with the fake engine; some 40 s a run.
    """
    from mycelia.bench.chaos.liveness import LivenessBench, bench_liveness
    from mycelia.bench.report.report import show

    show(run(partial(bench_liveness, LivenessBench(nodes, runs))), as_json)


@bench.command(
    epilog="""\b
Examples:
  mycelia bench swarm
  mycelia bench swarm --rtt 200 --policy mycelia --policy lmetric --policy random
  mycelia bench swarm --data ./workloads --runs 3 --json > swarm.json
  mycelia bench swarm --model fake --cells 65536 --requests 40 --rate 4"""
)
@click.option("--nodes", type=click.IntRange(2, 32), default=4, show_default=True, help="Real processes.")
@click.option(
    "--rtt", type=FiniteRange(0, 2_000), default=80.0, show_default=True, metavar="MS", help="Between all nodes."
)
@click.option("--zipf", type=FiniteRange(0, 3), default=1.0, show_default=True, help="Skew of the subjects.")
@click.option("--requests", type=click.IntRange(1, 100_000), default=120, show_default=True, help="To each policy.")
@click.option(
    "--load",
    type=FiniteRange(0, 100, min_open=True),
    default=0.8,
    show_default=True,
    help="Requests a second, of what all nodes could answer with nothing cached.",
)
@click.option("--rate", type=FiniteRange(0, 1_000, min_open=True), help="Requests a second in all, instead of --load.")
@click.option("--max-tokens", type=click.IntRange(1, 512), default=4, show_default=True, help="Of an answer.")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    default=("mycelia", "random"),
    show_default=True,
    metavar="NAME",
    help="Who answers, see 'mycelia simulate --help'. Repeatable; rows of the first one have no prefix.",
)
@click.option("--model", default="smollm2", show_default=True, metavar="NAME|PATH", help=MODEL_HELP)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Of each engine.")
@click.option(
    "--cells", type=click.IntRange(256, 4_194_304), default=8_192, show_default=True, help="KV cells of each node."
)
@click.option(
    "--ram-tier",
    type=click.IntRange(0, 1_048_576),
    default=1_024,
    show_default=True,
    metavar="MIB",
    help="Host memory of each node for prefixes that nobody uses at the moment. 0: they stay in the KV cells.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder with mmlu.jsonl or mmlu.jsonl.gz.  [default: made-up texts of the same lengths]",
)
@click.option("--runs", type=click.IntRange(1, 100), default=1, show_default=True, help="With other prompts each.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of prompts, arrivals and entries.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def swarm(
    nodes: int,
    rtt: float,
    zipf: float,
    requests: int,
    load: float,
    rate: float | None,
    max_tokens: int,
    policies: tuple[str, ...],
    model: str,
    threads: int,
    cells: int,
    ram_tier: int,
    data: Path | None,
    runs: int,
    seed: int,
    as_json: bool,
) -> None:
    """Real nodes on this machine, with distance between them, beside what the simulator predicts of them.

    The distance is made by a proxy in front of each node. Prompts are MMLU's with five examples; they come as a Poisson
    process, in at random nodes. The simulator gets the same requests and the speed of this machine, which is measured
    first: leave the machine alone meanwhile. TTFT is that of the client, from its HTTP request to the first text. About
    ten minutes on two cores.
    """
    from mycelia.bench.swarm.swarm import SwarmBench, bench_swarm, show_swarm
    from mycelia.node.commands.checks import check_policy

    wanted = SwarmBench(
        num_nodes=nodes,
        rtt_s=rtt / 1000,
        zipf=zipf,
        load=load,
        rate=rate,
        num_requests=requests,
        max_tokens=max_tokens,
        policies=tuple(dict.fromkeys(check_policy(name) for name in policies)),
        runs=runs,
        seed=seed,
        data=data,
        model=model,
        threads=threads,
        cells=cells,
        ram_tier_mib=ram_tier,
    )
    show_swarm(*run(partial(bench_swarm, wanted)), as_json)
