"""Memory outside the node's own process: what engines take, and a folder in memory for the prefixes that models keep.

The folder lies in Linux's shared memory (``/dev/shm``), so what an engine's process wrote there survives it. It belongs
to one process, which holds a lock on it and removes it at the end. What a killed one left is removed at the next start.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the folder made in it is this user's alone
PREFIX = "mycelia-"
SHM_SHARE = 0.9
"""The part of the free shared memory that may be used."""


def resident_bytes(pid: int) -> int:
    """Memory that a process holds, with all that it shares: other programs that have the same weights in memory may
    end at any time. 0: unknown."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def memory_folder(place: Path = SHARED_MEMORY) -> Iterator[Path | None]:
    """An empty folder in memory, which is gone after the block; None where there is no shared memory."""
    try:
        _remove_left_ones(place)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))  # (only this user can read it)
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield None
        return
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def usable_shared_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return int(status.f_bavail * status.f_frsize * SHM_SHARE)


def used_bytes(folder: Path) -> int:
    return sum(size for _, size, _ in _files(folder))


def trim(folder: Path, most_bytes: int) -> None:
    """Remove the files that were not used longest until the rest takes at most ``most_bytes``."""
    files = sorted(_files(folder))
    used = sum(size for _, size, _ in files)
    for _, size, path in files:
        if used <= most_bytes:
            break
        with suppress(OSError):
            os.unlink(path)
        used -= size


def _files(folder: Path) -> list[tuple[float, int, str]]:
    """(time of the last use, size, path)."""
    found = []
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            with suppress(OSError):
                status = os.stat(path)
                found.append((status.st_mtime, status.st_size, path))
    return found


def _remove_left_ones(place: Path) -> None:
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
