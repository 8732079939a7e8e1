"""The layout of a data directory: which files there are and how they are written, by a number in the file ``layout``.

A program reads the directories of all earlier layouts, and brings them to its own when a node starts. It refuses those
of later ones: it would take files that it cannot read for damaged, and set them aside.

The number grows with a change after which the program before would misread a file or lose what is in it. It does not
grow for a new file, nor for a field at the end of a record that has a default: both are ignored by the program before.
``CHANGES`` has, for each number, what leads there from the number before.

1. Versions 0.1.0a1 and 0.1.0, which wrote no number.
2. Version 0.2.0: the number itself.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from mycelia.node.storage.files import write_atomically
from mycelia.node.storage.rundir import EPOCH_FILE
from mycelia.proto.wire.errors import LocalError

log = structlog.get_logger()

LAYOUT_FILE = "layout"
_MAX_BYTES = 64


def _nothing(data_dir: Path) -> None:
    """Only the number is new."""


CHANGES: Sequence[Callable[[Path], None]] = (_nothing,)
"""From layout 1 to 2, and so on. Each may be interrupted at any point, and then runs again."""
FIRST = 1
LAYOUT = FIRST + len(CHANGES)
"""The layout of this program."""


def open_layout(data_dir: Path, changes: Sequence[Callable[[Path], None]] = CHANGES) -> None:
    """Bring the directory to this program's layout. Call it while holding the directory's lock, before anything else is
    read. changes: see ``CHANGES``. Raises LocalError for a directory of a later layout."""
    newest = FIRST + len(changes)
    found = layout_of(data_dir)
    if found > newest:
        raise LocalError(
            f"a newer version of mycelia has used the data directory {data_dir} (layout {found}; this version knows"
            f" {newest}): upgrade, or choose another with --data-dir"
        )
    was_used = found > FIRST or (data_dir / EPOCH_FILE).exists()
    for number in range(found, newest):
        changes[number - FIRST](data_dir)
        write_atomically(data_dir / LAYOUT_FILE, f"{number + 1}\n".encode())
        if was_used:
            log.info("data_migrated", data_dir=str(data_dir), layout=number + 1)


def layout_of(data_dir: Path) -> int:
    """The number of the directory's layout. Raises LocalError when the file cannot be read or understood."""
    path = data_dir / LAYOUT_FILE
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return FIRST
    except OSError as exc:
        raise LocalError(f"cannot read {path}: {exc.strerror}") from exc
    digits = text.strip()
    if not digits.isdigit() or len(digits) > 6 or int(digits) < FIRST:
        raise LocalError(f"{path} is damaged: it should have the line {LAYOUT}; write it there if this is your version")
    return int(digits)
