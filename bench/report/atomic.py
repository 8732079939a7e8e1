"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mycelia.proto.wire.errors import LocalError


@contextmanager
def replaced(path: Path) -> Iterator[IO[str]]:
    """A file beside ``path`` that replaces it at the end, and is removed after an exception. Raises LocalError at once
    when nothing can be written there."""
    if path.is_dir():
        raise LocalError(f"cannot write {path}: it is a directory")
    beside = path.with_name(f".{path.name[:100]}.{os.getpid()}")
    try:
        file = beside.open("w", encoding="utf-8")
    except OSError as exc:
        raise LocalError(f"cannot write {path}: {exc.strerror or exc}") from exc
    try:
        with file:
            yield file
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
