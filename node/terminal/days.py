"""The table of ``mycelia stats --since``: what the node gave and received."""

from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mycelia.node.terminal.state import size
from mycelia.node.views.history import DayRow


def show_days(console: Console, rows: Sequence[DayRow]) -> None:
    if not rows:
        console.print("nothing was given or received in this time")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_footer=len(rows) > 1)
    table.add_column("day", footer="all", no_wrap=True)
    for name, values in _COLUMNS.items():
        sums = DayRow("", *(sum(getattr(row, field) for row in rows) for field in DayRow.__struct_fields__[1:]))
        table.add_column(name, footer=values(sums), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.day, *(values(row) for values in _COLUMNS.values()))
    console.print(table)


_COLUMNS: dict[str, Callable[[DayRow], str]] = {
    "given: answers": lambda row: str(row.given_requests),
    "tokens": lambda row: str(row.given_tokens),
    "minutes": lambda row: f"{row.given_s / 60:.0f}",
    "received: answers": lambda row: str(row.received_requests),
    "tokens ": lambda row: str(row.received_tokens),
    "out": lambda row: size(row.sent_bytes),
    "in": lambda row: size(row.received_bytes),
}
