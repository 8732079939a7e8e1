"""Options that several commands have."""

from pathlib import Path

import click

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the node keeps its identity and state.  [default: the user's data directory]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text for people.")
