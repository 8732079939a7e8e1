"""The journal: requests are shown after a restart, whatever happened to the file and the disk."""

import os
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
import structlog.testing
import trio
import trio.testing

from mycelia.node.app import Node
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.settings import FakeSettings
from mycelia.node.network.identity import Identity
from mycelia.node.network.network import NetworkSettings
from mycelia.node.telemetry import journal as journal_module
from mycelia.node.telemetry.journal import (
    JOURNAL_FILE,
    MAX_FILE_BYTES,
    MAX_QUEUED,
    OLD_FILE,
    Journal,
    open_request_log,
    read_journal,
)
from mycelia.node.telemetry.requests import MAX_REQUESTS, PEER_BURST, PEER_RATE, RequestLog
from mycelia.node.views.history import RequestRow
from mycelia.proto.wire.messages import Answered, TraceStep
from tests.damage import contents, damaged, fill_disk
from tests.node.members import LONG, Member, an_ask, frames_of, open_members
from tests.node.telemetry.test_telemetry import ANSWERED, request_id
from tests.node.threads import run_here

WALL_S = 1_800_000_000.0


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "run_in_thread", run_here)


def written(folder: Path, entered: Iterable[int], ended: Iterable[int] = ()) -> RequestLog:
    """Requests that entered, some of which ended, as a killed process would leave them."""
    journal = Journal(folder)
    log = RequestLog(clock=lambda: 0.0, wall=lambda: WALL_S, on_change=journal.note)
    for number in entered:
        log.entered(request_id(number), "m", b"")
        journal.flush()
    for number in ended:
        log.answered(request_id(number), ANSWERED)
        journal.flush()
    return log


def read(folder: Path) -> dict[int, str]:
    """Number of the request -> its status."""
    return {int(record.row.id, 16): record.row.status for record in read_journal(folder)}


def whole_lines(folder: Path) -> list[bytes]:
    return [line for line in (folder / JOURNAL_FILE).read_bytes().split(b"\n") if line]


def test_what_ended_is_as_it_was_and_what_had_not_was_interrupted(tmp_path: Path) -> None:
    assert read_journal(tmp_path) == []
    log = written(tmp_path, range(3), [1])
    assert read(tmp_path) == {0: "interrupted", 1: "answered", 2: "interrupted"}
    again = RequestLog(clock=lambda: 50.0, wall=lambda: WALL_S + 100.0)
    again.restore((record.row, record.steps) for record in read_journal(tmp_path))
    assert again.rows()[1] == log.rows()[1] and again.steps(request_id(1)) == log.steps(request_id(1))
    interrupted = [step.name for step in again.steps(request_id(0))]
    assert interrupted == ["entered", "interrupted"]
    assert [row.id for row in again.rows()] == [row.id for row in log.rows()]
    assert again.matching(request_id(2).hex()) == [request_id(2)]
    assert not again.totals.entered, "sums are since the start"


async def test_followers_are_told_of_restored_requests(tmp_path: Path) -> None:
    written(tmp_path, [1])
    async with open_request_log(tmp_path) as log:
        with trio.fail_after(5):
            assert await log.changed(0) >= 1


def test_whoever_was_interrupted_comes_back_with_his_own_id(tmp_path: Path) -> None:
    written(tmp_path, [1, 2], [2])
    journal = Journal(tmp_path)
    log = RequestLog(on_change=journal.note)
    log.restore((record.row, record.steps) for record in read_journal(tmp_path))
    assert log.new_id(request_id(1)) == request_id(1) and log.new_id(request_id(2)) != request_id(2)
    log.entered(request_id(1), "m", b"")
    log.answered(request_id(1), ANSWERED)
    journal.flush()
    assert [step.name for step in log.steps(request_id(1))] == ["entered", "answered"]
    assert [row.status for row in log.rows()] == ["answered", "answered"]
    assert list(read(tmp_path).items()) == [(2, "answered"), (1, "answered")], "the newest last"


def test_a_request_that_is_served_here_again_keeps_its_steps_in_bounds(tmp_path: Path) -> None:
    written(tmp_path, [0], [0])
    log = RequestLog(wall=lambda: WALL_S + 1e12)
    log.restore((record.row, record.steps) for record in read_journal(tmp_path))
    log.served_step(request_id(0), "serving")
    steps = log.steps(request_id(0))
    assert [step.name for step in steps] == ["entered", "answered", "serving"]
    assert all(0 <= step.at_ms < 2**31 for step in steps)


# --- damage ---------------------------------------------------------------------------------------------------------


def test_damage_costs_the_records_that_it_is_in_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed bytes, newlines too; cuts anywhere."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # (there would be thousands of them)
    written(tmp_path, range(2), [0])
    path = tmp_path / JOURNAL_FILE
    whole, lines = path.read_bytes(), whole_lines(tmp_path)
    for data in damaged(whole)[:-1]:
        path.write_bytes(data)
        intact = [line for line in lines if b"\n" + line + b"\n" in data]
        assert len(intact) >= len(lines) - 1 or len(data) < len(whole)
        with structlog.testing.capture_logs() as logs:
            first = read_journal(tmp_path)
        left = whole_lines(tmp_path) if path.exists() else []
        assert set(left) >= set(intact) and set(left) <= set(lines)
        assert len(logs) <= 1 and read_journal(tmp_path) == first
        if set(intact) == set(lines):
            assert read(tmp_path) == {0: "answered", 1: "interrupted"}
        for name in contents(tmp_path):
            (tmp_path / name).unlink()


def test_what_is_not_a_journal_at_all_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL_FILE
    path.write_bytes(b"\xff" * 2_000_000)
    with structlog.testing.capture_logs() as logs:
        assert read_journal(tmp_path) == []
    assert [line["event"] for line in logs] == ["file_set_aside"] and not path.exists()
    written(tmp_path, [1])
    assert read(tmp_path) == {1: "interrupted"}


def test_a_torn_tail_is_told_once_and_costs_nothing_that_comes_after(tmp_path: Path) -> None:
    written(tmp_path, range(3))
    path = tmp_path / JOURNAL_FILE
    path.write_bytes(path.read_bytes()[:-20])
    written(tmp_path, [3])  # (as if the damaged file had not been read in between)
    with structlog.testing.capture_logs() as logs:
        assert read(tmp_path) == {0: "interrupted", 1: "interrupted", 3: "interrupted"}
        read(tmp_path)
    assert [(line["event"], line["num_lost"]) for line in logs] == [("journal_damaged", 1)]


@pytest.mark.parametrize("name", [JOURNAL_FILE, OLD_FILE])
def test_what_cannot_be_read_is_set_aside(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "inside").write_bytes(b"something")
    assert read_journal(tmp_path) == []
    (aside,) = tmp_path.iterdir()
    assert "damaged" in aside.name and (aside / "inside").read_bytes() == b"something"
    written(tmp_path, [1])
    assert read(tmp_path) == {1: "interrupted"}


def test_a_record_of_another_version_is_not_shown_and_not_thrown_away(tmp_path: Path) -> None:
    written(tmp_path, [1])
    path = tmp_path / JOURNAL_FILE
    for body in (b'{"row":{"id":"new"},"steps":[],"more":1}', b"[]", b'{"row":null}'):
        with path.open("ab") as file:
            file.write(journal_module.sealed_line(body))
    row = msgspec.structs.replace(read_journal(tmp_path)[0].row, id="no hexadecimal")
    with path.open("ab") as file:
        file.write(journal_module.line_of(journal_module.Record(row, ())))
    before = path.read_bytes()
    assert read(tmp_path) == {1: "interrupted"} and path.read_bytes() == before


def test_a_full_disk_is_told_once_and_costs_only_what_came_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, [0])
    journal = Journal(tmp_path)
    log = RequestLog(on_change=journal.note)
    with monkeypatch.context() as full, structlog.testing.capture_logs() as logs:
        fill_disk(full, tmp_path)
        for number in range(1, 5):
            log.entered(request_id(number), "m", b"")
            journal.flush()
    assert [(line["event"], line["reason"]) for line in logs if line["log_level"] == "warning"] == [
        ("journal_not_written", "No space left on device")
    ]
    log.answered(request_id(2), ANSWERED)
    journal.flush()
    assert read(tmp_path) == {0: "interrupted", 2: "answered"}


def test_a_disk_that_fills_up_in_the_middle_of_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, [0])
    with monkeypatch.context() as full:
        real_write = os.write

        def half(descriptor: int, data: memoryview) -> int:
            real_write(descriptor, data[: len(data) // 2])
            raise OSError(28, "No space left on device")

        full.setattr(os, "write", half)
        written(tmp_path, [1])
    written(tmp_path, [2])
    assert read(tmp_path) == {0: "interrupted", 2: "interrupted"}


def test_a_damaged_journal_on_a_full_disk_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, range(3))
    path = tmp_path / JOURNAL_FILE
    path.write_bytes(torn := path.read_bytes()[:-20])
    with monkeypatch.context() as full:
        fill_disk(full, tmp_path)
        assert read(tmp_path) == {0: "interrupted", 1: "interrupted"}
    assert contents(tmp_path) == {JOURNAL_FILE: torn}


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_the_journal_is_bounded_and_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_FILE_BYTES", 100_000)
    for start in range(0, 2_000, 100):
        written(tmp_path, range(start, start + 100), range(start, start + 100))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 200_000
    numbers = list(read(tmp_path))
    assert numbers == list(range(2_000 - len(numbers), 2_000)) and 100 < len(numbers) <= MAX_REQUESTS


def test_a_full_journal_is_read_a_record_at_a_time(tmp_path: Path) -> None:
    """A node reads its journal again every hour or so. It took 10 MB for that, and memory of a peak stays
    with the process."""
    written(tmp_path, range(50), range(50))
    path = tmp_path / JOURNAL_FILE
    path.write_bytes(path.read_bytes() * (MAX_FILE_BYTES // path.stat().st_size))
    path.rename(tmp_path / OLD_FILE)
    (tmp_path / JOURNAL_FILE).write_bytes((tmp_path / OLD_FILE).read_bytes())
    tracemalloc.start()
    try:
        assert len(read_journal(tmp_path)) == 50
        assert tracemalloc.get_traced_memory()[1] < MAX_FILE_BYTES / 4
    finally:
        tracemalloc.stop()


def test_requests_of_peers_push_no_others_out_of_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_FILE_BYTES", 30_000)
    now, journal = 0.0, Journal(tmp_path)
    log = RequestLog(clock=lambda: now, wall=lambda: WALL_S, on_change=journal.note)
    for number in range(20):
        log.entered(request_id(number), "m", b"" if number % 2 else b"k" * 16)
        log.answered(request_id(number), ANSWERED)
    for number in range(20, 1_000):
        now += 1.0
        log.entered(request_id(number), "m", number.to_bytes(38, "big"))
        log.failed(request_id(number), "too_long", "")
        journal.flush()
    numbers = list(read(tmp_path))
    assert numbers[:20] == list(range(20)) and numbers[-1] == 999 and (tmp_path / OLD_FILE).exists()


def test_what_peers_ask_is_written_at_a_bounded_rate() -> None:
    now, noted = 0.0, []
    log = RequestLog(clock=lambda: now, on_change=lambda row, steps: noted.append(row))
    with structlog.testing.capture_logs() as logs:
        for number in range(5_000):
            log.entered(request_id(number), "m", number.to_bytes(38, "big"))
            log.failed(request_id(number), "too_long", "")
            now += 0.001
        log.entered(request_id(5_000), "m", b"")
        log.failed(request_id(5_000), "too_long", "")
    assert len(noted) <= 2 * (PEER_BURST + 5 * PEER_RATE + 2) and noted[-1].client == ""
    assert len([line for line in logs if line["event"] == "request_failed"]) == len(noted) / 2
    assert log.totals.entered == {"too_long": 5_001}, "all are counted"


def test_the_usual_size_is_enough_for_all_requests_that_are_shown(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    row = RequestRow("0" * 32, WALL_S, "a-model-with-a-long-name", "1" * 52, served_by="1" * 52, reason="x" * 100)
    steps = [TraceStep(at_ms=1_000, name="prefilling", detail="x" * 40, peer=b"p" * 38)] * 10
    for number in range(2 * MAX_REQUESTS):
        ended = msgspec.structs.replace(row, id=request_id(number).hex(), status="answered")
        journal.note(row, steps[:1])
        journal.note(ended, steps)
        journal.flush()
    assert len(read(tmp_path)) == MAX_REQUESTS


def test_a_file_of_any_size_is_read_in_bounds(tmp_path: Path) -> None:
    with (tmp_path / JOURNAL_FILE).open("wb") as file:
        file.truncate(1_000 * journal_module.MAX_FILE_BYTES)  # (sparse)
    written(tmp_path, [])
    line = journal_module.line_of(journal_module.Record(RequestRow(request_id(7).hex(), WALL_S, "m", ""), ()))
    with (tmp_path / JOURNAL_FILE).open("ab") as file:
        file.write(line)
    assert read(tmp_path) == {7: "interrupted"} and (tmp_path / JOURNAL_FILE).stat().st_size == len(line)


def test_a_disk_that_hangs_costs_bounded_memory(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    log = RequestLog(on_change=journal.note)
    for number in range(MAX_QUEUED + 10):
        log.entered(request_id(number), "m", b"")
    with structlog.testing.capture_logs() as logs:
        journal.flush()
    assert [line["num_lost"] for line in logs] == [10] and len(whole_lines(tmp_path)) == MAX_QUEUED


# --- of a node ------------------------------------------------------------------------------------------------------


async def test_a_node_that_is_killed_shows_its_requests_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, no_threads: None
) -> None:
    async with open_members(2, decode_rate=1.0) as (swarm, _):
        settings = NetworkSettings(identity=Identity(b"again" + bytes(27)))
        async with (
            open_request_log(tmp_path) as requests,
            swarm.open_network(settings) as network,
            trio.open_nursery() as nursery,
        ):
            engine = FakeEngine(FakeSettings(decode_rate=1.0))
            node = Node(settings.identity, engine, network, 1, requests=requests)
            await nursery.start(node.run)
            await trio.sleep(2)
            frames = await frames_of(Member(node, engine, network), an_ask("zebra crossing " * 20))
            assert isinstance(frames[-1], Answered)
            async with node.ask(an_ask("another zebra", max_tokens=1_000)) as asked:
                await anext(aiter(asked))
                await trio.sleep(1)
                left = contents(tmp_path)  # (as SIGKILL would leave it now)
                rows = node.recent_requests()
            nursery.cancel_scope.cancel()
        assert [record.row.status for record in read_journal(tmp_path)] == ["answered", "cancelled"]
        for name, data in left.items():
            (tmp_path / name).write_bytes(data)
        async with open_request_log(tmp_path) as requests:
            answered, interrupted = requests.rows()
            assert answered == rows[0] and answered.status == "answered"
            assert (interrupted.id, interrupted.status) == (rows[1].id, "interrupted")
            names = [step.name for step in requests.steps(bytes.fromhex(answered.id))]
            assert names[0] == "entered" and {"tokenized", "routed", "begun", "answered"} <= set(names)


async def test_no_word_of_prompts_answers_and_others_is_written(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, no_threads: None
) -> None:
    """Other nodes know the prompt, and their texts may quote it."""
    journal = Journal(tmp_path)
    log = RequestLog(on_change=journal.note)
    async with open_members(1) as (_, (one,)):
        one.node.requests.on_change = journal.note
        answer = await frames_of(one, an_ask("zebra " + LONG))
        assert isinstance(answer[-1], Answered)
    for number, name in enumerate(("attempt_failed", "something_new")):
        log.entered(request_id(number), "m", b"")
        log.emitted(request_id(number), name, b"p" * 38, "zebra")
        log.failed(request_id(number), "zebra", "zebra")
    log.entered(request_id(9), "m", b"")
    log.relayed(request_id(9), b"p" * 38)
    log.update(request_id(9), reason="zebra")
    log.failed(request_id(9), "overloaded", "zebra")
    journal.flush()
    data = (tmp_path / JOURNAL_FILE).read_bytes()
    assert b"zebra" not in data and b"quick brown fox" not in data and b"attempt_failed" in data
    assert [record.row.code for record in read_journal(tmp_path)][1:] == ["other", "other", "overloaded"]


async def test_it_can_be_turned_off(tmp_path: Path) -> None:
    written(tmp_path, [1])
    before = contents(tmp_path)
    async with open_request_log(None) as requests:
        requests.entered(request_id(2), "m", b"")
        assert len(requests.rows()) == 1
    assert contents(tmp_path) == before


async def test_what_ends_because_the_node_is_cancelled_is_written(tmp_path: Path) -> None:
    """All tasks are cancelled at once, also those that still have records to write."""
    with trio.CancelScope() as scope:
        async with open_request_log(tmp_path) as requests:
            requests.entered(request_id(5), "m", b"")
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()
                requests.cancelled(request_id(5))
    assert read(tmp_path) == {5: "cancelled"}


async def test_what_entered_is_written_before_the_node_has_ended(tmp_path: Path) -> None:
    """A thread writes it, not only the end of the node."""
    async with open_request_log(tmp_path) as requests:
        requests.entered(request_id(5), "m", b"")
        with trio.fail_after(30):
            while read(tmp_path) != {5: "interrupted"}:  # noqa: ASYNC110  nothing announces it
                await trio.sleep(0.01)
        requests.cancelled(request_id(5))
    assert read(tmp_path) == {5: "cancelled"}
