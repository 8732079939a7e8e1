"""The lock and the run file of a data directory. They allow one node per directory, and let commands find that node.

The lock is the operating system's (flock), so a killed node leaves no stale lock. The run file contains the address of
the local API. It is valid only while the lock is held.
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

from mycelia.node.storage.files import write_atomically
from mycelia.proto.digests.digest import epoch_after
from mycelia.proto.wire.errors import LocalError

_LOCK_FILE = "lock"
_RUN_FILE = "node.json"
EPOCH_FILE = "epoch"
_MAX_BYTES = 4_096
_LOOK_S, _MAX_LOOKS = 0.02, 10
"""A starting node tries several times: a command that looks for a node holds the lock for an instant."""


@dataclass(frozen=True)
class RunInfo:
    """The content of a running node's run file."""

    pid: int
    api_url: str
    peer: str
    api_key: str = ""
    """A key that the API accepts; empty: it needs none. Only the directory's owner can read the file."""
    swarm: str = ""
    """The private swarm in which the node runs, or UNNAMED; empty: the open network."""
    public: bool = False
    """Whether the node is in a private swarm and in the open network."""
    api_cert: str = ""
    """The file of the certificate with which the API is encrypted; empty: it is not."""


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Holds the directory's lock. Raises LocalError when another node holds it."""
    with _open_lock(data_dir, os.O_RDWR | os.O_CREAT) as lock:
        for _ in range(_MAX_LOOKS):
            if _try_lock(lock, fcntl.LOCK_EX):
                break
            time.sleep(_LOOK_S)
        else:
            running = find_running(data_dir)
            process = f" (process {running.pid})" if running else ""
            raise LocalError(
                f"another node is running with the data directory {data_dir}{process}: end it with 'mycelia leave', or"
                " choose another --data-dir"
            )
        try:
            yield
        finally:
            with suppress(OSError):
                (data_dir / _RUN_FILE).unlink()


def write_run_info(data_dir: Path, info: RunInfo) -> None:
    """Writes the run file. Call it while holding the lock."""
    write_atomically(data_dir / _RUN_FILE, json.dumps(asdict(info)).encode())


def find_running(data_dir: Path) -> RunInfo | None:
    """The node that runs with this directory now; None: there is none."""
    try:
        info = msgspec.json.decode(_read(data_dir / _RUN_FILE), type=RunInfo)
    except (OSError, ValueError):
        return None
    return info if is_held(data_dir) else None


def is_held(data_dir: Path) -> bool:
    """Whether a node runs with this directory, including one that is starting or ending."""
    try:
        with _open_lock(data_dir, os.O_RDONLY) as lock:
            return not _try_lock(lock, fcntl.LOCK_SH)  # shared, so that two commands do not see each other
    except LocalError:
        return False


def next_epoch(data_dir: Path, now: float) -> int:
    """The epoch of this start, see ``epoch_after``. It is saved for the next start."""
    path = data_dir / EPOCH_FILE
    try:
        last = int(_read(path))
    except (OSError, ValueError):
        last = 0
    epoch = epoch_after(last, now)
    write_atomically(path, str(epoch).encode())
    return epoch


def _read(path: Path) -> bytes:
    """At most _MAX_BYTES of a file, which may have been damaged. Raises OSError."""
    with path.open("rb") as file:
        return file.read(_MAX_BYTES)


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
