"""Options that several commands have, and their checks."""

from pathlib import Path

import click

MAX_MODEL_CHARS = 128

bootstrap_option = click.option(
    "--bootstrap",
    multiple=True,
    metavar="FILE|MULTIADDR",
    help="Nodes to join through: a multiaddr ending in /p2p/PEER_ID, or a file with one on each line. Repeatable."
    "  [default: bootstrap.txt]",
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
    help="File with the key of a private swarm. Its nodes accept only peers with this key."
    "  [default: the open network]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def check_model(name: str) -> None:
    """Raises click.UsageError when no model can have this name."""
    if len(name) > MAX_MODEL_CHARS:
        raise click.UsageError(f"--model must have at most {MAX_MODEL_CHARS} characters")


def check_unicode(name: str, value: str) -> None:
    """Raises click.UsageError when ``value`` is not UTF-8: Python then puts lone surrogates in it, which cannot be
    encoded.
    """
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise click.UsageError(f"{name} must be UTF-8 text") from exc
