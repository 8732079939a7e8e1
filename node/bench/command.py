"""``mycelia bench``: the command line of the benchmarks. Heavy imports happen inside the commands."""

from functools import partial
from pathlib import Path

import click

MODEL_HELP = "Registered name, or a GGUF file."


@click.group(
    epilog="""\b
Examples:
  mycelia bench engine
  mycelia bench engine --against llama-server --threads 2 --json > engine.json
  mycelia bench index --against dynamo
  mycelia bench gossip --nodes 200
  mycelia bench scale --nodes 10000 --only reuse"""
)
def bench() -> None:
    """Measure on this machine, beside what you would use instead."""


@bench.command()
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
    from node.bench.engine import bench_engine
    from node.bench.report import show
    from node.bench.target import Settings
    from node.cli import run
    from node.engine.models import resolve_model

    settings = Settings(threads=threads, cells=cells, slots=slots)
    show(run(partial(bench_engine, resolve_model(model), settings, runs, against, seed)), as_json)


@bench.command()
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
    from node.bench.index import bench_index
    from node.bench.report import show

    show(bench_index(peers, residencies, zipf, families, runs, against, seed), as_json)


@bench.command()
@click.option("--nodes", type=click.IntRange(1, 2_000), default=256, show_default=True, help="To choose from.")
@click.option("--tokens", type=click.IntRange(256, 100_000), default=2_048, show_default=True, help="Of a prompt.")
@click.option("--runs", type=click.IntRange(1, 1_000), default=5, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of who holds what.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def routing(nodes: int, tokens: int, runs: int, seed: int, as_json: bool) -> None:
    """What one decision takes of the node where a prompt enters."""
    from node.bench.report import show
    from node.bench.routing import bench_routing

    show(bench_routing(nodes, tokens, runs, seed), as_json)


@bench.command()
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
    from node.bench.gossip import bench_gossip
    from node.bench.report import show

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
    from node.bench.report import show
    from node.bench.scale import bench_scale

    show(bench_scale(nodes, seed, groups), as_json)
