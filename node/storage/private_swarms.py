"""The private swarms of a data directory: one file each, with the roster, and at the admin the authority's secret.

Commands and the running node change a file under a lock, so each sees the other's changes; the node looks at the file
again when its time of change has changed. A file that others can read is refused: it holds the swarm's key.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mycelia.node.network.identity import Identity, verify
from mycelia.node.peer_id import ED25519_PREFIX
from mycelia.node.storage.sealed import SealedFile
from mycelia.proto.swarm.authority import Authority, Held, founded
from mycelia.proto.swarm.roster import RosterView
from mycelia.proto.wire.codec import decode, encode
from mycelia.proto.wire.errors import LocalError, RemoteError
from mycelia.proto.wire.messages import Member, Roster

FOLDER = "swarms"
SUFFIX = ".swarm"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
MAX_CONTACTS = 16


class _Content(msgspec.Struct, frozen=True):
    roster: bytes
    """As it is on the wire."""
    held: Held | None
    contacts: tuple[str, ...]


class SwarmFile(msgspec.Struct, frozen=True):
    """What a node keeps of one private swarm."""

    roster: Roster
    held: Held | None = None
    """Only at the admin."""
    contacts: tuple[str, ...] = ()
    """Full multiaddrs of members, from the invitation."""


def check_name(name: str) -> str:
    """Raises LocalError for a text that cannot name a swarm."""
    if not NAME.fullmatch(name):
        raise LocalError(
            f"{name!r} cannot name a swarm: use 1 to 32 small letters, digits, dots and dashes, such as 'home'"
        )
    return name


def swarm_names(data_dir: Path) -> list[str]:
    """The names of all private swarms of this data directory, sorted."""
    return sorted(path.name.removesuffix(SUFFIX) for path in (data_dir / FOLDER).glob(f"*{SUFFIX}"))


def swarm_path(data_dir: Path, name: str) -> Path:
    return data_dir / FOLDER / f"{check_name(name)}{SUFFIX}"


def state_dir_of(data_dir: Path, name: str) -> Path:
    """The folder of what a node remembers of its peers in the swarm: they are not those of the open network."""
    folder = swarm_path(data_dir, name).with_suffix(".state")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def read_swarm(data_dir: Path, name: str) -> SwarmFile:
    """Raises LocalError, with the fix, when there is no such swarm or its file cannot be used."""
    path = swarm_path(data_dir, name)
    try:
        check_only_owner_reads(path)
    except FileNotFoundError as exc:
        known = ", ".join(swarm_names(data_dir))
        hint = f"there are: {known}" if known else f"make one with 'mycelia swarm create {name}', or join one"
        raise LocalError(f"there is no private swarm {name} in {data_dir}; {hint}") from exc
    content = _file(name).peek(path.parent)
    try:
        roster = decode(content.roster) if content else None
    except RemoteError:
        roster = None
    if content is None or not isinstance(roster, Roster):
        raise LocalError(f"{path} is damaged; restore it from a backup, or remove it and join again")
    return SwarmFile(roster, content.held, content.contacts)


def check_only_owner_reads(path: Path) -> None:
    """Raises LocalError, with the command that mends it, for a key file that other users can read. Raises OSError."""
    if path.stat().st_mode & 0o077:
        raise LocalError(f"other users can read the key in {path}; change that with: chmod 600 {path}")


def write_swarm(data_dir: Path, name: str, content: SwarmFile) -> None:
    """Raises LocalError. Use it inside ``swarms_locked``."""
    contacts = content.contacts[:MAX_CONTACTS]
    _file(name).save(swarm_path(data_dir, name).parent, _Content(encode(content.roster), content.held, contacts))


@contextmanager
def swarms_locked(data_dir: Path) -> Iterator[None]:
    """Lets no other process change a swarm's file while the body runs. Raises LocalError."""
    folder = data_dir / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise LocalError(f"cannot write to {folder}: {exc.strerror}; choose another --data-dir") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def authority_of(data_dir: Path, name: str) -> Iterator[Authority]:
    """The authority of a swarm that this node keeps, saved after the body. Raises LocalError at other nodes."""
    with swarms_locked(data_dir):
        content = read_swarm(data_dir, name)
        if content.held is None:
            raise LocalError(f"only the node that created {name} can do this; run the command there")
        authority = Authority(content.roster, content.held, Identity(content.held.seed).sign)
        yield authority
        if authority.held is not content.held or authority.roster is not content.roster:
            write_swarm(data_dir, name, SwarmFile(authority.roster, authority.held, content.contacts))


def create_swarm(
    data_dir: Path, name: str, me: bytes, models: tuple[str, ...], allowed: tuple[bytes, ...], now: float
) -> SwarmFile:
    """A new swarm with this node as its admin. Raises LocalError when the name is taken."""
    check_name(name)
    with swarms_locked(data_dir):
        if swarm_path(data_dir, name).exists():
            raise LocalError(
                f"there is a private swarm {name} already; choose another name, or run 'mycelia invite {name}'"
            )
        identity = Identity(os.urandom(32))
        authority = founded(
            identity.peer_id.removeprefix(ED25519_PREFIX),
            Held(identity.seed, allowed=allowed),
            identity.sign,
            name,
            Member(peer=me, name="", since=int(now)),
            os.urandom(32),
            os.urandom(32),
            models,
        )
        content = SwarmFile(authority.roster, authority.held)
        write_swarm(data_dir, name, content)
    return content


def check_free(data_dir: Path, name: str, swarm: bytes) -> None:
    """Raises LocalError when another private swarm has this name here."""
    if swarm_path(data_dir, name).exists() and read_swarm(data_dir, name).roster.swarm != swarm:
        raise LocalError(f"another private swarm here is called {name}; join this one with --as OTHER_NAME")


def store_membership(data_dir: Path, name: str, roster: Roster, contacts: tuple[str, ...]) -> None:
    """Keeps the roster that this node got when it joined. Raises LocalError when another swarm has the name."""
    with swarms_locked(data_dir):
        check_free(data_dir, name, roster.swarm)
        held = read_swarm(data_dir, name).held if swarm_path(data_dir, name).exists() else None
        write_swarm(data_dir, name, SwarmFile(roster, held, contacts))


def store_roster(data_dir: Path, name: str, roster: Roster) -> None:
    """Keeps a newer roster. Raises LocalError."""
    with swarms_locked(data_dir):
        before = read_swarm(data_dir, name)
        if before.roster.swarm == roster.swarm and before.roster.version < roster.version:
            write_swarm(data_dir, name, SwarmFile(roster, before.held, before.contacts))


def view_of(content: SwarmFile, me: bytes) -> RosterView:
    return RosterView(content.roster, me, verify)


def _file(name: str) -> SealedFile[_Content]:
    return SealedFile(f"{check_name(name)}{SUFFIX}", _Content, "the node is no longer in this private swarm")
