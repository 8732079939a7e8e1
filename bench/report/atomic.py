"""Reports that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO

from mycelia.node.storage.files import replacing
from mycelia.proto.wire.errors import LocalError


@contextmanager
def replaced(path: Path) -> Iterator[IO[str]]:
    """A file beside ``path`` that replaces it at the end, and is removed after an exception. Raises LocalError at once
    when nothing can be written there."""
    if path.is_dir():
        raise LocalError(f"cannot write {path}: it is a directory")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(replacing(path, f".{path.name[:100]}.{os.getpid()}", mode=0o666))
        except OSError as exc:
            raise LocalError(f"cannot write {path}: {exc.strerror or exc}") from exc
        text = TextIOWrapper(file, encoding="utf-8")
        yield text
        text.flush()
