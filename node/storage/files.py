"""Files that are written whole or not at all, and the seal that shows damage."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from mycelia.proto.wire.errors import LocalError

SEAL_BYTES = 16


def seal_of(data: bytes) -> bytes:
    """A hash that damaged bytes do not have. It stops no person who changes them."""
    return blake3(data).digest(length=SEAL_BYTES)


@contextmanager
def replacing(
    path: Path, temporary: str, *, mode: int = 0o600, is_synced: bool = False, keeps: bool = False
) -> Iterator[BinaryIO]:
    """A file to write, which gets the name ``path`` after the body, or disappears after an exception.

    temporary: its name until then, in the same folder. Two writers at the same time need two names or a lock; what a
    killed one left is replaced. mode: as for ``os.open``. is_synced: the bytes are on the disk before the file gets its
    name. Otherwise it may be empty or cut after a crash of the machine. keeps: a file that has the name already stays,
    and FileExistsError is raised. Raises OSError."""
    draft = path.with_name(temporary)
    try:
        draft.unlink(missing_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
        if keeps:
            _rename_unless_taken(draft, path)
        else:
            os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _rename_unless_taken(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)  # (unlike a rename, it replaces nothing that another process has just made)
    except FileExistsError:
        raise
    except OSError:
        draft.rename(path)  # a file system without hard links


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file so that even after a crash it has its old content or all of ``data``. Only its owner can read it,
    since some files hold keys. Call it while holding the directory's lock. Raises LocalError."""
    try:
        with replacing(path, f"{path.name}.tmp", is_synced=True) as file:
            file.write(data)
    except OSError as exc:
        raise LocalError(f"cannot write {path}: {exc.strerror or exc}") from exc
