"""The command line of ``mycelia bench attacks``. Heavy imports happen inside the command."""

from functools import partial

import click

from mycelia.bench.options import FiniteRange
from mycelia.node.commands.running import run


@click.command(
    epilog="""\b
Examples:
  mycelia bench attacks
  mycelia bench attacks --only newcomer --only floods --runs 1
  mycelia bench attacks --json > attacks.json"""
)
@click.option("--runs", type=click.IntRange(1, 1_000), default=3, show_default=True, help="Runs of each attack.")
@click.option(
    "--minutes",
    type=FiniteRange(0.1, 1_000),
    default=2.0,
    show_default=True,
    help="Length of the attacks that are to make honest nodes ban each other.",
)
@click.option(
    "--only",
    "groups",
    multiple=True,
    metavar="GROUP",
    help="Measure only these rows: newcomer, http, floods, bans, engine, prefix or liar; may be repeated.",
)
@click.option("--model", default="smollm2", show_default=True, metavar="NAME|PATH", help="Of the real engines.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def attacks(runs: int, minutes: float, groups: tuple[str, ...], model: str, as_json: bool) -> None:
    """What strangers with one address can do to real nodes on this machine, beside what honest peers get when idle.

    All attackers and all attacked nodes are processes on loopback. About 20 minutes.
    """
    from mycelia.bench.attacks.command import GROUPS, AttacksBench, bench_attacks
    from mycelia.bench.report.report import show

    unknown = [group for group in groups if group not in GROUPS]
    if unknown:
        raise click.UsageError(f"no group {unknown[0]}; there are {', '.join(GROUPS)}")
    plan = AttacksBench(runs, minutes, groups or GROUPS, model)
    show(run(partial(bench_attacks, plan)), as_json)
