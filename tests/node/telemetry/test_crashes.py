"""Reports of crashes, and the log that a node keeps."""

import stat
from pathlib import Path

import pytest
import structlog
import trio

from mycelia.node import log as log_module
from mycelia.node.telemetry.crashes import LOG_FILE, MAX_REPORTS, REPORTS, last_lines, reporting, reports, write_report
from mycelia.proto.wire.errors import LocalError


@pytest.fixture(autouse=True)
def configured() -> None:
    log_module.configure()
    log_module.recent.clear()


def crash(data_dir: Path) -> None:
    with reporting(data_dir):
        structlog.get_logger().info("ready", peer="12D3")
        1 / 0  # noqa: B018


def test_an_unexpected_error_leaves_a_report_and_says_where(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="the node crashed: ZeroDivisionError: division by zero; a report is") as told:
        crash(tmp_path)
    (report,) = reports(tmp_path / REPORTS)
    assert str(report) in str(told.value) and stat.S_IMODE(report.stat().st_mode) == 0o600
    text = report.read_text()
    assert "ZeroDivisionError" in text and "1 / 0" in text and "peer=12D3" in text and "version " in text
    assert "ready" in (tmp_path / LOG_FILE).read_text() and stat.S_IMODE((tmp_path / LOG_FILE).stat().st_mode) == 0o600
    with reporting(tmp_path):
        pass
    assert len(reports(tmp_path / REPORTS)) == 1, "the end was clean"


@pytest.mark.parametrize("error", [LocalError("wrong"), OSError("full"), KeyboardInterrupt()])
def test_expected_errors_leave_none(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), reporting(tmp_path):
        raise error
    assert reports(tmp_path / REPORTS) == []


def test_the_next_start_reports_a_process_that_was_killed(tmp_path: Path) -> None:
    killed = reporting(tmp_path)
    killed.__enter__()
    structlog.get_logger().info("last_words")
    with reporting(tmp_path):
        pass
    killed.__exit__(None, None, None)
    (report,) = reports(tmp_path / REPORTS)
    assert "killed" in report.name and "last_words" in report.read_text()


def test_reports_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(MAX_REPORTS + 3):
        monkeypatch.setattr("time.localtime", lambda _=0, number=number: (2026, 1, 1, 0, 0, number, 0, 1, 0))
        write_report(tmp_path, "engine", "it died", [f"number {number}"])
    assert len(reports(tmp_path)) == MAX_REPORTS and "number 3" in reports(tmp_path)[0].read_text()


async def test_a_cancelled_run_is_no_crash(tmp_path: Path) -> None:
    with trio.CancelScope() as scope, reporting(tmp_path):
        scope.cancel()
        await trio.sleep_forever()
    assert reports(tmp_path / REPORTS) == []


def test_the_log_file_rotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "MAX_FILE_BYTES", 10_000)
    with log_module.kept(tmp_path / LOG_FILE):
        for number in range(500):
            structlog.get_logger().info("request_answered", number=number, detail="x" * 80)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 1 + log_module.MAX_OLD_FILES and max(sizes) <= 10_000
    lines = last_lines(tmp_path, 100)
    assert len(lines) == 100 and "number=499" in lines[-1] and "number=400" in lines[0]
