"""``mycelia swarm``: a swarm of several nodes on this machine, and the commands about private swarms."""

import difflib
from pathlib import Path
from typing import Any

import click
from click_default_group import DefaultGroup

from mycelia.node.commands.private_swarm import allow, create, list_swarms, members, revoke, rotate
from mycelia.node.commands.running import console, run


@click.group(
    cls=DefaultGroup,
    default="local",
    default_if_no_args=True,
    epilog="""\b
Examples:
  mycelia swarm 6                  run six nodes on this machine, as 'mycelia swarm local 6'
  mycelia swarm create home        make a private swarm
  mycelia swarm members            list its members and invitations
  mycelia swarm revoke laptop      remove a member""",
)
def swarm() -> None:
    """Run several nodes on this machine, or manage private swarms."""


for _command in (create, list_swarms, members, revoke, allow, rotate):
    swarm.add_command(_command)


class _Count(click.IntRange):
    """A number of nodes. Another word is a command that there is not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, str) and not value.lstrip("-").isdecimal():
            nearest = difflib.get_close_matches(value, swarm.commands, 1, 0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(sorted(swarm.commands))}"
            self.fail(f"{value!r} is neither a number of nodes nor a command; {hint}", param, ctx)
        return int(super().convert(value, param, ctx))


@swarm.command(  # type: ignore[untyped-decorator]
    epilog="""\b
Examples:
  mycelia swarm 6 --delay-ms 80
  mycelia swarm local 3 --model fake --dir ./swarm
  mycelia swarm 5 --restart"""
)
@click.argument("count", type=_Count(1, 64), default=4, metavar="[N]")
@click.option(
    "--delay-ms",
    type=click.FloatRange(0, 2_000),
    default=0.0,
    show_default=True,
    help="Round trip between any two nodes, in ms.",
)
@click.option(
    "--model",
    default="smollm2",
    show_default=True,
    metavar="NAME|PATH",
    help="Model of every node, as for 'mycelia node'; 'fake' needs no model.",
)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads of each engine.")
@click.option(
    "--dir",
    "root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory in which the nodes' data and logs are kept.  [default: a temporary one]",
)
@click.option("--restart", "restarts", is_flag=True, help="Start nodes that end again, after growing pauses.")
def local(count: int, delay_ms: float, model: str, threads: int, root: Path | None, restarts: bool) -> None:
    """Run a swarm of N nodes (default 4) on this machine until Ctrl-C, and collect their logs.

    A node that ends is reported, and the others go on.
    """
    from mycelia.node.commands.fetching import model_here
    from mycelia.node.terminal.swarm import run_swarm

    options = ("--model", model_here(model, in_log=False), "--threads", str(threads))
    run(lambda: run_swarm(count, delay_ms / 1000, options, root, console(), restarts))
