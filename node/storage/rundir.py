"""The data directory's lock and run file: one node a directory, and a way for commands to find it.

The lock is the operating system's (flock), so that a killed node leaves no stale one. The run file tells where the
local API listens; it counts only while the lock is held.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from mycelia.proto.digests.digest import epoch_after
from mycelia.proto.wire.errors import LocalError

_LOCK_FILE = "lock"
_RUN_FILE = "node.json"
_EPOCH_FILE = "epoch"
_MAX_BYTES = 4_096
_LOOK_S, _MAX_LOOKS = 0.02, 10
"""A command that looks whether a node is here holds the lock for an instant: no reason to refuse to start."""


@dataclass(frozen=True)
class RunInfo:
    """A running node, as its run file describes it."""

    pid: int
    api_url: str
    peer: str
    api_key: str = ""
    """One that opens the API; empty: it needs none. The data directory is its owner's alone."""


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the directory. Raises LocalError when another node holds it."""
    with _open_lock(data_dir, os.O_RDWR | os.O_CREAT) as lock:
        for _ in range(_MAX_LOOKS):
            if _try_lock(lock, fcntl.LOCK_EX):
                break
            time.sleep(_LOOK_S)
        else:
            raise LocalError(
                f"another node is running with the data directory {data_dir}; stop it, or choose another --data-dir"
            )
        try:
            yield
        finally:
            with suppress(OSError):
                (data_dir / _RUN_FILE).unlink()


def write_run_info(data_dir: Path, info: RunInfo) -> None:
    """Tell where the node is. Call while holding the lock."""
    write_atomically(data_dir / _RUN_FILE, json.dumps(asdict(info)).encode())


def find_running(data_dir: Path) -> RunInfo | None:
    """The node that runs with this directory now, if any."""
    try:
        info = msgspec.json.decode(_read(data_dir / _RUN_FILE), type=RunInfo)
    except (OSError, ValueError):
        return None
    return info if is_held(data_dir) else None


def is_held(data_dir: Path) -> bool:
    """Whether a node runs with this directory, be it still starting or on its way out."""
    try:
        with _open_lock(data_dir, os.O_RDONLY) as lock:
            return not _try_lock(lock, fcntl.LOCK_SH)  # shared, so that two commands do not see each other
    except LocalError:
        return False


def next_epoch(data_dir: Path, now: float) -> int:
    """See ``epoch_after``; remembered for the next start."""
    path = data_dir / _EPOCH_FILE
    try:
        last = int(_read(path))
    except (OSError, ValueError):
        last = 0
    epoch = epoch_after(last, now)
    write_atomically(path, str(epoch).encode())
    return epoch


def write_atomically(path: Path, data: bytes) -> None:
    """The file has its old content or all of ``data``, whatever happens, and is its owner's alone: some hold keys.
    The caller holds the directory's lock: what a killed node left half written is replaced. Raises LocalError."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb", opener=_private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as exc:
        with suppress(OSError):
            temporary.unlink()
        raise LocalError(f"cannot write {path}: {exc.strerror or exc}") from exc


def _read(path: Path) -> bytes:
    """Whatever became of the file, no more than it may hold. Raises OSError."""
    with path.open("rb") as file:
        return file.read(_MAX_BYTES)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def _open_lock(data_dir: Path, flags: int) -> Iterator[int]:
    try:
        descriptor = os.open(data_dir / _LOCK_FILE, flags, 0o600)
    except OSError as exc:
        raise LocalError(f"cannot open {data_dir / _LOCK_FILE}: {exc.strerror}") from exc
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
