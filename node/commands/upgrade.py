"""``mycelia upgrade``: whether the swarm has newer versions, and how to get one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mycelia.node.commands.options import data_dir_option, json_option

if TYPE_CHECKING:
    from rich.console import Console

    from mycelia.node.views.state import PeerRow, UpgradeView


@click.command(
    epilog="""\b
Examples:
  mycelia upgrade                    how this installation is upgraded
  mycelia upgrade --check            and whether peers run a newer version
  mycelia upgrade --check --json | jq .newest"""
)
@click.option(
    "--check", is_flag=True, help="Ask the running node which versions its peers report, and compare with the newest."
)
@data_dir_option
@json_option
def upgrade(check: bool, data_dir: Path | None, as_json: bool) -> None:
    """Say how to upgrade this installation, and with --check whether the swarm has a newer version.

    Nothing is downloaded or changed. Peers can report any version: look at the releases before you act on it.
    """
    from mycelia.node.client.local import fetch_state
    from mycelia.node.commands.running import print_view, run, running

    async def look() -> None:
        state = await fetch_state(running(data_dir)) if check else None
        peers = [] if state is None else [*state.peers, *(state.public.peers if state.public else [])]
        print_view(compared(peers, state.version if state else ""), as_json, show_upgrade)

    run(look)


def compared(peers: "Sequence[PeerRow]", running: str = "") -> "UpgradeView":
    """What the reported versions mean for this installation. running: the version of the node here, which may still be
    the one before; empty: that of this program."""
    from mycelia.node.doctor.installation import installation
    from mycelia.node.version import VERSION, order_of
    from mycelia.node.views.state import UpgradeView
    from mycelia.proto.admission.subnets import subnet_of

    own = running or VERSION
    known = [row for row in peers if row.version]
    newest = max((row.version for row in known), key=order_of, default="")
    newer = [row for row in known if order_of(row.version) > order_of(own)]
    here = installation()
    return UpgradeView(
        version=own,
        installed=VERSION,
        newest=newest,
        is_newer=bool(newer),
        peers=len(known),
        newer_peers=len(newer),
        newer_networks=len({subnet_of(row.address) for row in newer}),
        kind=here.kind,
        upgrade=here.upgrade,
    )


def show_upgrade(console: "Console", view: "UpgradeView") -> None:
    if view.is_newer:
        networks = "1 network" if view.newer_networks == 1 else f"{view.newer_networks} networks"
        console.print(
            f"the node here runs {view.version}; {view.newer_peers} of {view.peers} peers, in {networks}, report a"
            f" newer version, the newest is {view.newest}",
            soft_wrap=True,
        )
    elif view.peers:
        console.print(f"the node here runs {view.version}; none of {view.peers} peers reports a newer version")
    else:
        console.print(f"this is {view.version}; no peer has reported a version")
    if view.installed != view.version:
        console.print(f"{view.installed} is installed: restart the node to run it")
    console.print(f"to upgrade: {view.upgrade}", soft_wrap=True)
