"""structlog, set up once: for a person on a terminal, JSON otherwise. Always on stderr; stdout is for answers."""

import logging
import sys
from contextlib import suppress
from typing import Any, TextIO

import structlog


def configure(level: int = logging.INFO) -> None:
    """Call once, before the first line is logged. ``level``: of the logging module, the least that is shown."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if is_terminal else structlog.processors.JSONRenderer()
    processors: list[Any] = [
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


class _LineLogger:
    """Writes lines. A reader of the log that went away, or a full disk, must not end the node."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file

    def msg(self, message: str) -> None:
        if self._file is not None:
            with suppress(OSError, ValueError):
                self._file.write(message + "\n")
                self._file.flush()

    debug = info = warning = error = critical = exception = msg


def _escape_controls(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """Some values are a peer's words, which must not steer the terminal."""
    return {name: _escaped(value) for name, value in event.items()}


def _escaped(value: Any) -> Any:
    return value if not isinstance(value, str) or value.isprintable() else ascii(value)
