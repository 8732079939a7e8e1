"""Log lines: those that peers cause are bounded in rate, and peers' text does not control the terminal."""

import io
import os
import sys
from pathlib import Path

import pytest
import structlog

from mycelia.node.log import LINE_BURST, LINE_RATE, LineLimit, configure


class Terminal(io.StringIO):
    """A file that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_lines_of_one_event_are_bounded_and_what_was_dropped_is_told() -> None:
    now = 0.0
    limit = LineLimit(lambda: now)

    def num_logged(event: str, method: str, count: int) -> int:
        logged = 0
        for _ in range(count):
            try:
                limit(None, method, {"event": event})
                logged += 1
            except structlog.DropEvent:
                pass
        return logged

    assert num_logged("node_joined", "info", 10_000) == LINE_BURST
    assert num_logged("engine_lost", "warning", 3) == 3, "each event has a limit of its own"
    assert num_logged("node_joined", "debug", 10_000) == 10_000
    now = 1.0
    assert limit(None, "info", {"event": "node_joined"})["dropped_lines"] == 10_000 - LINE_BURST
    assert "dropped_lines" not in limit(None, "info", {"event": "node_joined"})
    assert num_logged("node_joined", "info", 100) == LINE_RATE - 2


def test_a_peers_words_steer_no_terminal_also_in_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    configure()
    log = structlog.get_logger()
    try:
        raise ValueError("a peer says \x1b]0;evil\x07 and\r\x9b2J\u202e")
    except ValueError as exc:
        log.exception("attempt_broke", said="\x1b]0;evil\x07", said_by=["\x1b]0;evil\x07"], error=exc)
    shown = terminal.getvalue()
    assert "a peer says" in shown and "Traceback" in shown
    assert not any(char in shown for char in "\x07\x9b\r\u202e") and "\x1b]" not in shown


def test_lines_in_the_journal_are_for_people_and_have_its_levels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "journal").open("w+") as journal:
        found = os.fstat(journal.fileno())
        monkeypatch.setattr(sys, "stderr", journal)
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        configure()
        log = structlog.get_logger()
        log.info("ready", peer="12D3", said="\x1b]0;evil\x07")
        try:
            raise ValueError("a fault")
        except ValueError:
            log.exception("attempt_broke", attempt=2)
        lines = (tmp_path / "journal").read_text().splitlines()
    assert lines[0] == "<6>ready peer=12D3 said=\"'\\\\x1b]0;evil\\\\x07'\""
    assert lines[1] == "<3>attempt_broke attempt=2" and lines[-1] == "<3>ValueError: a fault"
    assert all(line.startswith("<3>") for line in lines[1:])
