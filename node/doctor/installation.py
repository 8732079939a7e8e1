"""How this program was installed, and what its user does to upgrade it."""

import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import mycelia.node

ARCHIVE_MARK = "mycelia-archive"
"""A file at the root of the self-contained archive, and so of the Python in it."""
IMAGE_MARK = "mycelia-image"
"""A file beside it in the container image."""


@dataclass(frozen=True)
class Installation:
    kind: str
    """archive, image, pipx, uv, checkout or wheel."""
    upgrade: str
    """What to do when there is a newer version, as the end of a sentence."""


def installation(prefix: Path | None = None, package: Path | None = None) -> Installation:
    """prefix: the folder of this Python. package: the folder of the program's files. None: those of this process."""
    prefix = prefix or Path(sys.prefix)
    package = package or Path(mycelia.node.__file__).parents[1]
    if (prefix / IMAGE_MARK).exists():
        return Installation("image", "start the container from the new image; its volume keeps the node's data")
    if (prefix / ARCHIVE_MARK).exists():
        return Installation("archive", "run the install.sh of the new version; the node's data stays")
    folders = set(pairwise(prefix.parts))
    if ("pipx", "venvs") in folders:
        return Installation("pipx", "run 'pipx install --force' with the new version's wheel")
    if ("uv", "tools") in folders:
        return Installation("uv", "run 'uv tool install --force' with the new version's wheel")
    if (package / "setup.cfg").exists():
        return Installation("checkout", f"run 'git pull && make setup' in {package.resolve()}")
    return Installation("wheel", f"run '{sys.executable} -m pip install --upgrade' with the new version's wheel")
