"""``mycelia doctor``: the command line. The checks are in ``node/doctor/``."""

import sys
from pathlib import Path

import click

from mycelia.node.commands.options import json_option, swarm_key_option
from mycelia.node.commands.running import run


@click.command(
    epilog="""\b
Examples:
  mycelia doctor
  mycelia doctor --model ./model.gguf          check how a node would run this model
  mycelia doctor --bootstrap /ip4/203.0.113.7/tcp/7117/p2p/12D3KooW...     check whether peers can reach this machine
  mycelia doctor --bootstrap ... --bootstrap ...     find the kind of address translation (NAT), too
  mycelia doctor --json"""
)
@click.option("--model", default="smollm2", show_default=True, metavar="NAME|PATH", help="Model to check.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Data directory to check.  [default: the user's data directory]",
)
@click.option(
    "--listen",
    multiple=True,
    metavar="MULTIADDR",
    help="Address on which a node would accept peers. Repeatable.  [default: port 7117]",
)
@click.option("--api-port", type=click.IntRange(0, 65_535), help="Port of the node's HTTP API.  [default: 7118]")
@click.option(
    "--bootstrap",
    multiple=True,
    metavar="FILE|MULTIADDR",
    help="Peers to ask whether they can reach this machine: a multiaddr, or a file with one on each line. Repeatable."
    "  [default: bootstrap.txt in the configuration folder, and the installed one]",
)
@swarm_key_option
@click.option("--offline", is_flag=True, help="Check this machine only, not its network.")
@json_option
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
    """Check whether this machine can run a node: llama.cpp, GPUs, memory, disk, the model and the ports.

    With bootstrap peers, also check whether they can reach this machine, through which kind of address translation
    (NAT), and by which relay.

    Options that are not given are taken from the section [node] of the configuration.

    No node is started and no weights are loaded. The exit code is 0 when a node could run and be reached. Otherwise it
    is 1, and each problem is printed with its fix.
    """
    import msgspec

    from mycelia.node.commands.checks import check_listen, read_bootstrap, read_swarm_key
    from mycelia.node.doctor.machine import examine, lines, with_outlook
    from mycelia.node.doctor.network import look_out
    from mycelia.node.network.addresses import default_listen
    from mycelia.node.settings import DEFAULT_API_PORT, DEFAULT_PORT, WantedModel
    from mycelia.node.storage.data_dir import default_data_dir

    where, peers = data_dir or default_data_dir(), read_bootstrap(bootstrap)
    ports = check_listen(listen or default_listen(DEFAULT_PORT)), DEFAULT_API_PORT if api_port is None else api_port
    key = read_swarm_key(swarm_key)
    report = examine(WantedModel.of(model).name, where)
    if not offline:
        report = with_outlook(report, run(lambda: look_out(where, peers, *ports, key)))
    click.echo(msgspec.json.encode(report) if as_json else "\n".join(lines(report)))
    is_seen = not as_json and sys.stdout.isatty() and sys.stderr.isatty()
    for problem in [] if is_seen else report.problems:
        click.echo(f"mycelia: {problem}", err=True)
    if report.problems:
        sys.exit(1)
