"""Where the prompts of ``mycelia ask`` and ``mycelia chat`` enter a swarm: at the node on this machine, at members of a
private swarm, or at nodes of the open network."""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mycelia.node.commands.options import bootstrap_option, data_dir_option, public_option, swarm_key_option
from mycelia.node.commands.running import run

if TYPE_CHECKING:
    from mycelia.node.client.light import LightClient

_OPTIONS = [
    click.option(
        "--invite",
        "invitation",
        default="",
        metavar="INVITATION",
        help="Ask the private swarm of this invitation. The first time, this machine becomes a member of it, which uses"
        " the invitation up; no node is started.",
    ),
    click.option(
        "--swarm",
        default="",
        metavar="NAME",
        help="Ask this private swarm, which this machine has joined.  [default: the only one, if no node runs here]",
    ),
    public_option,
    bootstrap_option,
    swarm_key_option,
    data_dir_option,
]


def entering_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that ``entering`` reads."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def entering(
    where: Path, bootstrap: tuple[str, ...], public: bool, swarm: str, invitation: str, swarm_key_file: Path | None
) -> "tuple[LightClient, tuple[str, ...]]":
    """The client to use if no node runs on this machine, and the nodes to ask. where: the data directory.

    On a machine in a private swarm, prompts go to its members only, unless the user names others. Raises UsageError and
    LocalError."""
    from mycelia.node.client.light import LightClient
    from mycelia.node.commands.checks import read_bootstrap, read_swarm_key
    from mycelia.node.storage.private_swarms import swarm_names
    from mycelia.node.storage.rundir import find_running

    in_private, elsewhere = bool(swarm or invitation), bool(bootstrap or public or swarm_key_file)
    if in_private and elsewhere:
        raise click.UsageError("--swarm and --invite go with none of --public, --bootstrap and --swarm-key")
    name = swarm or (_joined(where, invitation) if invitation else "")
    names = swarm_names(where)
    if name or (names and not elsewhere and find_running(where) is None):
        return _as_member(where, name, names)
    return LightClient(swarm_key=read_swarm_key(swarm_key_file), mdns=True), read_bootstrap(bootstrap)


def _as_member(where: Path, name: str, names: list[str]) -> "tuple[LightClient, tuple[str, ...]]":
    from mycelia.node.client.light import LightClient
    from mycelia.node.client.local import STARTING
    from mycelia.node.private_swarm.asking import member_client
    from mycelia.node.storage.rundir import find_running, is_held
    from mycelia.proto.wire.errors import LocalError

    info = find_running(where)
    if info is not None and info.swarm != name:
        raise LocalError(
            f"the node on this machine runs in {info.swarm or 'the open network'}, not in {name}: start it with"
            f" 'mycelia node --swarm {name}', or give another --data-dir"
        )
    if info is not None:
        return LightClient(), ()
    if is_held(where):  # (it would have this client's identity)
        raise LocalError(STARTING.format(where))
    if not name and len(names) > 1:
        raise LocalError(
            f"no node is running here, and this machine is in the private swarms {', '.join(names)}: name one with"
            " --swarm, or give --public to ask the open network"
        )
    return member_client(where, name or names[0])


def _joined(where: Path, text: str) -> str:
    """The name that the invitation's swarm has here. Joins it, unless this machine is a member. Raises LocalError."""
    from mycelia.node.private_swarm.asking import join_swarm, name_of
    from mycelia.node.storage.data_dir import prepare_data_dir
    from mycelia.proto.swarm.invitations import read_invitation

    read = read_invitation(text)
    name = name_of(prepare_data_dir(where), read.swarm)
    if not name:
        name = read.name
        run(lambda: join_swarm(where, read, name, platform.node()))
        click.echo(f"this machine is a member of {name} now", err=True)
    return name
