"""What a node gave to others and received from them, a row for each day of the local clock.

Today's row is in memory; the rows of the last MAX_DAYS days are in one file, written at most SAVE_EVERY_S after a
change. It has sums alone: no prompts, no clients.
"""

import datetime as dt
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import structlog
import trio

from mycelia.node.storage.sealed import SealedFile
from mycelia.node.views.history import DayRow
from mycelia.proto.wire.errors import LocalError

log = structlog.get_logger()

MAX_DAYS = 400
SAVE_EVERY_S = 60.0
DAYS_FILE = SealedFile("days.msgpack", list[DayRow], "what was given and received before is not shown")

run_in_thread = trio.to_thread.run_sync


class Days:
    """One caller at a time: no method but ``run`` waits. ``sums`` must be set before the first note."""

    def __init__(self, data_dir: Path | None, wall: Callable[[], float] = time.time) -> None:
        """data_dir: None: nothing is kept on disk. The caller must hold the directory's lock. wall: Unix seconds."""
        self._data_dir = data_dir
        self._wall = wall
        rows = (DAYS_FILE.load(data_dir) or []) if data_dir else []
        self._rows = {row.day: row for row in sorted(rows, key=lambda row: row.day)[-MAX_DAYS:]}
        self.sums: Callable[[], DayRow] = lambda: DayRow("")
        """Returns the sums since the start of the node."""
        self._noted = DayRow("")
        self._failure = ""

    def since(self, num_days: int) -> list[DayRow]:
        """The rows of the last days, today among them, the oldest first."""
        self.note()
        return _since(self._rows.values(), self._wall(), num_days)

    def month_bytes(self) -> int:
        """The traffic of this calendar month, both ways."""
        self.note()
        month = self._day()[:7]
        return sum(row.sent_bytes + row.received_bytes for row in self._rows.values() if row.day.startswith(month))

    def note(self) -> bool:
        """Add what has come since the last note to today's row. Returns whether there was anything. Mutates."""
        sums, noted = self.sums(), self._noted
        self._noted = sums
        added = {name: getattr(sums, name) - getattr(noted, name) for name in _SUMS}
        if not any(added.values()):
            return False
        today = self._day()
        if today not in self._rows:
            if self._rows:
                log.info("day_ended", **_told(list(self._rows.values())[-1]))
            self._rows[today] = DayRow(today)
            for day in sorted(self._rows)[:-MAX_DAYS]:
                del self._rows[day]
        row = self._rows[today]
        self._rows[today] = msgspec.structs.replace(row, **{name: getattr(row, name) + added[name] for name in _SUMS})
        return True

    async def run(self) -> None:
        """Notes and writes until cancelled; then call ``save``."""
        while True:
            await trio.sleep(SAVE_EVERY_S)
            if self.note():
                await run_in_thread(self._write, list(self._rows.values()))

    def save(self) -> None:
        self.note()
        self._write(list(self._rows.values()))

    def _write(self, rows: list[DayRow]) -> None:
        if self._data_dir is None or not rows:
            return
        try:
            DAYS_FILE.save(self._data_dir, rows)
            self._failure = ""
        except LocalError as exc:
            if str(exc) != self._failure:  # (once, and not each time)
                log.warning("days_not_saved", reason=str(exc))
            self._failure = str(exc)

    def _day(self) -> str:
        return _day(self._wall())


@asynccontextmanager
async def open_days(data_dir: Path) -> AsyncIterator[Days]:
    """The sums of a node, written from time to time and at the end."""
    days = Days(data_dir)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(days.run)
            yield days
            nursery.cancel_scope.cancel()
    finally:
        days.save()


def read_days(data_dir: Path, num_days: int) -> list[DayRow]:
    """The rows of the last days that are on disk, the oldest first, for commands."""
    return _since(sorted(DAYS_FILE.peek(data_dir) or [], key=lambda row: row.day), time.time(), num_days)


def _since(rows: Iterable[DayRow], now: float, num_days: int) -> list[DayRow]:
    first = _day(now, num_days - 1)
    return [row for row in rows if row.day >= first]


def _day(now: float, days_ago: int = 0) -> str:
    return (dt.datetime.fromtimestamp(now).astimezone().date() - dt.timedelta(days=days_ago)).isoformat()


def _told(row: DayRow) -> dict[str, object]:
    """The daily line of the log."""
    return {
        "day": row.day,
        "given": f"{row.given_requests} answers, {row.given_tokens} tokens, {row.given_s / 60:.0f} min",
        "received": f"{row.received_requests} answers, {row.received_tokens} tokens",
        "traffic": f"{row.sent_bytes / 1e6:.1f} MB out, {row.received_bytes / 1e6:.1f} MB in",
    }


_SUMS = [name for name in DayRow.__struct_fields__ if name != "day"]
