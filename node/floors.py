"""The version floors of a node's peers in a file, so that a restart forgets none; see ``proto.floors``.

The file begins with the BLAKE3 of the rest: a version with a flipped bit would keep a peer's digests out for ever.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import structlog
import trio
from blake3 import blake3

from node.rundir import write_atomically
from proto.errors import LocalError
from proto.floors import Floor

log = structlog.get_logger()

FLOORS_FILE = "floors.msgpack"
_SEAL_BYTES = 16
SAVE_INTERVAL_S = 60.0
"""A crash forgets at most what was heard in this time."""


def load_floors(data_dir: Path) -> list[Floor]:
    """The floors saved in ``data_dir``. A file that cannot be understood is set aside and its loss is logged: floors
    only keep replayed digests out, which would cost cache misses."""
    path = data_dir / FLOORS_FILE
    try:
        data = path.read_bytes()
        seal, body = data[:_SEAL_BYTES], data[_SEAL_BYTES:]
        if blake3(body).digest(length=_SEAL_BYTES) != seal:
            raise ValueError("it was changed or cut")
        return msgspec.msgpack.decode(body, type=list[Floor])
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as exc:
        aside = path.with_suffix(".damaged")
        try:
            path.replace(aside)
        except OSError:
            aside = path
        log.warning("floors_not_read", file=str(aside), reason=str(exc), effect="old digests of peers may come back")
        return []


def save_floors(data_dir: Path, floors: Sequence[Floor]) -> None:
    """Raises LocalError."""
    body = msgspec.msgpack.encode(floors)
    write_atomically(data_dir / FLOORS_FILE, blake3(body).digest(length=_SEAL_BYTES) + body)


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
