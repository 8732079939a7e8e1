"""structlog, set up once. Always on stderr; stdout is for answers.

On a terminal and in systemd's journal the lines are for people, otherwise JSON. A node also keeps lines for people in a
file of its data directory, which rotates.
"""

import io
import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

import structlog

from mycelia.proto.admission.limits import TokenBucket

LINE_RATE, LINE_BURST = 5.0, 600.0
"""Lines per second of one event, and at once. A terminal or a disk takes far more; 5 a second are 100 MB a day."""

MAX_FILE_BYTES, MAX_OLD_FILES = 2**21, 2
"""Size at which a log file is renamed, and how many renamed ones are kept: about 50,000 lines in all."""
MAX_RECENT = 200

recent: deque[str] = deque(maxlen=MAX_RECENT)
"""The last lines of this process, for reports of crashes."""
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Levels of syslog, by which the journal colours and filters lines."""


def configure(level: int = logging.INFO) -> None:
    """Call once, before the first line is logged. level: the least severe one that is shown, of the logging module."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    is_journal = not is_terminal and is_in_journal(os.environ)
    renderer: Any = structlog.processors.JSONRenderer()
    if is_journal:
        renderer = _for_journal
    elif is_terminal:
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=_escaped_traceback)
    processors: list[Any] = [
        LineLimit(),
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _keep,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_terminal else "iso", utc=not is_terminal),
    ]
    if not is_journal:
        processors.append(_escape_controls if is_terminal else structlog.processors.dict_tracebacks)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _LineLogger(sys.stderr),
        cache_logger_on_first_use=True,
    )


def is_in_journal(environment: Mapping[str, str]) -> bool:
    """Whether stderr goes to systemd's journal: the variable names the device and the inode of its socket."""
    if sys.stderr is None:
        return False
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Context in which the lines of this process are also kept in a file, readable by its owner alone."""
    handler = _LogFile(path, maxBytes=MAX_FILE_BYTES, backupCount=MAX_OLD_FILES, encoding="utf-8", delay=True)
    _files.append(handler)
    try:
        yield
    finally:
        _files.remove(handler)
        handler.close()


class _LogFile(RotatingFileHandler):
    """A full disk or a removed folder must not end the node."""

    def _open(self) -> Any:
        return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=_private)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the library's name
        pass


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


_files: list[_LogFile] = []


def _keep(_: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor that keeps each line for people, see ``kept`` and ``recent``."""
    if method == "debug":
        return event
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {_for_people(event)}"
    recent.append(line)
    for handler in _files:
        handler.handle(logging.makeLogRecord({"msg": line}))
    return event


_plain = structlog.dev.ConsoleRenderer(
    colors=False, pad_event_to=0, pad_level=False, exception_formatter=lambda out, exc: _escaped_traceback(out, exc)
)


def _for_people(event: MutableMapping[str, Any]) -> str:
    return str(_plain(None, "", _escape_controls(None, "", dict(event))))


def _for_journal(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    """The journal has its own times and levels, and takes each line of a text for an entry."""
    priority = _PRIORITIES.get(str(event.get("level")), 6)
    shown = {name: value for name, value in event.items() if name not in ("timestamp", "level")}
    return "\n".join(f"<{priority}>{line}" for line in _for_people(shown).split("\n"))


class LineLimit:
    """A processor that drops lines of an event that comes too often: peers and clients cause many events, at any rate.
    The next logged line of that event has the number of dropped lines. Debug lines are not limited."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}
        """By event. Event names are constants of the program, so there are not many."""
        self._num_dropped = Counter[str]()

    def __call__(self, _: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        name, now = str(event.get("event")), self._clock()
        if method == "debug":
            return event
        bucket = self._buckets.setdefault(name, TokenBucket(LINE_RATE, LINE_BURST, now))
        if not bucket.take(now):
            self._num_dropped[name] += 1
            raise structlog.DropEvent
        if num_dropped := self._num_dropped.pop(name, 0):
            event["dropped_lines"] = num_dropped
        return event


class _LineLogger:
    """Writes lines. A closed reader of the log or a full disk must not end the node."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file

    def msg(self, message: str) -> None:
        if self._file is not None:
            with suppress(OSError, ValueError):
                self._file.write(message + "\n")
                self._file.flush()

    debug = info = warning = error = critical = exception = msg


def _escape_controls(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """Escapes text that may come from a peer, so that it cannot control the terminal."""
    return {name: _escaped(value) for name, value in event.items()}


def _escaped(value: Any) -> Any:
    return value if not isinstance(value, str) or value.isprintable() else ascii(value)


def _escaped_traceback(out: TextIO, exc_info: Any) -> None:
    traceback = io.StringIO()
    structlog.dev.plain_traceback(traceback, exc_info)
    lines = traceback.getvalue().split("\n")
    out.write("\n".join(line if line.isprintable() else ascii(line)[1:-1] for line in lines))
