"""Tables of private swarms, and invitations as QR codes."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import segno
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mycelia.node.peer_id import peer_text
from mycelia.node.storage.private_swarms import SwarmFile, read_swarm
from mycelia.node.terminal.tables import printable

ROOM = 100
"""Columns of a terminal that has room for all columns."""
PEER_CHARS = 52
"""Characters of an Ed25519 peer id, which must be whole to be copied."""


@dataclass(frozen=True)
class SwarmRow:
    """A private swarm of this node."""

    name: str
    members: int
    models: Sequence[str]
    key_number: int
    admin: bool
    """Whether this node keeps it."""


@dataclass(frozen=True)
class MemberRow:
    peer: str
    name: str
    since: int
    state: str


@dataclass(frozen=True)
class InvitationRow:
    id: str
    state: str
    uses_left: int
    expires: int


@dataclass(frozen=True)
class MembersView:
    """The members of a private swarm, and at its admin the invitations."""

    name: str
    key_number: int
    members: Sequence[MemberRow]
    invitations: Sequence[InvitationRow]


def swarm_row(name: str, data_dir: Path) -> SwarmRow:
    content = read_swarm(data_dir, name)
    roster = content.roster
    return SwarmRow(name, len(roster.members), roster.models, roster.epoch, content.held is not None)


def members_view(content: SwarmFile, me: bytes, online: set[str] | None, now: float) -> MembersView:
    """online: the connected peers; None: unknown, since this node does not run."""

    def state_of(peer: bytes) -> str:
        if peer == me:
            return "this node"
        return "unknown" if online is None else "online" if peer_text(peer) in online else "offline"

    roster = content.roster
    return MembersView(
        roster.name,
        roster.epoch,
        [MemberRow(peer_text(one.peer), one.name, one.since, state_of(one.peer)) for one in roster.members],
        [
            InvitationRow(one.invitation_id.hex(), one.state(now), one.uses_left, one.expires)
            for one in (content.held.issued if content.held else ())
        ],
    )


def show_swarms(console: Console, rows: Sequence[SwarmRow]) -> None:
    if not rows:
        console.print("this node is in no private swarm; make one with 'mycelia swarm create NAME'")
        return
    table = _table("name", "members", "key", "kept here", "models")
    for row in rows:
        models = printable(", ".join(row.models)) or "any"
        table.add_row(row.name, str(row.members), str(row.key_number), "yes" if row.admin else "no", models)
    console.print(table)


def show_members(console: Console, view: MembersView) -> None:
    is_wide = console.width >= ROOM
    table = _table("member", "state", "name", *(["since"] if is_wide else []))
    for row in view.members:
        since = [_date(row.since)] if is_wide else []
        table.add_row(row.peer, row.state, printable(row.name), *since)
    console.print(table)
    if view.invitations:
        table = _table("invitation", "state", "uses left", "until")
        for one in view.invitations:
            table.add_row(one.id, one.state, str(one.uses_left), _date(one.expires))
        console.print(table)


def draw_invitation(text: str) -> None:
    """Draws a QR code if standard output is a terminal."""
    if sys.stdout.isatty():
        # (capital letters need less room in a QR code, and invitations may be written in either case)
        segno.make(text.upper(), error="l", micro=False).terminal(compact=True)


def _table(*names: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, min_width=PEER_CHARS if name == "member" else None)
    return table


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds < 2**35 else "?"
