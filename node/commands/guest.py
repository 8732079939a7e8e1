"""``mycelia pause`` and ``mycelia resume``, and the options of ``mycelia node`` by which the owner limits it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mycelia.node.commands.options import data_dir_option, seconds
from mycelia.node.commands.running import run, running

if TYPE_CHECKING:
    from mycelia.node.guest.limits import Hours


def _spans(context: click.Context, param: click.Parameter, value: tuple[str, ...]) -> "tuple[Hours, ...]":
    from mycelia.node.guest.limits import read_hours
    from mycelia.proto.wire.errors import LocalError

    try:
        return tuple(map(read_hours, value))
    except LocalError as exc:
        raise click.BadParameter(str(exc)) from exc


_OPTIONS = [
    click.option(
        "--share",
        type=click.IntRange(5, 100),
        default=100,
        show_default=True,
        metavar="PERCENT",
        help="Largest part of the processor's or GPU's time that prompts of others take while they run; --threads"
        " bounds the number of processor cores.",
    ),
    click.option(
        "--gpu-memory",
        type=click.FloatRange(0.25, 4096),
        metavar="GIB",
        help="Memory of each GPU for the model and its KV cache.  [default: what is free]",
    ),
    click.option(
        "--bandwidth",
        type=click.FloatRange(1, 100_000),
        metavar="MBIT",
        help="Traffic per second with peers outside the local network, each way.  [default: no limit]",
    ),
    click.option(
        "--data-per-month",
        type=click.FloatRange(0.1, 1_000_000),
        metavar="GB",
        help="The same traffic in a calendar month. When it is used up, the node takes no more prompts of others."
        "  [default: no limit]",
    ),
    click.option(
        "--hours",
        multiple=True,
        callback=_spans,
        metavar="HH:MM-HH:MM",
        help="When prompts of others are taken, by the local clock, such as 22:00-08:00. Repeatable."
        "  [default: always]",
    ),
    click.option(
        "--polite",
        is_flag=True,
        help="Take no prompts of others while other programs use the machine, on battery, or while a program fills the"
        " screen.",
    ),
]


def guest_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that ``guest_settings`` reads."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def guest_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The owner's limits, as fields of ``NodeSettings``. given: the options by name."""
    gpu_memory = given["gpu_memory"]
    bandwidth, data_per_month = given["bandwidth"], given["data_per_month"]
    return {
        "share": given["share"] / 100,
        "gpu_memory_bytes": None if gpu_memory is None else int(gpu_memory * 2**30),
        "bytes_per_s": None if bandwidth is None else bandwidth * 1e6 / 8,
        "month_bytes": None if data_per_month is None else int(data_per_month * 1e9),
        "hours": given["hours"],
        "is_polite": given["polite"],
    }


def _length(context: click.Context, param: click.Parameter, value: str | None) -> int | None:
    from mycelia.node.guest.pausing import MAX_PAUSE_DAYS

    length_s = seconds(context, param, value)
    if length_s is not None and not 0 < length_s <= MAX_PAUSE_DAYS * 86_400:
        raise click.BadParameter(f"a pause lasts from 1m to {MAX_PAUSE_DAYS}d, or without --for until 'mycelia resume'")
    return length_s


@click.command(
    epilog="""\b
Examples:
  mycelia pause
  mycelia pause --for 2h"""
)
@click.option(
    "--for",
    "for_s",
    callback=_length,
    metavar="TIME",
    help="Time after which the node resumes, such as 30m, 2h or 1d.",
)
@data_dir_option
def pause(for_s: int | None, data_dir: Path | None) -> None:
    """Take no prompts of other nodes, until 'mycelia resume'.

    Running answers are finished, and your own prompts are answered as usual. The pause outlives a restart of the node.
    """
    from mycelia.node.client.local import pause_node

    info = running(data_dir)
    click.echo(f"no prompts of others are taken: {run(lambda: pause_node(info, for_s))}")


@click.command(
    epilog="""\b
Examples:
  mycelia resume"""
)
@data_dir_option
def resume(data_dir: Path | None) -> None:
    """Take prompts of other nodes again, after 'mycelia pause'."""
    from mycelia.node.client.local import resume_node

    info = running(data_dir)
    reason = run(lambda: resume_node(info))
    click.echo(f"still no prompts of others are taken: {reason}" if reason else "prompts of others are taken again")
