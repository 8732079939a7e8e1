"""The metering of API keys: what each used of each model, a table for each day (UTC).

Today's table is in memory, and a file in ``usage/`` of the data directory for each day has the others. Today's file is
written at most SAVE_EVERY_S after a change, so a killed node loses no more. Bounds: a table has a row for each of
MAX_ROWS pairs of key and model, and one more for each key, which gathers its further models; files are kept for
MAX_DAYS. The tables have no prompts, no answers and no single requests.
"""

import datetime as dt
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from mycelia.node.serve.api_keys import LOCAL, ApiKey
from mycelia.node.storage.sealed import SealedFile
from mycelia.node.views.history import UsageRow
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Answered, Begun, EntryFrame, Failed, Route, Text

log = structlog.get_logger()

FOLDER = "usage"
MAX_DAYS = 92
MAX_UNSAVED_DAYS = 3
"""Tables that wait for a disk that cannot be written."""
MAX_ROWS = 1_024
OTHER = "(others)"
"""Stands for a key's models that have no row of their own."""
SAVE_EVERY_S = 20.0
_SUFFIX = ".msgpack"
_EFFECT = "the usage of that day is lost, and limits of tokens begin anew"

run_in_thread = trio.to_thread.run_sync


@dataclass
class Counts:
    """Sums of a key and a model."""

    requests: int = 0
    """Those that were not refused."""
    failed: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Use:
    """What one request used."""

    model: str
    is_failed: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    routed_tokens: int | None = None
    """The prompt's tokens when a node was chosen; None: none was, so that the model may not exist."""
    outcome: str = ""
    """answered, or the code of the failure; empty: given up by the client."""

    def note(self, frame: EntryFrame) -> None:
        """Take a frame of the answer. Of an answer that is given up, what had come by then counts. Mutates."""
        match frame:
            case Route():
                self.routed_tokens = frame.prompt_tokens
            case Begun():
                self.prompt_tokens = self.routed_tokens or 0
                self.cached_tokens = min(frame.cached_tokens, self.prompt_tokens)
            case Text():
                self.completion_tokens += len(frame.tokens) // 4
            case Answered():
                usage = frame.usage
                self.prompt_tokens, self.cached_tokens = usage.prompt_tokens, usage.cached_tokens
                self.completion_tokens = usage.completion_tokens
                self.outcome = "answered"
            case Failed():
                self.is_failed = True
                self.outcome = frame.code
            case _:
                pass


Table = dict[tuple[str, str], Counts]
"""(Key's name, model) -> sums."""


class UsageMeter:
    """One caller at a time: no method but ``run`` and ``since`` waits."""

    def __init__(
        self, data_dir: Path | None = None, keys: Iterable[ApiKey] = (), wall: Callable[[], float] = time.time
    ) -> None:
        """data_dir: None: nothing is kept on disk. The caller must hold the directory's lock. wall: Unix seconds."""
        self._folder = data_dir / FOLDER if data_dir else None
        self._names: dict[bytes, str] = {}
        self.set_keys(keys)
        self._wall = wall
        self._tables: dict[str, Table] = {}
        """Day -> its table: today's, and earlier ones that are not written yet."""
        self._changed: set[str] = set()
        self._failure = ""
        self.totals: Table = {}
        """The sums since the start."""

    def set_keys(self, keys: Iterable[ApiKey]) -> None:
        """Other keys from now on. Requests of removed ones that still run count as those of others. Mutates."""
        self._names = {key.client: key.name for key in keys} | {b"": LOCAL}

    # --- writing ----------------------------------------------------------------------------------------------------

    def add(self, client: bytes, use: Use) -> None:
        """A request of ``client`` has ended. Mutates."""
        name = self._names.get(client, OTHER)
        for counts in self._counts(name, use.model):
            counts.requests += 1
            counts.failed += use.is_failed
            counts.prompt_tokens += use.prompt_tokens
            counts.cached_tokens += use.cached_tokens
            counts.completion_tokens += use.completion_tokens

    def refused(self, name: str) -> None:
        """A request of this key was refused for the key's limits. Mutates."""
        for counts in self._counts(name, ""):
            counts.refused += 1

    def counting(
        self,
        opened: AbstractAsyncContextManager[AsyncIterator[EntryFrame]],
        client: bytes,
        model: str,
        on_end: Callable[[str], None] = lambda outcome: None,
    ) -> AbstractAsyncContextManager[AsyncIterator[EntryFrame]]:
        """``opened``, an answer, whose usage is added at its end. on_end: called with ``Use.outcome``."""

        def end(use: Use) -> None:
            if use.routed_tokens is None:
                use.model = ""  # (clients may name anything)
            self.add(client, use)
            on_end(use.outcome)

        return _Metered(opened, Use(model), end)

    def _counts(self, name: str, model: str) -> tuple[Counts, Counts]:
        today = self._today()
        self._changed.add(self._day())
        return _row(today, name, model), _row(self.totals, name, model)

    # --- reading ----------------------------------------------------------------------------------------------------

    def tokens_today(self, name: str) -> int:
        """The tokens of a key's prompts and answers of this day."""
        counts = (counts for (key, _), counts in self._today().items() if key == name)
        return sum(one.prompt_tokens + one.completion_tokens for one in counts)

    async def since(self, num_days: int) -> list[UsageRow]:
        """The rows of the last days, today among them, the oldest first."""
        first = self._day(num_days - 1)
        kept = await run_in_thread(read_usage, self._folder, first) if self._folder else []
        own = {day: _rows(day, table) for day, table in self._tables.items() if day >= first}
        kept = [row for row in kept if row.day not in own]
        return sorted([*kept, *(row for rows in own.values() for row in rows)], key=lambda row: row.day)

    def _day(self, days_ago: int = 0) -> str:
        return dt.datetime.fromtimestamp(self._wall() - days_ago * 86_400, dt.UTC).date().isoformat()

    def _today(self) -> Table:
        day = self._day()
        if day not in self._tables:
            rows = (_file(day).load(self._folder) or []) if self._folder else []
            kept = sorted(self._changed & self._tables.keys())[-MAX_UNSAVED_DAYS:]
            self._tables = {one: self._tables[one] for one in kept}
            self._changed.intersection_update(kept)
            self._tables[day] = {(row.key, row.model): _counts_of(row) for row in rows[: 2 * MAX_ROWS]}
        return self._tables[day]

    # --- the files --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Writes what has changed, until cancelled; then call ``save``."""
        while True:
            await trio.sleep(SAVE_EVERY_S)
            if days := self._to_save():
                if await run_in_thread(self._write, days):
                    continue
                self._changed |= self._tables.keys() & days.keys()  # (once more, next time)

    def save(self) -> None:
        """Write what has changed."""
        self._write(self._to_save())

    def _to_save(self) -> Mapping[str, list[UsageRow]]:
        days = {day: _rows(day, self._tables[day]) for day in self._changed} if self._folder else {}
        self._changed.clear()
        return days

    def _write(self, days: Mapping[str, list[UsageRow]]) -> bool:
        """Whether the files are written. In a thread, so it touches nothing but them."""
        if self._folder is None or not days:
            return True
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for day, rows in days.items():
                _file(day).save(self._folder, rows)
            _remove_old(self._folder, self._day(MAX_DAYS - 1))
        except (OSError, LocalError) as exc:
            if str(exc) != self._failure:  # (once, and not each time)
                log.warning("usage_not_saved", reason=str(exc))
            self._failure = str(exc)
            return False
        self._failure = ""
        return True


@asynccontextmanager
async def open_usage(data_dir: Path, keys: Iterable[ApiKey]) -> AsyncIterator[UsageMeter]:
    """The meter of a node, which is written from time to time and at the end."""
    meter = UsageMeter(data_dir, keys)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(meter.run)
            yield meter
            nursery.cancel_scope.cancel()
    finally:
        meter.save()  # (not earlier: requests may still end while they are cancelled)


def read_usage(folder: Path, first_day: str) -> list[UsageRow]:
    """The rows of all files from ``first_day`` on. Files that cannot be read have none."""
    days = sorted(path.stem for path in folder.glob(f"????-??-??{_SUFFIX}") if path.stem >= first_day)[-MAX_DAYS:]
    return [row for day in days for row in _file(day).peek(folder) or []]


class _Metered(AbstractAsyncContextManager[AsyncIterator[EntryFrame]]):
    """See ``UsageMeter.counting``."""

    def __init__(
        self,
        opened: AbstractAsyncContextManager[AsyncIterator[EntryFrame]],
        use: Use,
        end: Callable[[Use], None],
    ) -> None:
        self._opened = opened
        self._use = use
        self._end = end

    async def __aenter__(self) -> AsyncIterator[EntryFrame]:
        try:
            return _MeteredFrames(await self._opened.__aenter__(), self._use)
        except BaseException:
            self._end(self._use)
            raise

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        try:
            return await self._opened.__aexit__(*exc_info)
        finally:
            self._end(self._use)


class _MeteredFrames:
    """The frames of an answer, each of which ``use`` gets to know."""

    def __init__(self, frames: AsyncIterator[EntryFrame], use: Use) -> None:
        self._frames = frames
        self._use = use

    def __aiter__(self) -> "_MeteredFrames":
        return self

    async def __anext__(self) -> EntryFrame:
        frame = await anext(self._frames)
        self._use.note(frame)
        return frame


def _file(day: str) -> SealedFile[list[UsageRow]]:
    return SealedFile(f"{day}{_SUFFIX}", list[UsageRow], _EFFECT)


def _remove_old(folder: Path, first_day: str) -> None:
    """Raises OSError."""
    for path in folder.glob("????-??-??.*"):
        if path.name[: len(first_day)] < first_day:
            path.unlink(missing_ok=True)


def _row(table: Table, name: str, model: str) -> Counts:
    if (name, model) not in table and len(table) >= MAX_ROWS:
        model = OTHER
    return table.setdefault((name, model), Counts())


def _rows(day: str, table: Table) -> list[UsageRow]:
    return [UsageRow(day, name, model, **vars(counts)) for (name, model), counts in sorted(table.items())]


def _counts_of(row: UsageRow) -> Counts:
    names = Counts.__dataclass_fields__
    return Counts(**{name: value for name, value in msgspec.structs.asdict(row).items() if name in names})
