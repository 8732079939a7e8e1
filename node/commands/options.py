"""Options that several commands have, and what is checked of them."""

from pathlib import Path

import click

MAX_MODEL_CHARS = 128

bootstrap_option = click.option(
    "--bootstrap",
    multiple=True,
    metavar="FILE|MULTIADDR",
    help="Nodes to join through: a multiaddr ending in /p2p/PEER_ID, or a file with one a line. Repeatable."
    "  [default: bootstrap.txt]",
)
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the node keeps its identity and state.  [default: the user's data directory]",
)
swarm_key_option = click.option(
    "--swarm-key",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The key of a private swarm: its nodes understand nobody without it.  [default: the open network]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text for people.")


def check_model(name: str) -> None:
    """Raises click.UsageError when no model can have this name."""
    if len(name) > MAX_MODEL_CHARS:
        raise click.UsageError(f"--model is over {MAX_MODEL_CHARS} characters")


def check_unicode(name: str, value: str) -> None:
    """Python turns arguments that are no UTF-8 into lone surrogates, which nothing further on can encode.

    Raises click.UsageError for them.
    """
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise click.UsageError(f"{name} is not UTF-8") from exc
