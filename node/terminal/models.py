"""What the commands about models on this machine print, and how downloads are shown."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from mycelia.node.models.card import ModelCard
from mycelia.node.models.catalogue import Catalogue
from mycelia.node.models.held import HeldModel
from mycelia.node.models.sizes import size_text
from mycelia.node.terminal.tables import WIDE, printable

LINE_EVERY_S = 10.0
SHOWN_CONTEXT = 8_192

log = structlog.get_logger()


class LineWatch:
    """Says the progress of a download in lines, every ten seconds."""

    def __init__(self) -> None:
        self._began_s = self._told_s = time.monotonic()
        self._first: int | None = None

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        if now - self._told_s >= LINE_EVERY_S and done < total:
            self._told_s = now
            self.tell(done, total, (done - self._first) / max(now - self._began_s, 1e-3))

    def tell(self, done: int, total: int, rate: float) -> None:
        self.say(f"{size_text(done)} of {size_text(total)}, {size_text(rate)}/s")


class LogWatch(LineWatch):
    """Says it in lines of a node's log."""

    def say(self, line: str) -> None:
        log.info("fetching_model", says=line)

    def tell(self, done: int, total: int, rate: float) -> None:
        log.info("fetching_model", done=size_text(done), of=size_text(total), rate=f"{size_text(rate)}/s")


class BarWatch:
    """Draws a bar on the terminal."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def say(self, line: str) -> None:
        self._bar.console.print(printable(line), soft_wrap=True)

    def show(self, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task("", total=total, completed=done)
        self._bar.update(self._task, completed=done, total=total)


@contextmanager
def watching(in_log: bool = False) -> Iterator[LineWatch | BarWatch]:
    """Who is told about a download: a bar if stderr is a terminal, else lines, in_log: of the node's log."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield LogWatch() if in_log else LineWatch()
        return
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield BarWatch(bar)


def show_held(console: Console, models: Sequence[HeldModel]) -> None:
    if not models:
        console.print("no models on this machine; 'mycelia model catalogue' lists some to fetch")
        return
    table = Table()
    for name in ("model", "served as"):
        table.add_column(name, overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("from", no_wrap=True)
    for one in models:
        served = printable(one.served_as) if one.is_whole else "(cut off: pull it again)"
        table.add_row(printable(one.name), served, size_text(one.bytes), one.source)
    console.print(table)


def show_catalogue(console: Console, catalogue: Catalogue) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("parameters", overflow="fold")
    for name in ("size", "memory*", "context"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    is_wide = console.width >= WIDE
    if is_wide:
        table.add_column("good for", overflow="fold")
    for name, entry in catalogue.items():
        memory = size_text(entry.memory_bytes(min(SHOWN_CONTEXT, entry.context)))
        sizes = (size_text(entry.size_bytes), memory, f"{entry.context:,}")
        about = [printable(entry.about)] if is_wide else []
        table.add_row(name, printable(entry.parameters), *sizes, printable(entry.licence), *about)
    console.print(table)
    console.print(f"* with {SHOWN_CONTEXT:,} tokens of context")


def show_card(console: Console, card: ModelCard) -> None:
    parts = f" in {card.files} files" if card.files > 1 else ""
    templates = {
        "own": "its own",
        "chatml": "none: ChatML is assumed",
        "broken": f"broken, so that it serves /v1/completions only: {card.template_problem}",
    }
    tools = {"template": "yes, by its template", "system": "as a system message describes them"}
    reuse = {
        "prefix": "any common beginning (KV cache)",
        "checkpoints": "from saved states (recurrent or hybrid model)",
    }
    kinds = {
        "text": "writes text (and makes embeddings)",
        "embedding": "makes embeddings: /v1/embeddings",
        "rerank": "ranks documents: /v1/rerank",
    }
    more = f", {size_text(card.cell_bytes)} a token" if card.cell_bytes else ""
    more += ", and the states of its sequences" if card.reuse == "checkpoints" else ""
    rows = {
        "served as": card.served_as,
        "file": f"{card.path}, {size_text(card.bytes)}{parts}",
        "kind": kinds[card.kind],
        "model": f"{card.architecture}, {_count_text(card.parameters)} parameters, {card.layers} layers",
        "quantisation": card.quantisation,
        "context": f"{card.context:,} tokens" if card.context else "unknown",
    }
    if card.kind == "text":
        rows |= {
            "template": templates[card.template],
            "thinking": "yes" if card.thinks else "no",
            "functions": tools[card.tools],
            "sharing": reuse[card.reuse],
        }
    rows["memory"] = (
        f"{size_text(card.memory_bytes)} with {card.tokens:,} tokens of context:"
        f" weights {size_text(card.weight_bytes)}, buffers {size_text(card.buffer_bytes)}{more}"
    )
    for name, text in rows.items():
        console.print(f"{name:<13}{printable(text)}", soft_wrap=True)


def _count_text(parameters: int) -> str:
    return f"{parameters / 1e9:.3g}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"
