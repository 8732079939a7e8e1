"""The metering of usage: what is counted, what survives, and what stays bounded."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from mycelia.node.serve.api_keys import ApiKey
from mycelia.node.telemetry import usage as usage_module
from mycelia.node.telemetry.usage import FOLDER, MAX_DAYS, MAX_ROWS, OTHER, UsageMeter, Use, open_usage, read_usage
from mycelia.node.views.history import UsageRow
from mycelia.proto.wire.messages import Answered, Begun, EntryFrame, Failed, Route, Text, Usage
from tests.node.threads import run_here

ALICE, BOB = ApiKey("alice", b"a" * 32), ApiKey("bob", b"b" * 32)
DAY_S = 86_400
PEER = bytes(38)
ROUTE = Route(chosen=PEER, reason="", prompt_tokens=50, candidates=())


class Clock:
    def __init__(self) -> None:
        self.now = 20_000.5 * DAY_S

    def __call__(self) -> float:
        return self.now


def used(model: str = "fake", prompt: int = 10, cached: int = 4, completion: int = 5, is_failed: bool = False) -> Use:
    return Use(model, is_failed, prompt, cached, completion)


def facts(row: UsageRow) -> tuple[object, ...]:
    return tuple(msgspec.structs.asdict(row).values())[1:]


@asynccontextmanager
async def frames_of(*frames: EntryFrame) -> AsyncIterator[AsyncIterator[EntryFrame]]:
    send, receive = trio.open_memory_channel[EntryFrame](len(frames))
    for frame in frames:
        send.send_nowait(frame)
    send.close()
    with receive:
        yield receive


async def counted(meter: UsageMeter, *frames: EntryFrame, given_up_after: int | None = None) -> UsageRow:
    async with meter.counting(frames_of(*frames), ALICE.client, "fake") as answer:
        num = 0
        async for _ in answer:
            num += 1
            if num == given_up_after:
                break
    (row,) = await meter.since(1)
    return row


async def test_rows_are_sums_of_a_key_and_a_model() -> None:
    meter = UsageMeter(keys=[ALICE, BOB], wall=Clock())
    meter.add(ALICE.client, used())
    meter.add(ALICE.client, used(completion=7, is_failed=True))
    meter.add(BOB.client, used("other"))
    meter.add(b"", used())
    meter.refused("alice")
    assert [facts(row) for row in await meter.since(1)] == [
        ("alice", "", 0, 0, 1, 0, 0, 0),
        ("alice", "fake", 2, 1, 0, 20, 8, 12),
        ("bob", "other", 1, 0, 0, 10, 4, 5),
        ("local", "fake", 1, 0, 0, 10, 4, 5),
    ]
    assert meter.tokens_today("alice") == 32 and meter.tokens_today("nobody") == 0


async def test_an_answer_counts_as_its_usage_says_and_a_broken_off_one_as_far_as_it_came() -> None:
    usage = Usage(prompt_tokens=50, cached_tokens=32, completion_tokens=9, queue_ms=0, prefill_ms=0, decode_ms=0)
    begun = Begun(served_by=PEER, cached_tokens=30)
    text = Text(text="abc", tokens=bytes(4 * 3))
    end = Answered(served_by=PEER, reason="stop", usage=usage, ttft_ms=1, resumed=0)
    failed = Failed(code="no_peer", message="", retryable=True)
    whole = await counted(UsageMeter(keys=[ALICE]), ROUTE, begun, text, text, end)
    assert facts(whole) == ("alice", "fake", 1, 0, 0, 50, 32, 9)
    given_up = await counted(UsageMeter(keys=[ALICE]), ROUTE, begun, text, text, end, given_up_after=3)
    assert facts(given_up) == ("alice", "fake", 1, 0, 0, 50, 30, 3)
    assert facts(await counted(UsageMeter(keys=[ALICE]), ROUTE, failed)) == ("alice", "fake", 1, 1, 0, 0, 0, 0)
    unknown = await counted(UsageMeter(keys=[ALICE]), failed)
    assert facts(unknown) == ("alice", "", 1, 1, 0, 0, 0, 0), "names of models that do not exist make no rows"


async def test_what_was_used_survives_a_restart_and_a_kill(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_usage(tmp_path, [ALICE]) as meter:
        meter.add(ALICE.client, used())
    async with trio.open_nursery() as nursery:
        killed = UsageMeter(tmp_path, [ALICE])
        nursery.start_soon(killed.run)
        killed.add(ALICE.client, used())
        await trio.sleep(60)
        nursery.cancel_scope.cancel()  # (without ``save``: as if the process had been killed)
    again = UsageMeter(tmp_path, [ALICE])
    assert again.tokens_today("alice") == 30
    assert [facts(row) for row in await again.since(1)] == [("alice", "fake", 2, 0, 0, 20, 8, 10)]
    assert again.totals == {}, "metrics begin at 0"
    assert (tmp_path / FOLDER).stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / FOLDER).iterdir()} == {0o600}


async def test_days_are_apart_and_old_ones_go(tmp_path: Path) -> None:
    clock = Clock()
    meter = UsageMeter(tmp_path, [ALICE], clock)
    for _ in range(MAX_DAYS + 5):
        meter.add(ALICE.client, used())
        meter.save()
        clock.now += DAY_S
    assert meter.tokens_today("alice") == 0
    rows = await meter.since(MAX_DAYS)
    assert [row.day for row in rows] == sorted({row.day for row in rows})
    assert len(rows) == MAX_DAYS - 1, "today has none"
    assert len(list((tmp_path / FOLDER).iterdir())) == MAX_DAYS
    assert len(await meter.since(3)) == 2
    clock.now -= DAY_S  # (a clock that is set back finds the day's own table)
    assert meter.tokens_today("alice") == 15


async def test_a_table_has_a_limit_and_every_key_still_its_sum(tmp_path: Path) -> None:
    keys = [ApiKey(f"k{number}", number.to_bytes(32, "big")[::-1]) for number in range(1, 4)]
    meter = UsageMeter(tmp_path, keys, Clock())
    for number in range(MAX_ROWS + 50):
        meter.add(keys[0].client, used(f"m{number}"))
    for key in keys[1:]:
        meter.add(key.client, used())
    assert len(await meter.since(1)) == MAX_ROWS + len(keys)
    assert meter.tokens_today("k1") == 15 * (MAX_ROWS + 50)
    meter.save()
    again = UsageMeter(tmp_path, keys, Clock())
    assert [again.tokens_today(key.name) for key in keys] == [15 * (MAX_ROWS + 50), 15, 15]
    assert {row.model for row in await again.since(1) if row.key == "k2"} == {OTHER}


async def test_a_damaged_day_costs_only_itself(tmp_path: Path) -> None:
    clock = Clock()
    meter = UsageMeter(tmp_path, [ALICE], clock)
    for _ in range(3):
        meter.add(ALICE.client, used())
        meter.save()
        clock.now += DAY_S
    first, second, third = sorted((tmp_path / FOLDER).iterdir())
    second.write_bytes(second.read_bytes()[:-1])
    third.write_bytes(b"")
    assert [row.day for row in read_usage(tmp_path / FOLDER, "")] == [first.stem]
    clock.now -= DAY_S
    again = UsageMeter(tmp_path, [ALICE], clock)
    assert again.tokens_today("alice") == 0
    again.add(ALICE.client, used())
    again.save()
    assert UsageMeter(tmp_path, [ALICE], clock).tokens_today("alice") == 15


async def test_a_disk_that_cannot_be_written_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    clock = Clock()
    meter = UsageMeter(tmp_path, [ALICE], clock)
    (tmp_path / FOLDER).write_text("a file is in the way")
    monkeypatch.setattr(usage_module, "run_in_thread", run_here)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(meter.run)
        for _ in range(10):
            meter.add(ALICE.client, used())
            clock.now += DAY_S
            await trio.sleep(60)
        (tmp_path / FOLDER).unlink()
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert 1 <= len(read_usage(tmp_path / FOLDER, "")) <= usage_module.MAX_UNSAVED_DAYS + 1
