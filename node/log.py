"""structlog, set up once: for a person on a terminal, JSON otherwise. Always on stderr; stdout is for answers."""

import io
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any, TextIO

import structlog

from mycelia.proto.admission.limits import TokenBucket

LINE_RATE, LINE_BURST = 5.0, 600.0
"""Lines per second of one event, and at once. A terminal or a disk takes far more; 5 a second are 100 MB a day."""


def configure(level: int = logging.INFO) -> None:
    """Call once, before the first line is logged. level: the least severe one that is shown, of the logging module."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    renderer: Any = (
        structlog.dev.ConsoleRenderer(exception_formatter=_escaped_traceback)
        if is_terminal
        else structlog.processors.JSONRenderer()
    )
    processors: list[Any] = [
        LineLimit(),
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_terminal else "iso", utc=not is_terminal),
    ]
    processors.append(_escape_controls if is_terminal else structlog.processors.dict_tracebacks)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _LineLogger(sys.stderr),
        cache_logger_on_first_use=True,
    )


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
