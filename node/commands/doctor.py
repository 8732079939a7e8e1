"""``mycelia doctor``: the command line of the check-up. Heavy imports happen inside the command."""

import sys
from pathlib import Path

import click

from mycelia.node.commands.options import swarm_key_option
from mycelia.node.commands.running import run


@click.command(
    epilog="""\b
Examples:
  mycelia doctor
  mycelia doctor --model ./model.gguf          what a node would do with this model
  mycelia doctor --bootstrap /ip4/203.0.113.7/tcp/7117/p2p/12D3KooW...     can peers reach this machine?
  mycelia doctor --bootstrap ... --bootstrap ...     and what kind of address translation (NAT) is between?
  mycelia doctor --json"""
)
@click.option("--model", default="smollm2", show_default=True, metavar="NAME|PATH", help="The model to look at.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The data directory to look at.  [default: the user's data directory]",
)
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="Where a node would listen.  [default: port 7117]")
@click.option("--api-port", type=click.IntRange(0, 65_535), help="Of its HTTP API.  [default: 7118]")
@click.option("--bootstrap", multiple=True, metavar="FILE|MULTIADDR", help="Peers to ask how they see this machine.")
@swarm_key_option
@click.option("--offline", is_flag=True, help="Look at this machine alone.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text for people.")
def doctor(
    model: str,
    data_dir: Path | None,
    listen: tuple[str, ...],
    api_port: int | None,
    bootstrap: tuple[str, ...],
    swarm_key: Path | None,
    offline: bool,
    as_json: bool,
) -> None:
    """What a node has to work with here: llama.cpp, GPUs, memory, disk, what it would do with a model, its ports, its
    bootstrap peers, and whether they can reach it: through which kind of address translation, and by which relay.

    Model and ports are those that the section [node] of the configuration says, unless given.

    No node is started and no weights are loaded. Exits with 0 when a node could run and be reached; otherwise with 1,
    and says what to do.
    """
    import msgspec

    from mycelia.node.commands.checks import check_listen, read_bootstrap, read_swarm_key
    from mycelia.node.doctor.machine import examine, lines, with_outlook
    from mycelia.node.doctor.network import look_out
    from mycelia.node.settings import DEFAULT_API_PORT, DEFAULT_LISTEN
    from mycelia.node.storage.data_dir import default_data_dir

    where, peers = data_dir or default_data_dir(), read_bootstrap(bootstrap)
    ports = check_listen(listen or (DEFAULT_LISTEN,)), DEFAULT_API_PORT if api_port is None else api_port
    key = read_swarm_key(swarm_key)
    report = examine(model, where)
    if not offline:
        report = with_outlook(report, run(lambda: look_out(where, peers, *ports, key)))
    click.echo(msgspec.json.encode(report) if as_json else "\n".join(lines(report)))
    for problem in report.problems:
        click.echo(f"mycelia: {problem}", err=True)
    if report.problems:
        sys.exit(1)
