"""A file with a value that a node keeps over restarts, written atomically and checked on load by its BLAKE3 hash.

A wrong value does harm: a version with a flipped bit would exclude a peer's digests for ever. Therefore a damaged file
counts as missing. It is renamed for later inspection, and the node starts without the value.
"""

from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import structlog

from mycelia.node.storage.files import SEAL_BYTES, seal_of, write_atomically
from mycelia.proto.wire.errors import LocalError

log = structlog.get_logger()

MAX_FILE_BYTES = 2**24
"""Eight times the largest file that is written, with 16,384 version floors."""
MAX_ASIDE = 8
"""Damaged files that are kept for each name. The last one is then replaced."""

T = TypeVar("T")


class SealedFile(Generic[T]):
    """One kind of file. ``load`` and ``save`` need the data directory's lock, ``peek`` does not."""

    def __init__(self, name: str, kind: type[T], effect: str) -> None:
        """kind: the type of the value, for msgspec. effect: the consequence of a loss, for the log."""
        self.name = name
        self._kind = kind
        self._effect = effect

    def load(self, data_dir: Path) -> T | None:
        """The saved value; None: there is no file or it is damaged. Sets aside and logs a damaged file."""
        path = data_dir / self.name
        try:
            return self._read(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            set_aside(path, exc, self._effect)
            return None

    def peek(self, data_dir: Path) -> T | None:
        """The saved value; None: there is no usable one. For commands: changes and logs nothing."""
        try:
            return self._read(data_dir / self.name)
        except (OSError, ValueError):
            return None

    def save(self, data_dir: Path, value: T) -> None:
        """Writes a value. Raises LocalError, and then the file is unchanged."""
        body = msgspec.msgpack.encode(value)
        if SEAL_BYTES + len(body) > MAX_FILE_BYTES:
            raise LocalError(f"cannot write {data_dir / self.name}: {len(body)} bytes are too many")
        write_atomically(data_dir / self.name, seal_of(body) + body)

    def _read(self, path: Path) -> T:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        seal, body = data[:SEAL_BYTES], data[SEAL_BYTES:]
        if len(data) > MAX_FILE_BYTES or seal_of(body) != seal:
            raise ValueError("it was changed or cut")
        return msgspec.msgpack.decode(body, type=self._kind)


def set_aside(path: Path, reason: Exception, effect: str) -> None:
    """Renames an unusable file and logs that. Replaces no earlier one while a name is free. A file that cannot be
    renamed stays. effect: the consequence of its loss."""
    names = [f"{path.stem}.damaged{number}" for number in ("", *(f"-{n}" for n in range(2, MAX_ASIDE + 1)))]
    places = [path.with_name(name) for name in names]
    aside = next((place for place in places if not place.exists()), places[-1])
    try:
        path.replace(aside)
    except OSError:
        aside = path
    reason_text = reason.strerror or str(reason) if isinstance(reason, OSError) else str(reason)
    log.warning("file_set_aside", file=path.name, now=str(aside), reason=reason_text, effect=effect)
