"""A file that a node keeps something in over restarts: written atomically, checked on load, set aside when damaged.

It begins with the BLAKE3 of the rest. What is kept so is worth much only while it is true: a version with a flipped bit
would keep a peer's digests out for ever. So a file that is not what was written counts as none, and is kept beside for
whoever wants to look; the node goes on with what it hears from now on.
"""

from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import structlog
from blake3 import blake3

from mycelia.node.storage.rundir import write_atomically
from mycelia.proto.wire.errors import LocalError

log = structlog.get_logger()

SEAL_BYTES = 16
MAX_FILE_BYTES = 2**24
"""Eight times the largest that is written: 16,384 version floors."""
MAX_ASIDE = 8
"""Damaged files that are kept of each; then the last one is replaced."""

T = TypeVar("T")


class SealedFile(Generic[T]):
    """One kind of file. Whoever loads or saves holds the data directory's lock; anybody may ``peek``."""

    def __init__(self, name: str, kind: type[T], effect: str) -> None:
        """kind: what msgspec is to make of it. effect: of its loss, for the log."""
        self.name = name
        self._kind = kind
        self._effect = effect

    def load(self, data_dir: Path) -> T | None:
        """What was saved; None: nothing, or it cannot be used. Then the file is set aside and that is logged."""
        path = data_dir / self.name
        try:
            return self._read(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            set_aside(path, exc, self._effect)
            return None

    def peek(self, data_dir: Path) -> T | None:
        """The same for a command that only looks: whatever is wrong, nothing is changed or said."""
        try:
            return self._read(data_dir / self.name)
        except (OSError, ValueError):
            return None

    def save(self, data_dir: Path, value: T) -> None:
        """Raises LocalError; the file is as it was then."""
        body = msgspec.msgpack.encode(value)
        if SEAL_BYTES + len(body) > MAX_FILE_BYTES:
            raise LocalError(f"cannot write {data_dir / self.name}: {len(body)} bytes are too many")
        write_atomically(data_dir / self.name, _seal(body) + body)

    def _read(self, path: Path) -> T:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        seal, body = data[:SEAL_BYTES], data[SEAL_BYTES:]
        if len(data) > MAX_FILE_BYTES or _seal(body) != seal:
            raise ValueError("it was changed or cut")
        return msgspec.msgpack.decode(body, type=self._kind)


def set_aside(path: Path, reason: Exception, effect: str) -> None:
    """Moves what cannot be used out of the way, over nothing that was set aside before, and says so. It stays where it
    is if it cannot be moved. effect: of its loss."""
    names = [f"{path.stem}.damaged{number}" for number in ("", *(f"-{n}" for n in range(2, MAX_ASIDE + 1)))]
    places = [path.with_name(name) for name in names]
    aside = next((place for place in places if not place.exists()), places[-1])
    try:
        path.replace(aside)
    except OSError:
        aside = path
    reason_text = reason.strerror or str(reason) if isinstance(reason, OSError) else str(reason)
    log.warning("file_set_aside", file=path.name, now=str(aside), reason=reason_text, effect=effect)


def _seal(body: bytes) -> bytes:
    return blake3(body).digest(length=SEAL_BYTES)
