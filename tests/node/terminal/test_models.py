"""How downloads are shown: in lines, in a node's log, as a bar."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress
from structlog.testing import capture_logs

from mycelia.node.models.catalogue import load_catalogue
from mycelia.node.terminal import models
from mycelia.node.terminal.models import BarWatch, LineWatch, LogWatch, show_catalogue, watching


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_lines_come_every_ten_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    monkeypatch.setattr(models, "time", clock)
    with watching() as watch:
        assert isinstance(watch, LineWatch) and not isinstance(watch, LogWatch)
        watch.say("m: 3.0 GB; to ...")
        for done in range(1_000_000_000, 3_000_000_001, 100_000_000):
            clock.now += 1.0
            watch.show(done, 3_000_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["m: 3.0 GB; to ...", "1.9 GB of 3.0 GB, 90.0 MB/s", "2.9 GB of 3.0 GB, 95.0 MB/s"]


def test_a_node_logs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(models, "time", clock)
    with capture_logs() as logs, watching(in_log=True) as watch:
        watch.say("it is large")
        clock.now += 11.0
        watch.show(2_000_000, 4_000_000)
    assert [(entry["event"], entry.get("says"), entry.get("done")) for entry in logs] == [
        ("fetching_model", "it is large", None),
        ("fetching_model", None, "2.0 MB"),
    ]


def test_a_bar_on_a_terminal() -> None:
    written = io.StringIO()
    with Progress(
        console=Console(file=written, force_terminal=True, width=80, highlight=False), auto_refresh=False
    ) as bar:
        watch = BarWatch(bar)
        watch.say("control\x1b[2J characters")
        watch.show(10, 40)
        watch.show(20, 40)
        (task,) = bar.tasks
        assert (task.completed, task.total) == (20, 40)
    assert "control[2J characters" in written.getvalue()


@pytest.mark.parametrize(("width", "is_told"), [(80, False), (140, True)])
def test_the_catalogue_fits_the_terminal(width: int, is_told: bool) -> None:
    console = Console(file=io.StringIO(), width=width)
    show_catalogue(console, load_catalogue())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert ("to try things out" in "\n".join(lines)) is is_told
    assert sum("Apache-2.0" in line for line in lines) == len(load_catalogue())
