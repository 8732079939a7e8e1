"""Options that several commands have, and their checks."""

from pathlib import Path

import click

from mycelia.proto.wire import defaults

MAX_MODEL_CHARS = 128

bootstrap_option = click.option(
    "--bootstrap",
    multiple=True,
    metavar="FILE|MULTIADDR",
    help="Nodes to join through: a multiaddr ending in /p2p/PEER_ID, /dnsaddr/NAME for those that a name's DNS records"
    " list, or a file with one on each line. Repeatable.  [default: bootstrap.txt in the configuration folder, and the"
    " installed one]",
)
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of the node's identity and state.  [default: the user's data directory]",
)
swarm_key_option = click.option(
    "--swarm-key",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File with the key of a private swarm without a list of members. Its nodes accept only peers with this key."
    "  [default: the open network]",
)
swarm_option = click.option(
    "--swarm",
    default="",
    metavar="NAME",
    help="Private swarm in which to run, made with 'mycelia swarm create' or joined with 'mycelia join'. The node"
    " exchanges prompts with its members only: they never leave these nodes.  [default: the open network]",
)
model_option = click.option("--model", default="", help="Model to ask.  [default: the entry node's model]")
no_think_option = click.option(
    "--no-think", is_flag=True, help="Do not show the model's thoughts.  [default: dimmed, on a terminal]"
)
public_option = click.option(
    "--public",
    is_flag=True,
    help="Ask the open network, on a machine that is in a private one: through its node if that runs with --public, or"
    " without a node.",
)
system_option = click.option("--system", default="", help="System message.")
temperature_option = click.option(
    "--temperature",
    type=click.FloatRange(0, 100),
    default=defaults.TEMPERATURE,
    show_default=True,
    help="Sampling temperature; 0 always takes the likeliest token.",
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=defaults.SEED,
    show_default=True,
    help="Seed of the random sampling.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


UNITS = {"m": 60, "h": 3_600, "d": 86_400}


def seconds(context: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A callback: a time such as 30m, 24h or 7d, in seconds. Raises click.BadParameter."""
    if value is None:
        return None
    number, unit = value[:-1], value[-1:].lower()
    if not (number.isascii() and number.isdecimal() and len(number) < 9 and unit in UNITS):
        raise click.BadParameter(f"{value!r} is not a time such as 30m, 24h or 7d")
    return int(number) * UNITS[unit]


def check_model(name: str) -> None:
    """Raises click.UsageError when no model can have this name."""
    if len(name) > MAX_MODEL_CHARS:
        raise click.UsageError(f"--model must have at most {MAX_MODEL_CHARS} characters")


def check_unicode(name: str, value: str) -> None:
    """Raises click.UsageError for a ``value`` that was not UTF-8: Python put lone surrogates in it."""
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise click.UsageError(f"{name} must be UTF-8 text") from exc
