"""The table of ``mycelia usage``."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mycelia.node.terminal.tables import printable
from mycelia.node.views.history import UsageRow

_COLUMNS = ("requests", "failed", "refused", "prompt_tokens", "cached_tokens", "completion_tokens")
_HEADS = ("reqs", "failed", "refused", "prompt\ntokens", "\ncached", "answer\ntokens")


def show_usage(console: Console, rows: Sequence[UsageRow]) -> None:
    if not rows:
        console.print("nothing was used in these days")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("day", no_wrap=True)
    for name in ("key", "model"):
        table.add_column(name, overflow="fold", min_width=6)
    for head in _HEADS:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        counts = (f"{getattr(row, name):,}" for name in _COLUMNS)
        table.add_row(row.day, printable(row.key), printable(row.model) or "-", *counts)
    table.add_section()
    sums = (f"{sum(getattr(row, name) for row in rows):,}" for name in _COLUMNS)
    table.add_row("sum", "", "", *sums)
    console.print(table)
