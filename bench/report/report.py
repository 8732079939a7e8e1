"""The output of every benchmark: progress while it runs, then a table or one JSON object."""

import os
import platform
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mycelia.node.version import VERSION
from mycelia.proto.wire.errors import LocalError


@dataclass(frozen=True)
class Row:
    """One measured quantity. ``value`` is the median of ``runs`` runs."""

    name: str
    value: float
    unit: str
    min: float
    max: float
    runs: int


@dataclass(frozen=True)
class Report:
    """The stable shape of ``mycelia bench NAME --json``."""

    bench: str
    version: str
    machine: str
    rows: list[Row]


def row_of(name: str, unit: str, values: Sequence[float]) -> Row:
    """The row of several runs. Raises ValueError for none."""
    digits = 4
    return Row(
        name=name,
        value=round(median(values), digits),
        unit=unit,
        min=round(min(values), digits),
        max=round(max(values), digits),
        runs=len(values),
    )


def rows_of(values: Iterable[tuple[str, str, float]]) -> list[Row]:
    """Rows of one run each: (name, unit, value)."""
    return [row_of(name, unit, [value]) for name, unit, value in values]


def chosen(only: Collection[str], names: Sequence[str], kind: str) -> list[str]:
    """The ``names`` in ``only``; all if it is empty. Raises LocalError for an unknown name."""
    unknown = sorted(set(only) - set(names))
    if unknown:
        raise LocalError(f"no {kind} {unknown[0]}; there are {', '.join(names)}")
    return [name for name in names if name in only or not only]


def report_of(bench: str, rows: list[Row]) -> Report:
    return Report(bench, VERSION, machine(), rows)


def machine() -> str:
    """The processor and the number of cores that this process may use, in one line."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass  # (not Linux)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {platform.system()}, Python {platform.python_version()}"


class Progress:
    """Lines on stderr: on a terminal one line, overwritten; otherwise one for each step. As a context manager it
    removes its line at the end."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._is_terminal = sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, what: str) -> None:
        """Call when the next of ``total`` steps begins, or if several run at once, ends."""
        self._done += 1
        self.show(what)

    def show(self, what: str) -> None:
        line = f"[{self._done}/{self._total}] {what}"
        end = "" if self._is_terminal else "\n"
        start = "\r\033[K" if self._is_terminal else ""
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)  # noqa: T201

    def step_of(self, row: str) -> Callable[[str], None]:
        """``step`` with ``row``, the name of the measurement, in front."""
        return lambda what: self.step(f"{row}: {what}")

    def close(self) -> None:
        if self._is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)  # noqa: T201


def show(report: Report, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return
    table = Table(title=f"{report.bench} on {report.machine}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("row", no_wrap=True)
    for name in ("median", "min", "max", "runs"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    for row in report.rows:
        table.add_row(row.name, f"{row.value:g}", f"{row.min:g}", f"{row.max:g}", str(row.runs), row.unit)
    Console(highlight=False).print(table)
