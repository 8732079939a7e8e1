"""The directory in which a node keeps its files."""

import os
from pathlib import Path

import platformdirs

from mycelia.proto.wire.errors import LocalError

PUBLIC = "public"
"""The folder in which a node of a private swarm keeps what it has in the open network, if it is there, too."""


STATE_DIR = Path("/var/lib/mycelia")
"""The data directory of a service of the system."""


def default_data_dir() -> Path:
    """The data directory of this user's node without --data-dir; for root that of the system's service, if there is
    one and root has none."""
    own = Path(platformdirs.user_data_dir("mycelia", appauthor=False))
    return STATE_DIR if os.geteuid() == 0 and not own.exists() and STATE_DIR.exists() else own


def prepare_data_dir(path: Path) -> Path:
    """Makes the directory if needed. Raises LocalError when it is not writable."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise LocalError(
            f"cannot make the data directory {path}: {exc.strerror}; choose another with --data-dir"
        ) from exc
    if not os.access(path, os.W_OK | os.X_OK):
        raise LocalError(f"cannot write to the data directory {path}; choose another with --data-dir")
    return path
