"""The journal of the requests that entered at a node: one record when a request enters, another when it ends. So users
still see them after a restart, and also which of them were interrupted.

Each record is a line between two newlines: BLAKE3 of the rest in hexadecimal, a space, JSON. So a torn tail, a disk
that fills up within a record, or changed bytes cost only the records that contain them. A thread appends the records.
Nothing waits for the disk, and nothing is synced to it: the kernel keeps what a killed process wrote. There are two
files: when one is full, the records to keep of both are written to the other, by the rule of ``client_rows.py``, so
that no client's requests displace those of another client.

The journal has no prompts and no answers, nor texts from other nodes, which may quote them: a step with such a text
keeps only its name.
"""

import os
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import structlog
import trio

from mycelia.node.storage.files import seal_of, write_atomically
from mycelia.node.storage.sealed import set_aside
from mycelia.node.telemetry.client_rows import ClientRows
from mycelia.node.telemetry.requests import CODES, MAX_REQUESTS, RequestLog
from mycelia.node.views.history import RequestRow
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import TraceStep

log = structlog.get_logger()

JOURNAL_FILE, OLD_FILE = "requests.journal", "requests.journal.old"
MAX_FILE_BYTES = 2**21
"""MAX_REQUESTS requests of 10 steps take about half of it."""
GATHER_S = 0.005
"""Delay before a record is written. A thread that wakes just when a request has entered delays its way to the engine by
a millisecond; a little later the node only waits for the first token."""
MAX_QUEUED = 1_024
"""Records that may wait for a slow disk. Further ones are dropped, and the log gives their number."""
_EFFECT = "earlier requests are not shown"
_OWN_WORDS = frozenset(
    "entered tokenized relayed routed begun bounced answered serving prefilling served handed_back".split()  # noqa: SIM905
)
"""Steps whose detail this node wrote itself."""
_REASONS = CODES | {"", "stop", "length", "cancelled"}
INTERRUPTED = TraceStep(at_ms=0, name="interrupted", detail="the node ended before the answer did")

run_in_thread = trio.to_thread.run_sync


class Record(msgspec.Struct, frozen=True):
    """A request at its entry or after its end."""

    row: RequestRow
    steps: tuple[TraceStep, ...]


@asynccontextmanager
async def open_request_log(data_dir: Path | None) -> AsyncIterator[RequestLog]:
    """A log with the requests of earlier runs, which writes the new ones to the journal. data_dir: None: no journal.
    The caller must hold the directory's lock. Leaving writes the rest."""
    if data_dir is None:
        yield RequestLog(trio.current_time)
        return
    journal = Journal(data_dir)
    requests = RequestLog(trio.current_time, on_change=journal.note)
    requests.restore((record.row, record.steps) for record in read_journal(data_dir))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.run)
            yield requests
            nursery.cancel_scope.cancel()
    finally:
        journal.flush()  # (not earlier: other tasks may still note their ends while cancelled)


class Journal:
    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / JOURNAL_FILE
        self._old_path = data_dir / OLD_FILE
        self._queue: deque[Record] = deque()
        self._num_dropped = 0
        self._queued = trio.Event()
        self._failure = ""

    def note(self, row: RequestRow, steps: Sequence[TraceStep]) -> None:
        """Queue a record. Never waits."""
        if len(self._queue) >= MAX_QUEUED:
            self._num_dropped += 1
            return
        self._queue.append(Record(row, tuple(steps)))
        self._queued.set()

    async def run(self) -> None:
        """Writes queued records until cancelled; ``flush`` then writes the rest."""
        while True:
            await self._queued.wait()
            await trio.sleep(GATHER_S)
            self._queued = trio.Event()
            await run_in_thread(self.flush)

    def flush(self) -> None:
        """Write queued records. One thread at a time."""
        records = [self._queue.popleft() for _ in range(len(self._queue))]
        num_dropped, self._num_dropped = self._num_dropped, 0
        if num_dropped:
            log.warning("journal_fell_behind", num_lost=num_dropped)
        if not records:
            return
        try:
            self._append(b"".join(map(line_of, records)))
        except OSError as exc:
            reason = exc.strerror or str(exc)
            if reason != self._failure:  # (once, and not for each request)
                log.warning("journal_not_written", file=str(self._path), reason=reason)
            self._failure = reason
        else:
            self._failure = ""

    def _append(self, data: bytes) -> None:
        """Raises OSError."""
        descriptor = self._open()
        try:
            if os.fstat(descriptor).st_size + len(data) > MAX_FILE_BYTES:
                os.close(descriptor)
                descriptor = -1
                self._compact()
                descriptor = self._open()
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _compact(self) -> None:
        """Raises OSError."""
        kept = _Kept(record for path in (self._old_path, self._path) for record in _read(path))
        lines = {row: line_of(record) for row, record in kept.records.items()}
        size = sum(map(len, lines.values()))
        while size > MAX_FILE_BYTES:
            size -= len(lines.pop(kept.drop()))
        try:
            write_atomically(self._old_path, b"".join(lines.values()))
        except LocalError as exc:
            raise OSError(str(exc)) from exc
        self._path.unlink(missing_ok=True)  # (a node that is killed before this finds records twice)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def read_journal(data_dir: Path) -> list[Record]:
    """The newest MAX_REQUESTS requests, the newest last; unfinished ones are marked as interrupted. Damaged records are
    logged and removed from the file; a file without a whole record is set aside."""
    kept = _Kept(record for name in (OLD_FILE, JOURNAL_FILE) for record in _read(data_dir / name))
    return [_ended(record) for record in kept.records.values()]


class _Kept:
    """The newest MAX_REQUESTS requests, each once."""

    def __init__(self, records: Iterable[Record]) -> None:
        """records: the oldest first; no more of them than are kept are in memory."""
        self.records: dict[bytes, Record] = {}
        """By the request's id, the newest last. Read-only."""
        self._rows = ClientRows()
        for record in records:
            row = bytes.fromhex(record.row.id)
            if record.row.status == "running" and self.records.pop(row, None) is not None:
                self._rows.remove(row)  # (it enters again: its client came back after a restart)
            if row not in self.records:
                self._rows.add(row, record.row.client)
            self.records[row] = record
            if len(self.records) > MAX_REQUESTS:
                self.drop()

    def drop(self) -> bytes:
        """Removes the request that goes first, and returns its id. Mutates."""
        row = self._rows.surplus()
        self._rows.remove(row)
        del self.records[row]
        return row


def _ended(record: Record) -> Record:
    if record.row.status != "running":
        return record
    row = msgspec.structs.replace(record.row, status="interrupted")
    return Record(row, (*record.steps, INTERRUPTED))


def _read(path: Path) -> Iterator[Record]:
    """The records of a file, one at a time: a node that runs for months reads whole files now and then, and the memory
    of a peak stays with the process."""
    num_whole = num_lost = 0
    try:
        for line in _lines(path):
            body = _body(line)
            num_whole, num_lost = num_whole + (body is not None), num_lost + (body is None)
            if body is not None and (record := _record(body)) is not None:
                yield record
    except FileNotFoundError:
        return
    except OSError as exc:
        set_aside(path, exc, _EFFECT)
        return
    if num_lost and not num_whole:
        set_aside(path, ValueError("it was changed or cut"), _EFFECT)
    elif num_lost:
        _rewrite(path, num_lost)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines that are not empty, of the last 2 * MAX_FILE_BYTES. Raises OSError."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 2 * MAX_FILE_BYTES))
        yield from filter(None, (line.rstrip(b"\n") for line in file))


def _rewrite(path: Path, num_lost: int) -> None:
    reason = ""
    try:
        whole = [line for line in _lines(path) if _body(line) is not None]
        write_atomically(path, b"".join(b"\n" + line + b"\n" for line in whole))
    except (LocalError, OSError) as exc:
        reason = str(exc)  # (the file is unchanged, and is read the same way next time)
    log.warning("journal_damaged", file=str(path), num_lost=num_lost, reason=reason or "it was changed or cut")


def line_of(record: Record) -> bytes:
    return sealed_line(msgspec.json.encode(_without_words_of_others(record)))


def sealed_line(body: bytes) -> bytes:
    return b"\n" + seal_of(body).hex().encode() + b" " + body + b"\n"


def _body(line: bytes) -> bytes | None:
    seal, _, body = line.partition(b" ")
    return body if body and seal == seal_of(body).hex().encode() else None


def _record(body: bytes) -> Record | None:
    """None: another version of this program wrote it."""
    try:
        record = msgspec.json.decode(body, type=Record)
        bytes.fromhex(record.row.id)
    except ValueError:
        return None
    return record


def _without_words_of_others(record: Record) -> Record:
    steps = tuple(
        step if step.name in _OWN_WORDS else msgspec.structs.replace(step, detail="") for step in record.steps
    )
    row = record.row
    is_relayed = any(step.name == "relayed" for step in steps)
    return Record(
        msgspec.structs.replace(
            row, code=row.code if row.code in _REASONS else "other", reason="" if is_relayed else row.reason
        ),
        steps,
    )
