"""Commands about private swarms: ``swarm create``, ``members`` and others, ``invite``, ``join``."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mycelia.node.commands.node import node
from mycelia.node.commands.options import data_dir_option, json_option, seconds
from mycelia.node.commands.running import print_view, run

if TYPE_CHECKING:
    from mycelia.node.storage.private_swarms import SwarmFile
    from mycelia.node.storage.rundir import RunInfo
    from mycelia.proto.swarm.authority import Authority

MAX_LIFETIME_S = 365 * 86_400


def _lifetime_s(context: click.Context, param: click.Parameter, value: str) -> int:
    lifetime_s = seconds(context, param, value)
    if lifetime_s is None or not 60 <= lifetime_s <= MAX_LIFETIME_S:
        raise click.BadParameter("an invitation lasts from 1m to 365d")
    return lifetime_s


swarm_name_option = click.option(
    "--swarm", "name", default="", metavar="NAME", help="The private swarm.  [default: the only one here]"
)
name_argument = click.argument("name", default="", metavar="[NAME]")


@click.command(
    epilog="""\b
Examples:
  mycelia swarm create home
  mycelia swarm create lab --model ./model.gguf --allow 12D3KooW...
Then: mycelia node --swarm home, and mycelia invite home."""
)
@click.argument("name")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME|PATH",
    help="Model that the members serve. Repeatable.  [default: each member chooses]",
)
@click.option(
    "--allow",
    "allowed",
    multiple=True,
    metavar="PEER_ID",
    help="Peer that may join, as 'mycelia id' prints it. Repeatable.  [default: all that are invited]",
)
@data_dir_option
def create(name: str, models: tuple[str, ...], allowed: tuple[str, ...], data_dir: Path | None) -> None:
    """Make a private swarm, which this node keeps.

    Only invited nodes join it. A node that runs in it with 'mycelia node --swarm NAME' exchanges prompts with its
    members only: they never leave these nodes. Keep a copy of the file that this command names, since only its holder
    can invite and remove members."""
    from mycelia.node.engine.models import model_name
    from mycelia.node.peer_id import peer_from_text
    from mycelia.node.storage.data_dir import prepare_data_dir
    from mycelia.node.storage.identity_file import load_or_create_identity
    from mycelia.node.storage.private_swarms import create_swarm, swarm_path

    where = prepare_data_dir(_where(data_dir))
    me = load_or_create_identity(where).peer_id
    # (the name, since the file has another path on other machines)
    create_swarm(where, name, me, tuple(map(model_name, models)), tuple(map(peer_from_text, allowed)), time.time())
    click.echo(f"the private swarm {name} is in {swarm_path(where, name)}; keep a copy of this file in a safe place")
    click.echo(f"run this node in it:  mycelia node --swarm {name}\ninvite another one:   mycelia invite {name}")


@click.command(
    "list",
    epilog="""\b
Examples:
  mycelia swarm list
  mycelia swarm list --json""",
)
@data_dir_option
@json_option
def list_swarms(data_dir: Path | None, as_json: bool) -> None:
    """List the private swarms of this node."""
    from mycelia.node.storage.private_swarms import swarm_names
    from mycelia.node.terminal.private_swarms import show_swarms, swarm_row

    where = _where(data_dir)
    print_view([swarm_row(name, where) for name in swarm_names(where)], as_json, show_swarms)


@click.command(
    epilog="""\b
Examples:
  mycelia swarm members
  mycelia swarm members home --json"""
)
@name_argument
@data_dir_option
@json_option
def members(name: str, data_dir: Path | None, as_json: bool) -> None:
    """List the members of a private swarm, and where this node keeps it, its invitations.

    NAME may be left out if this node is in one private swarm only."""
    from mycelia.node.terminal.private_swarms import members_view, show_members

    where = _where(data_dir)
    name, content = _chosen(where, name)
    online = _online(where, name)
    me = _me(where)
    print_view(members_view(content, me, online, time.time()), as_json, show_members)


@click.command(
    epilog="""\b
Examples:
  mycelia swarm revoke 12D3KooW...
  mycelia swarm revoke laptop --swarm home
  mycelia swarm revoke 5f0c29ab44e1d207        an invitation, by the id that 'mycelia swarm members' shows"""
)
@click.argument("who", metavar="PEER_ID|NAME|INVITATION")
@swarm_name_option
@data_dir_option
def revoke(who: str, name: str, data_dir: Path | None) -> None:
    """Remove a member or close an invitation.

    After a member is removed the swarm has a new key, which the other members get by themselves. The removed member
    still knows what it has read before."""
    import os

    from mycelia.node.peer_id import peer_text
    from mycelia.node.storage.private_swarms import authority_of

    where = _where(data_dir)
    name, _ = _chosen(where, name)
    with authority_of(where, name) as authority:
        invitation = next((one for one in authority.held.issued if one.invitation_id.hex() == who.lower()), None)
        if invitation is not None:
            authority.revoke(invitation.invitation_id)
            click.echo(f"the invitation {who} is closed")
            return
        peer = _member(authority, who)
        authority.remove(peer, os.urandom(32))
        num_open = sum(one.state(time.time()) == "open" for one in authority.held.issued)
    click.echo(f"{peer_text(peer)} is removed from {name}; the swarm has a new key")
    if num_open:
        click.echo(f"open invitations: {num_open}; the same person could use one with a new identity")


@click.command(
    epilog="""\b
Examples:
  mycelia swarm allow 12D3KooW...
  mycelia swarm allow 12D3KooW... --swarm home"""
)
@click.argument("peer", metavar="PEER_ID")
@swarm_name_option
@data_dir_option
def allow(peer: str, name: str, data_dir: Path | None) -> None:
    """Let a node join that was removed, or that is not on the list of 'mycelia swarm create --allow'.

    It still needs an invitation."""
    from mycelia.node.peer_id import peer_from_text
    from mycelia.node.storage.private_swarms import authority_of

    where = _where(data_dir)
    name, _ = _chosen(where, name)
    with authority_of(where, name) as authority:
        authority.allow(peer_from_text(peer))
    click.echo(f"{peer} may join {name}; invite it with 'mycelia invite {name}'")


@click.command(
    epilog="""\b
Examples:
  mycelia swarm rotate
  mycelia swarm rotate home"""
)
@name_argument
@data_dir_option
def rotate(name: str, data_dir: Path | None) -> None:
    """Change the key of a private swarm.

    Members get the new key by themselves, those that are offline when they connect again: for the last four keys."""
    import os

    from mycelia.node.storage.private_swarms import authority_of

    where = _where(data_dir)
    name, _ = _chosen(where, name)
    with authority_of(where, name) as authority:
        authority.rotate(os.urandom(32))
        click.echo(f"{name} has a new key, number {authority.roster.epoch}")


@click.command(
    epilog="""\b
Examples:
  mycelia invite
  mycelia invite home --expires 7d --uses 5
  mycelia invite --no-qr > invitation.txt"""
)
@name_argument
@click.option(
    "--expires",
    callback=_lifetime_s,
    default="24h",
    show_default=True,
    metavar="TIME",
    help="Time until it expires, such as 30m, 24h or 7d.",
)
@click.option("--uses", type=click.IntRange(1, 512), default=1, show_default=True, help="Number of nodes it admits.")
@click.option("--qr/--no-qr", default=True, show_default=True, help="Also draw it as a QR code, on a terminal.")
@data_dir_option
def invite(name: str, expires: int, uses: int, qr: bool, data_dir: Path | None) -> None:
    """Print an invitation to a private swarm that this node keeps.

    The node has to run: 'mycelia node --swarm NAME'. Who has the invitation can join until it expires or is used up, so
    send it as you would send a password. On the other machine: mycelia join INVITATION."""
    from mycelia.node.private_swarm.inviting import invited
    from mycelia.node.terminal.private_swarms import draw_invitation

    where = _where(data_dir)
    name, _ = _chosen(where, name)
    info = _running_in(where, name)
    made = run(lambda: invited(where, name, info, expires, uses, time.time()))
    issued = made.issued
    click.echo(made.text)
    if qr:
        draw_invitation(made.text)
    click.echo(
        f"for {uses} {'node' if uses == 1 else 'nodes'}, until"
        f" {time.strftime('%Y-%m-%d %H:%M', time.localtime(issued.expires))}; its id is {issued.invitation_id.hex()}",
        err=True,
    )
    if not made.is_for_everywhere:
        click.echo(
            "it works only in your own network: no member has an address that others can dial, nor a relay; see"
            " 'mycelia doctor', or give --announce or --bootstrap to 'mycelia node'",
            err=True,
        )


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="""\b
Examples:
  mycelia join mycelia1...
  mycelia join mycelia1... --name laptop --model ./model.gguf
  mycelia join mycelia1... --no-start""",
)
@click.argument("invitation")
@click.option("--name", "label", metavar="TEXT", help="Name of this node for the members.  [default: the host's name]")
@click.option("--as", "name", default="", metavar="NAME", help="Name of the swarm here.  [default: its own name]")
@click.option("--start/--no-start", default=True, show_default=True, help="Start the node afterwards.")
@data_dir_option
@click.pass_context
def join(
    context: click.Context, invitation: str, label: str | None, name: str, start: bool, data_dir: Path | None
) -> None:
    """Join a private swarm with an invitation, and run the node in it until Ctrl-C.

    All options of 'mycelia node' may follow, such as --model. The next time 'mycelia node --swarm NAME' is enough."""
    import platform

    from mycelia.node.private_swarm.asking import join_swarm
    from mycelia.node.storage.data_dir import prepare_data_dir
    from mycelia.proto.swarm.invitations import read_invitation

    if context.args and not start:
        raise click.UsageError(f"no such option or argument: {context.args[0]}")
    read = read_invitation(invitation)
    name = name or read.name
    where = prepare_data_dir(_where(data_dir))
    label = platform.node() if label is None else label
    roster = run(lambda: join_swarm(where, read, name, label))
    num = len(roster.members)
    click.echo(f"this node is a member of {name}, which has {num} {'member' if num == 1 else 'members'}", err=True)
    if start:
        arguments = ["--swarm", name, "--data-dir", str(where), *context.args]
        with node.make_context("node", arguments, parent=context.find_root()) as own:
            node.invoke(own)
    else:
        click.echo(f"run this node in it:  mycelia node --swarm {name}", err=True)


def _where(data_dir: Path | None) -> Path:
    from mycelia.node.storage.data_dir import default_data_dir

    return data_dir or default_data_dir()


def _me(where: Path) -> bytes:
    from mycelia.node.storage.identity_file import load_or_create_identity

    return load_or_create_identity(where).peer_id


def _chosen(where: Path, name: str) -> "tuple[str, SwarmFile]":
    """The swarm ``name``, or the only one. Raises LocalError."""
    from mycelia.node.storage.private_swarms import read_swarm, swarm_names
    from mycelia.proto.wire.errors import LocalError

    if not name:
        names = swarm_names(where)
        if len(names) != 1:
            hint = f"name one of {', '.join(names)}" if names else "make one with 'mycelia swarm create NAME'"
            raise LocalError(f"this node is in {len(names) or 'no'} private swarms; {hint}")
        (name,) = names
    return name, read_swarm(where, name)


def _running_in(where: Path, name: str) -> "RunInfo":
    from mycelia.node.storage.rundir import find_running
    from mycelia.proto.wire.errors import LocalError

    info = find_running(where)
    if info is None or info.swarm != name:
        other = f"runs in {info.swarm or 'the open network'}" if info else "does not run"
        raise LocalError(
            f"this node {other}, and an invitation names addresses at which it answers; start 'mycelia node --swarm"
            f" {name}', then invite again"
        )
    return info


def _online(where: Path, name: str) -> set[str] | None:
    """The connected peers; None: the node does not run in this swarm."""
    from mycelia.node.client.local import fetch_state
    from mycelia.node.storage.rundir import find_running

    info = find_running(where)
    if info is None or info.swarm != name:
        return None
    state = run(lambda: fetch_state(info))
    return {row.peer for row in state.peers}


def _member(authority: "Authority", who: str) -> bytes:
    """The member that the user means. Raises LocalError when there is none or several."""
    from mycelia.node.peer_id import peer_text
    from mycelia.proto.wire.errors import LocalError

    found = [one.peer for one in authority.roster.members if who in (peer_text(one.peer), one.name)]
    found = found or [one.peer for one in authority.roster.members if peer_text(one.peer).endswith(who.lstrip("…"))]
    if len(found) != 1:
        what = "several members are" if found else "no member and no invitation is"
        raise LocalError(f"{what} called {who}; give the whole peer id, see 'mycelia swarm members'")
    return found[0]
