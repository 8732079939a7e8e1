"""The files of the disk tier, one per edge, and the thread that writes them. It never touches llama.cpp or ``Tier``.

    magic 8 | cells key 16 | start 4 | tokens 4 | blob bytes 8 | BLAKE3 of the blob 32 | open tokens 4 | tag 17
    swarm 17 | tokens x 4 | BLAKE3 of all before 16 | blob

Integers are little-endian. In the file of a state (``Edge.is_state``) ``start`` is the number of tokens. A tag or a
swarm is its length and its bytes; the length 255 of a tag means that the edge is open (``Whose``). The header contains
every token from the root, so the index is rebuilt from the headers alone. If the length of a file does not match its
header, or the header does not match its hash, the file is torn or foreign and is deleted. The hash of the blob is
checked when it is read. So no fsync is needed: a file torn by a crash is a miss.

``cells key`` is a hash of everything that decides what cells mean: model, settings, version of llama.cpp. Each key has
its own folder in the cache directory. Nodes with the same model may share it: each checks the hashes of every file, and
a file that another node removed is a miss.

The files contain prompts and answers in clear, as tokens: only the user may read them.
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

from mycelia.node.storage.files import SEAL_BYTES, replacing, seal_of
from mycelia.proto.cache.edges import TOKEN_BYTES, Edge, Whose, open_in

MAGIC = b"MYCKV\x00\x00\x03"
"""The last byte is the format's version."""
SUFFIX, TEMPORARY = ".edge", ".tmp"
MAX_KEY_TOKENS = 2**22
MAX_QUEUED_BYTES = 256 * 2**20
"""Maximum size of the blobs that wait for the writer, in addition to the memory tier's budget."""

_FIXED = struct.Struct("<8s16sIIQ32sIB16sB16s")
_MAX_TAG_BYTES, _NO_TAG = 16, 255


@dataclass(frozen=True)
class Found:
    packed: bytes
    start: int
    blob_bytes: int
    content_hash: bytes
    whose: Whose
    modified_s: float
    """Time of the write or the last use, in seconds since 1970."""


def header(cells_key: bytes, edge: Edge) -> bytes:
    """The file before the blob."""
    tag, num_open, swarm = edge.whose
    owner = (0, _NO_TAG, b"") if tag is None else (num_open, len(tag), tag)
    whose = (*owner, len(swarm), swarm)
    fixed = _FIXED.pack(MAGIC, cells_key, edge.start, edge.end, edge.blob_bytes, edge.content_hash, *whose)
    body = fixed + edge.packed
    return body + seal_of(body)


def file_name(packed: bytes, start: int, whose: Whose) -> str:
    """The name of an edge's file. Equal keys have equal names, so a second write replaces the first file."""
    owner = whose.swarm + (b"" if whose.tag is None else b"\x01" + whose.tag)
    return blake3(start.to_bytes(4, "little") + packed + owner).hexdigest(length=16) + SUFFIX


def read_header(path: Path, cells_key: bytes) -> Found | None:
    """The header; None for a file that is torn, changed or foreign. Raises OSError."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        fixed = file.read(_FIXED.size)
        if len(fixed) < _FIXED.size:
            return None
        magic, key, start, end, blob_bytes, content_hash, num_open, *names = _FIXED.unpack(fixed)
        tag_bytes, tag, swarm_bytes, swarm = names
        if (magic, key) != (MAGIC, cells_key) or not 0 < max(start, 1) <= end <= MAX_KEY_TOKENS:
            return None
        is_open = tag_bytes == _NO_TAG
        if swarm_bytes > _MAX_TAG_BYTES or (not is_open and (tag_bytes > _MAX_TAG_BYTES or num_open > start)):
            return None
        swarm = swarm[:swarm_bytes]
        whose = open_in(swarm) if is_open else Whose(tag[:tag_bytes], num_open, swarm)
        size = _FIXED.size + end * TOKEN_BYTES + SEAL_BYTES
        if status.st_size != size + blob_bytes:
            return None
        rest = file.read(end * TOKEN_BYTES + SEAL_BYTES)
    packed, seal = rest[:-SEAL_BYTES], rest[-SEAL_BYTES:]
    if seal_of(fixed + packed) != seal or path.name != file_name(packed, start, whose):
        return None
    return Found(packed, start, blob_bytes, content_hash, whose, status.st_mtime)


class EdgeFiles:
    """The folder of one cells key, with a thread that writes and removes files. ``write`` and ``remove`` never wait.
    One thread, the owner, calls all methods; it shares only the two queues with the writer."""

    def __init__(self, cache_dir: Path, cells_key: bytes) -> None:
        """Raises OSError when the folder cannot be made or when other users may write to it: they could plant cells
        that make the model attend to tokens of their choice, and the hash in the same file would not reveal it."""
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
        """Called by the writer's thread when ``finished`` has a result."""
        self.failure = ""
        """The reason why a write failed; then nothing more is written."""
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    def path(self, edge: Edge) -> Path:
        return self._folder / file_name(edge.packed, edge.start, edge.whose)

    def scan(self) -> tuple[list[Found], list[str]]:
        """The edges in the folder, the longest unused first, and the names of invalid files. Invalid files are
        deleted, also those that a crash left unfinished. Files with other suffixes stay."""
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
                pass  # (removed by another node, or not readable: in both cases not in the index)
            bad.append(path.name)
        found.sort(key=lambda edge: edge.modified_s)
        return found, bad

    def _entries(self) -> Iterator[Path]:
        with suppress(OSError):
            yield from sorted(self._folder.iterdir())

    def read(self, edge: Edge) -> memoryview | None:
        """The blob of an edge on disk, not verified yet; None when its file is gone or has a wrong size."""
        offset = _FIXED.size + len(edge.packed) + SEAL_BYTES
        try:
            with self.path(edge).open("rb") as file:
                file.seek(offset)
                data = file.read(edge.blob_bytes + 1)
            os.utime(self.path(edge))
        except OSError:
            return None
        return memoryview(data) if len(data) == edge.blob_bytes else None

    def write(self, edge: Edge) -> None:
        """Queue the write of an edge in memory; ``finished`` reports its end. Do not call while ``is_busy``."""
        assert edge.blob is not None
        self._queued_bytes += edge.blob_bytes
        self._jobs.put((edge, edge.blob))

    @property
    def is_busy(self) -> bool:
        return self._queued_bytes >= MAX_QUEUED_BYTES

    def remove(self, edge: Edge) -> None:
        """Queue the removal of a file, after all queued writes."""
        self._jobs.put(self.path(edge))

    def finished(self, timeout_s: float = 0.0) -> list[tuple[Edge, bool]]:
        """(edge, success) of writes that ended since the last call. Waits up to ``timeout_s`` for one if any is due."""
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
            except FileNotFoundError:  # A node that started with the same folder deleted it as unfinished.
                self._results.put((edge, False, ""))
            except OSError as exc:
                self._results.put((edge, False, exc.strerror or str(exc)))
            else:
                self._results.put((edge, True, ""))
            self.on_ended()
            del edge, blob, job  # Otherwise the last blob would stay in memory until the next one comes.

    def _write(self, edge: Edge, blob: memoryview) -> None:
        path = self.path(edge)
        with replacing(path, f"{path.stem}.{os.getpid()}{TEMPORARY}") as file:
            file.write(header(self._key, edge))
            file.write(blob)
