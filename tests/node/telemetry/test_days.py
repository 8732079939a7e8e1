"""What was given and received, day by day."""

from pathlib import Path

import pytest
import structlog.testing

from mycelia.node.telemetry.days import DAYS_FILE, MAX_DAYS, Days, read_days
from mycelia.node.views.history import DayRow

DAY_S = 86_400


class Node:
    """Sums that grow, and a clock."""

    def __init__(self, data_dir: Path | None = None) -> None:
        self.now = 20_000.5 * DAY_S
        self.sums = DayRow("")
        self.days = Days(data_dir, lambda: self.now)
        self.days.sums = lambda: self.sums

    def grow(self, given: int, sent: int = 0, received: int = 0) -> None:
        old = self.sums
        self.sums = DayRow(
            "",
            old.given_requests + given,
            sent_bytes=old.sent_bytes + sent,
            received_bytes=old.received_bytes + received,
        )


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")


def test_each_day_has_its_own_sums_and_the_log_tells_those_of_the_last_one(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.grow(3, sent=10, received=5)
    assert node.days.note() and not node.days.note()
    node.now += DAY_S
    node.grow(4, sent=1)
    with structlog.testing.capture_logs() as lines:
        rows = node.days.since(2)
    assert [(row.day, row.given_requests, row.sent_bytes) for row in rows] == [
        ("2024-10-04", 3, 10),
        ("2024-10-05", 4, 1),
    ]
    assert [row.day for row in node.days.since(1)] == ["2024-10-05"]
    assert [(line["event"], line["given"]) for line in lines] == [("day_ended", "3 answers, 0 tokens, 0 min")]
    assert node.days.month_bytes() == 16
    node.now += 27 * DAY_S
    assert node.days.month_bytes() == 0


def test_sums_survive_a_restart_and_their_number_is_bounded(tmp_path: Path) -> None:
    node = Node(tmp_path)
    for _ in range(MAX_DAYS + 5):
        node.now += DAY_S
        node.grow(1)
        node.days.note()
    node.days.save()
    again = Node(tmp_path)
    again.now = node.now
    again.grow(1)
    rows = again.days.since(MAX_DAYS)
    assert len(rows) == MAX_DAYS and rows[-1].given_requests == 2 and rows[0].given_requests == 1
    again.days.save()
    assert len(DAYS_FILE.peek(tmp_path) or []) == MAX_DAYS
    assert read_days(tmp_path, 1) == []  # (by today's clock)


def test_a_full_disk_is_told_once(tmp_path: Path) -> None:
    node = Node(tmp_path / "gone")
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            node.grow(1)
            node.days.save()
    assert [line["event"] for line in lines] == ["days_not_saved"]
