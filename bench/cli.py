"""``mycelia bench``: the command line of the benchmarks. Their options are in ``plans.py``; heavy imports happen inside
the commands."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from mycelia.bench import plans
from mycelia.bench.options import as_json, epilog, options_of
from mycelia.node.commands.running import run

if TYPE_CHECKING:
    from mycelia.bench.report.report import Report


@click.group(
    epilog=epilog(
        "bench engine",
        "bench model qwen3-4b",
        "bench engine --against llama-server --threads 2 --json > engine.json",
        "bench index --against dynamo",
        "bench gossip --nodes 200",
        "bench scale --nodes 10000 --only reuse",
        "bench chaos-sim --nodes 50 --minutes 10",
        "bench swarm --json > swarm.json",
    )
)
def bench() -> None:
    """Measure Mycelia on this machine and compare it with other programs."""


def _measures(plan: type, *examples: str, name: str | None = None) -> Callable[[Callable[[Any], "Report"]], None]:
    """A decorator that makes a command of a function that measures a ``plan``; the command prints the report."""

    def decorate(measure: Callable[[Any], "Report"]) -> None:
        @options_of(plan)
        @as_json
        def command(made: object, as_json: bool) -> None:
            from mycelia.bench.report.report import show

            show(measure(made), as_json)

        called = name or measure.__name__
        told = epilog(f"bench {called}", *(f"bench {called} {example}" for example in examples))
        bench.command(called, help=measure.__doc__, epilog=told)(command)

    return decorate


@_measures(plans.EngineBench, "--model ./model.gguf --threads 8 --json > engine.json", "--against llama-server")
def engine(plan: plans.EngineBench) -> "Report":
    """The engine: time to first token cold and warm, shared prefixes, throughput, event-loop lag."""
    from mycelia.bench.engine.engine import bench_engine

    return run(partial(bench_engine, plan))


@bench.command(
    epilog=epilog("bench model smollm2", "bench model qwen3-4b --threads 8", "bench model ./model.gguf --json")
)
@click.argument("name")
@options_of(plans.ModelBench)
@as_json
def model(plan: plans.ModelBench, name: str, as_json: bool) -> None:
    """What the model NAME does on this machine: prefill and decode rates, memory, and how many clients it can serve.

    NAME is as for 'mycelia node --model', of a model that is on this machine. Takes about a minute with a small model.
    """
    from mycelia.bench.engine.model import bench_model, legend
    from mycelia.bench.report.report import show

    show(run(partial(bench_model, name, plan)), as_json)
    if not as_json:
        click.echo(legend())


@_measures(plans.IndexBench, "--peers 100 --residencies 100000 --against dynamo")
def index(plan: plans.IndexBench) -> "Report":
    """The index of which node holds which blocks: lookups, updates, memory."""
    from mycelia.bench.routing.index import bench_index

    return bench_index(plan)


@_measures(plans.GatewayBench, "--runs 1 --json | jq '.rows[] | select(.name == \"hop_added_ttft_ms_p50\").value'")
def gateway(plan: plans.GatewayBench) -> "Report":
    """The HTTP gateway: what it and a hop add to the first token, many streams, many wrong keys."""
    from mycelia.bench.gateway import bench_gateway

    return run(partial(bench_gateway, plan))


@_measures(plans.RoutingBench, "--nodes 1000 --tokens 8192")
def routing(plan: plans.RoutingBench) -> "Report":
    """How long one routing decision takes at the node where a prompt enters."""
    from mycelia.bench.routing.routing import bench_routing

    return bench_routing(plan)


@_measures(plans.GossipBench, "--nodes 200", "--nodes 200 --rtt rtt.json.gz --json > gossip.json")
def gossip(plan: plans.GossipBench) -> "Report":
    """The metadata plane, simulated: how soon digests converge, what they cost. Takes tens of minutes at 1,000 nodes.

    Rows about bytes, and the partition, use at most 256 nodes: a larger swarm splits into cells.
    """
    from mycelia.bench.scale.gossip import bench_gossip

    return bench_gossip(plan)


@_measures(
    plans.ScaleBench,
    "--nodes 10000 --only cells --only dht --only reuse",
    "--nodes 1000 --only growth --json > growth.json",
)
def scale(plan: plans.ScaleBench) -> "Report":
    """Swarms larger than a cell, simulated: how they split, what finding prefixes in other cells costs and gains.

    Digests are simulated in two cells only, the DHT with all nodes. Growth simulates at most 1,000 nodes, all of them
    in full, which takes tens of minutes.
    """
    from mycelia.bench.scale.scale import bench_scale

    return bench_scale(plan)


@_measures(plans.HundredBench, "--nodes 20 --per-process 5 --requests 60", "--json > hundred.json")
def hundred(plan: plans.HundredBench) -> "Report":
    """A hundred real nodes, several to a process, with the fake engine: what they know of each other, the cost of a
    node at rest, cached tokens, and how soon a fifth of them that is killed is forgotten.

    Rows sim_ are the simulator's prediction. Takes 12 minutes; run nothing else meanwhile.
    """
    from mycelia.bench.hundred.hundred import bench_hundred

    return run(partial(bench_hundred, plan))


@bench.command(
    epilog=epilog(
        "bench soak",
        "bench soak --minutes 5 --model fake --plot soak.svg",
        "bench soak --minutes 480 --nodes 8 --every 60 --json > soak.json",
    )
)
@options_of(plans.SoakBench)
@as_json
def soak(plan: plans.SoakBench, as_json: bool) -> None:
    """Real nodes under mixed load while others are killed, machines sleep, lines fail and models change: whether they
    leak memory, files, tasks, streams or disk.

    Ends with the bars that were missed, and exit code 1 if there is one: memory may grow by 3 % after the warm-up, and
    nothing else may grow. Takes the given time and some minutes.
    """
    from mycelia.bench.chaos.soak import bench_soak, failures_of, plot_of
    from mycelia.bench.report.atomic import replaced
    from mycelia.bench.report.extra import check_extra
    from mycelia.bench.report.report import show

    if plan.plot is not None:
        check_extra("matplotlib", "--plot")
    with nullcontext() if plan.plot is None else replaced(plan.plot) as file:
        report, measured = run(partial(bench_soak, plan))
        if file is not None:
            file.write(plot_of(measured))
    show(report, as_json)
    missed = failures_of(measured)
    click.echo(f"missed: {'; '.join(missed)}" if missed else "no bar was missed", err=True)
    if missed:
        sys.exit(1)


@_measures(plans.OverloadBench, "--load 1 --load 3 --seeds 1", "--real --json > overload.json")
def overload(plan: plans.OverloadBench) -> "Report":
    """A swarm that gets up to three times the prompts it can answer: goodput, refusals, whether Retry-After is true.

    Refused clients ask again at the given time (rows retry_), or go away (leave_); one in twenty asks again early, to
    see when it would be admitted. Takes some 15 minutes; with real nodes seven, on a machine that does nothing else.
    """
    from mycelia.bench.overload.overload import bench_overload
    from mycelia.bench.overload.real import bench_real_overload

    return run(partial(bench_real_overload, plan)) if plan.real else bench_overload(plan)


@_measures(
    plans.ChaosSimBench,
    "--nodes 30 --minutes 20 --rate 2",
    "--fault kill --fault partition --session 5 --partition-every 60 --json",
    name="chaos-sim",
)
def chaos_sim(plan: plans.ChaosSimBench) -> "Report":
    """A simulated swarm whose machines, disks, clocks and lines fail, and whether every prompt is answered.

    Nodes run the protocol itself, in virtual time; machines and faults are drawn from the seed. An hour of 200 nodes
    takes some 40 minutes of one core, and 5 GiB.
    """
    from mycelia.bench.chaos.chaos_sim import bench_chaos_sim
    from mycelia.sim.faults import FAULTS

    unknown = [kind for kind in plan.faults if kind not in FAULTS]
    if unknown:
        raise click.UsageError(f"no fault {unknown[0]}; there are {', '.join(FAULTS)}")
    return bench_chaos_sim(plan)


@_measures(
    plans.ChaosBench,
    "--fault kill --fault freeze --fault engine --streams 40",
    "--fault all --every 8",
    "--seed 7 --json > chaos.json",
)
def chaos(plan: plans.ChaosBench) -> "Report":
    """Real nodes that fail under load, and a comparison of every answer with that of an undisturbed node.

    The seed decides which node fails. The exact time of a fault does not repeat.
    """
    from mycelia.bench.chaos.chaos import bench_chaos

    return run(partial(bench_chaos, plan))


@_measures(plans.LivenessBench, "--nodes 8 --runs 10 --json > liveness.json")
def liveness(plan: plans.LivenessBench) -> "Report":
    """How soon nodes know that another one was killed, frozen, cut off, without an engine, or back.

    Real nodes on this machine with the fake engine; some 40 s a run.
    """
    from mycelia.bench.chaos.liveness import bench_liveness

    return run(partial(bench_liveness, plan))


@_measures(plans.ModelsBench, "--only node --minutes 2", "--model smollm2 --model gemma3 --model ./hybrid.gguf --json")
def models(plan: plans.ModelsBench) -> "Report":
    """Several models: three on one node with memory for two, and three spread unevenly over four nodes."""
    from mycelia.bench.models import bench_models

    return run(partial(bench_models, plan))


@_measures(plans.AutoBench, "--demand jumping --rule auto --runs 1", "--nodes 20 --liars 1 --json > auto.json")
def auto(plan: plans.AutoBench) -> "Report":
    """Nodes that choose their models (mycelia node --auto), simulated: the share of requests that is answered, and
    moves for each node and day, while the demand shifts.

    Compared with nodes that never move (fixed), that all move to what lacks most (greedy), and with a planner that
    knows everything and moves nodes in no time. Takes some minutes.
    """
    from mycelia.bench.auto import bench_auto

    return bench_auto(plan)


@_measures(plans.AttacksBench, "--only newcomer --only floods --runs 1", "--json > attacks.json")
def attacks(plan: plans.AttacksBench) -> "Report":
    """What strangers with one address can do to real nodes on this machine, compared with idle nodes.

    All attackers and all attacked nodes are processes on loopback. Takes about 20 minutes.
    """
    from mycelia.bench.attacks.command import bench_attacks

    return run(partial(bench_attacks, plan))


@bench.command(
    epilog=epilog(
        "bench swarm",
        "bench swarm --workload dialogue",
        "bench swarm --rtt 200 --policy mycelia --policy lmetric --policy random",
        "bench swarm --data ./workloads --runs 3 --json > swarm.json",
        "bench swarm --model fake --cells 65536 --requests 40 --rate 4",
    )
)
@options_of(plans.SwarmBench)
@as_json
def swarm(plan: plans.SwarmBench, as_json: bool) -> None:
    """Real nodes on this machine with distance between them, compared with the simulator's prediction.

    A proxy in front of each node makes the distance. Prompts are MMLU's with five examples, or those of dialogues.
    Clients come as a Poisson process to random nodes. The simulator gets the same requests and the speed of this
    machine, which is measured first: run nothing else meanwhile. TTFT is the client's, from its HTTP request to the
    first text. Takes about twenty minutes on two cores.
    """
    from mycelia.bench.swarm.swarm import bench_swarm, show_swarm
    from mycelia.node.commands.checks import check_policy

    policies = tuple(dict.fromkeys(check_policy(name) for name in plan.policies))
    show_swarm(*run(partial(bench_swarm, replace(plan, policies=policies))), as_json)
