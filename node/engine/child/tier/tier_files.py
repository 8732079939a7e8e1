"""The disk tier's files: one an edge, and the thread that writes them. It never touches llama.cpp or the books.

    magic 8 | cells key 16 | start 4 | tokens 4 | blob bytes 8 | BLAKE3 of the blob 32 | open tokens 4 | tag 17
    tokens x 4 | BLAKE3 of all before 16 | blob

Integers are little-endian. A tag is its length and its bytes; the length 255 means that the edge is open (``Whose``).
The header names every token from the root, so the index is rebuilt from headers alone. A file whose length does not
fit its header, or whose header does not fit its hash, was torn or is no file of ours: it is deleted. The blob is hashed
when it is read. So nothing needs fsync: what a crash tears is a miss.

``cells key`` stands for whatever must be equal for cells to mean the same: model, settings, llama.cpp's version. Each
key has a folder of its own under the cache directory, which nodes with the same model may share: each trusts no file
more than its hashes, and a file that another node removed is a miss.

The files hold prompts and answers in clear, as tokens: only the user may read them.
"""

import errno
import os
import queue
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from mycelia.node.engine.child.tier.tier import OPEN, TOKEN_BYTES, Edge, Whose

MAGIC = b"MYCKV\x00\x00\x02"
"""The last byte is the format's version."""
SUFFIX, TEMPORARY = ".edge", ".tmp"
MAX_KEY_TOKENS = 2**22
MAX_QUEUED_BYTES = 256 * 2**20
"""Blobs that wait for the writer: memory beyond the memory tier's budget."""

_FIXED = struct.Struct("<8s16sIIQ32sIB16s")
_MAX_TAG_BYTES, _NO_TAG = 16, 255
_SEAL_BYTES = 16


@dataclass(frozen=True)
class Found:
    """What a file's header says."""

    packed: bytes
    start: int
    blob_bytes: int
    content_hash: bytes
    whose: Whose
    modified_s: float
    """Wall clock, seconds since 1970: when it was written or last used."""


def header(cells_key: bytes, edge: Edge) -> bytes:
    """Everything before the blob."""
    tag, num_open = edge.whose
    owner = (0, _NO_TAG, b"") if tag is None else (num_open, len(tag), tag)
    fixed = _FIXED.pack(MAGIC, cells_key, edge.start, edge.end, edge.blob_bytes, edge.content_hash, *owner)
    body = fixed + edge.packed
    return body + blake3(body).digest(length=_SEAL_BYTES)


def file_name(packed: bytes, start: int, tag: bytes | None) -> str:
    """Equal keys have equal names, so a file is replaced rather than written twice."""
    owner = b"" if tag is None else b"\x01" + tag
    return blake3(start.to_bytes(4, "little") + packed + owner).hexdigest(length=16) + SUFFIX


def read_header(path: Path, cells_key: bytes) -> Found | None:
    """None for a file that is torn, changed or not ours. Raises OSError."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        fixed = file.read(_FIXED.size)
        if len(fixed) < _FIXED.size:
            return None
        magic, key, start, end, blob_bytes, content_hash, num_open, tag_bytes, padded = _FIXED.unpack(fixed)
        if (magic, key) != (MAGIC, cells_key) or not start < end <= MAX_KEY_TOKENS:
            return None
        is_open = tag_bytes == _NO_TAG
        if not is_open and (tag_bytes > _MAX_TAG_BYTES or num_open > start):
            return None
        whose = OPEN if is_open else Whose(padded[:tag_bytes], num_open)
        size = _FIXED.size + end * TOKEN_BYTES + _SEAL_BYTES
        if status.st_size != size + blob_bytes:
            return None
        rest = file.read(end * TOKEN_BYTES + _SEAL_BYTES)
    packed, seal = rest[:-_SEAL_BYTES], rest[-_SEAL_BYTES:]
    if blake3(fixed + packed).digest(length=_SEAL_BYTES) != seal or path.name != file_name(packed, start, whose.tag):
        return None
    return Found(packed, start, blob_bytes, content_hash, whose, status.st_mtime)


class EdgeFiles:
    """The folder of one cells key. One thread writes and removes; ``write`` and ``remove`` never wait for it.

    All methods are the owner's, one thread; the writer shares only the two queues.
    """

    def __init__(self, cache_dir: Path, cells_key: bytes) -> None:
        """Raises OSError when the folder cannot be made or when others may write to it: they could plant cells that
        make the model attend to tokens of their choice, which no hash that lies beside them finds out."""
        self._key = cells_key
        self._folder = cache_dir / cells_key.hex()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self._folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "other users may write to it")
        self._jobs: queue.SimpleQueue[tuple[Edge, memoryview] | Path | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Edge, bool, str]] = queue.SimpleQueue()
        self._queued_bytes = 0
        self.on_ended: Callable[[], None] = lambda: None
        """Called by the writer's thread whenever ``finished`` has news."""
        self.failure = ""
        """Why a file could not be written; nothing is written any more then."""
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    def path(self, edge: Edge) -> Path:
        return self._folder / file_name(edge.packed, edge.start, edge.whose.tag)

    def scan(self) -> tuple[list[Found], list[str]]:
        """What the folder holds, the longest unused first, and the names of files that were not what they must be.

        Those are deleted, as is what a crash left half written. Other names are not ours and stay.
        """
        found: list[Found] = []
        bad: list[str] = []
        for path in self._entries():
            if path.suffix not in (SUFFIX, TEMPORARY):
                continue
            try:
                edge = read_header(path, self._key) if path.suffix == SUFFIX else None
                if edge is not None:
                    found.append(edge)
                    continue
                path.unlink()
            except OSError:
                pass  # Another node removed it, or it cannot be read: either way it is not in the index.
            bad.append(path.name)
        found.sort(key=lambda edge: edge.modified_s)
        return found, bad

    def _entries(self) -> Iterator[Path]:
        with suppress(OSError):
            yield from sorted(self._folder.iterdir())

    def read(self, edge: Edge) -> memoryview | None:
        """The blob of an edge on disk, not verified yet; None when its file is gone or has another size."""
        offset = _FIXED.size + len(edge.packed) + _SEAL_BYTES
        try:
            with self.path(edge).open("rb") as file:
                file.seek(offset)
                data = file.read(edge.blob_bytes + 1)
            os.utime(self.path(edge))
        except OSError:
            return None
        return memoryview(data) if len(data) == edge.blob_bytes else None

    def write(self, edge: Edge) -> None:
        """Queue a write of an edge in memory; ``finished`` tells of its end. Not while ``is_busy``."""
        assert edge.blob is not None
        self._queued_bytes += edge.blob_bytes
        self._jobs.put((edge, edge.blob))

    @property
    def is_busy(self) -> bool:
        """Whether the queue is full."""
        return self._queued_bytes >= MAX_QUEUED_BYTES

    def remove(self, edge: Edge) -> None:
        """Queue the removal of a file; after the writes that were queued before."""
        self._jobs.put(self.path(edge))

    def finished(self, timeout_s: float = 0.0) -> list[tuple[Edge, bool]]:
        """Edges whose write ended since the last call, and whether it went well. Waits for one, if any is due."""
        ended: list[tuple[Edge, bool]] = []
        while self._queued_bytes:
            try:
                edge, written, error = self._results.get(timeout=timeout_s) if timeout_s else self._results.get_nowait()
            except queue.Empty:
                break
            timeout_s = 0.0
            self._queued_bytes -= edge.blob_bytes
            self.failure = self.failure or error
            ended.append((edge, written))
        return ended

    @property
    def is_writing(self) -> bool:
        """Whether ``finished`` has something to wait for."""
        return self._queued_bytes > 0

    def close(self) -> None:
        """Wait for the queued writes and removals, then end the thread."""
        self._jobs.put(None)
        self._thread.join()

    # --- the writer's thread --------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        while (job := self._jobs.get()) is not None:
            if isinstance(job, Path):
                with suppress(OSError):
                    job.unlink()
                continue
            edge, blob = job
            try:
                self._write(edge, blob)
            except FileNotFoundError:  # A node that starts on the same folder took it for what a crash left.
                self._results.put((edge, False, ""))
            except OSError as exc:
                self._results.put((edge, False, exc.strerror or str(exc)))
            else:
                self._results.put((edge, True, ""))
            self.on_ended()
            del edge, blob, job  # Else the last blob stays in memory until the next one comes.

    def _write(self, edge: Edge, blob: memoryview) -> None:
        path = self.path(edge)
        temporary = path.with_name(f"{path.stem}.{os.getpid()}{TEMPORARY}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb", buffering=0) as file:
                for part in (header(self._key, edge), blob):
                    view = memoryview(part)
                    while view:
                        view = view[file.write(view) :]
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
