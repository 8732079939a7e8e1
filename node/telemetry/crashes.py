"""Reports of crashes: a text file for each, in a folder of the data directory, that a user can read and send.

A report has what crashed and why, the versions, and the last lines of the log. A fault of native code in the node's own
process, such as a segmentation fault, leaves its stack in a file; a killed process leaves that file empty, and a clean
end removes it. The next start makes a report of it. At most MAX_REPORTS are kept.
"""

import faulthandler
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog
import trio

from mycelia.node import log as log_module
from mycelia.node.errors import first_error, one_line
from mycelia.node.version import VERSION
from mycelia.proto.wire.errors import LocalError, MyceliaError

log = structlog.get_logger()

REPORTS, LOG_FILE = "crashes", "node.log"
MAX_REPORTS = 10
MAX_LINES = 200
"""Lines of each part of a report: a traceback, an engine's output, the log."""
_NATIVE = "native.txt"
_ABORTED = "the node's process was aborted: by a fault in native code, or by the service manager because it was stuck"
_KILLED = "something ended the node's process: the system when memory was short, a user, or the end of the machine"


def write_report(
    folder: Path, part: str, reason: str, details: Sequence[str] = (), logged: Sequence[str] | None = None
) -> Path | None:
    """Writes a report. part: what crashed, such as "engine". details: further lines. logged: the last lines of the log;
    None: those of this process. Returns the file; None: it cannot be written."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.localtime(now))
    lines = [
        f"Mycelia crash report: {part}",
        f"time      {time.strftime('%Y-%m-%d %H:%M:%S %z', time.localtime(now))}",
        f"version   {VERSION}, Python {platform.python_version()}, {platform.platform()}",
        f"reason    {one_line(reason)}",
        "",
        *details[-MAX_LINES:],
        "",
        "Last lines of the log:",
        *(list(log_module.recent) if logged is None else logged)[-MAX_LINES:],
    ]
    path = folder / f"{stamp}-{part}.txt"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text("\n".join(lines) + "\n", "utf-8", "backslashreplace")
        for old in reports(folder)[:-MAX_REPORTS]:
            old.unlink(missing_ok=True)
    except OSError as exc:
        log.warning("crash_report_not_written", reason=exc.strerror or str(exc))
        return None
    return path


def reports(folder: Path) -> list[Path]:
    """The reports, the oldest first."""
    return sorted(path for path in folder.glob("????-??-??T*.txt"))


def last_lines(data_dir: Path, count: int = MAX_LINES) -> list[str]:
    """The last lines of the node's log file. Raises OSError when it cannot be read."""
    lines: list[str] = []
    for one in (data_dir / f"{LOG_FILE}{end}" for end in ("", ".1", ".2")):
        if len(lines) < count and one.is_file():
            lines = [*one.read_text("utf-8", "replace").splitlines(), *lines][-count:]
    return lines


@contextmanager
def reporting(data_dir: Path) -> Iterator[None]:
    """Context of a node's run: keeps its log in the data directory, and writes a report if it crashes, whose place the
    error then says. The caller must hold the directory's lock."""
    folder = data_dir / REPORTS
    with log_module.kept(data_dir / LOG_FILE), _native_faults(folder):
        try:
            yield
        except BaseException as exc:
            cause = first_error(exc)
            if isinstance(cause, MyceliaError | OSError | KeyboardInterrupt | SystemExit | trio.Cancelled):
                raise
            what = f"{type(cause).__name__}: {cause}"
            details = "".join(traceback.format_exception(cause)).splitlines()
            path = write_report(folder, "node", what, details)
            log.error("node_crashed", error=what, report=str(path))
            where = f"a report is in {path}, and 'mycelia diagnostics' packs it" if path else "no report can be written"
            raise LocalError(f"the node crashed: {what}; {where}") from exc


@contextmanager
def _native_faults(folder: Path) -> Iterator[None]:
    path = folder / _NATIVE
    with suppress(OSError):
        said = path.read_text("utf-8", "replace").splitlines()
        part, why = ("native", _ABORTED) if said else ("killed", _KILLED)
        report = write_report(folder, part, why, said, last_lines(folder.parent))
        log.warning("last_run_ended_uncleanly", reason=why, report=str(report))
    was_enabled = faulthandler.is_enabled()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        file = path.open("w")
    except OSError:  # (a full disk: the node then says so itself)
        yield
        return
    try:
        faulthandler.enable(file)
        yield
    finally:
        faulthandler.disable()
        if was_enabled and sys.stderr is not None:
            faulthandler.enable()
        file.close()
        path.unlink(missing_ok=True)
