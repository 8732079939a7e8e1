"""The version floors of a node's peers in a file, so that a restart forgets none; see ``proto.floors``."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import structlog
import trio

from node.rundir import write_atomically
from proto.errors import LocalError
from proto.floors import Floor

log = structlog.get_logger()

FLOORS_FILE = "floors.msgpack"
SAVE_INTERVAL_S = 60.0
"""A crash forgets at most what was heard in this time."""


def load_floors(data_dir: Path) -> list[Floor]:
    """The floors saved in ``data_dir``. A file that cannot be understood is set aside and its loss is logged: floors
    only keep replayed digests out, which would cost cache misses."""
    path = data_dir / FLOORS_FILE
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=list[Floor])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as exc:
        aside = path.with_suffix(".damaged")
        try:
            path.replace(aside)
        except OSError:
            aside = path
        log.warning("floors_not_read", file=str(aside), reason=str(exc), effect="old digests of peers may come back")
        return []


def save_floors(data_dir: Path, floors: Sequence[Floor]) -> None:
    """Raises LocalError."""
    write_atomically(data_dir / FLOORS_FILE, msgspec.msgpack.encode(floors))


async def keep_floors(data_dir: Path, floors: Callable[[], Sequence[Floor]]) -> None:
    """Save them now and then, and when cancelled. Never returns."""
    saved: Sequence[Floor] | None = None
    try:
        while True:
            await trio.sleep(SAVE_INTERVAL_S)
            saved = _save_if_changed(data_dir, floors(), saved)
    finally:
        _save_if_changed(data_dir, floors(), saved)


def _save_if_changed(data_dir: Path, floors: Sequence[Floor], saved: Sequence[Floor] | None) -> Sequence[Floor] | None:
    if floors == saved:
        return saved
    try:
        save_floors(data_dir, floors)
    except LocalError as exc:
        log.warning("floors_not_saved", reason=str(exc))
        return saved
    return floors
