"""The parts of a node that keep something, each alone through a month of virtual time and much traffic.

The disk and the memory that they take stay within their bounds, and the last days find what the first ones found.
"""

import logging
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import structlog
from blake3 import blake3

from mycelia.node import log as log_module
from mycelia.node.engine.child.tier.tier_files import MAX_QUEUED_BYTES, EdgeFiles
from mycelia.node.serve.api_keys import ApiKey, Limits
from mycelia.node.serve.http.limits import KeyLimits
from mycelia.node.storage.known_peers import MAX_KNOWN, PEERS_FILE, KnownPeers
from mycelia.node.storage.saving import TRUST_FILE, KeptTrust
from mycelia.node.telemetry import crashes, requests, usage
from mycelia.node.telemetry import days as days_module
from mycelia.node.telemetry.crashes import MAX_REPORTS
from mycelia.node.telemetry.days import DAYS_FILE, Days
from mycelia.node.telemetry.journal import JOURNAL_FILE, MAX_FILE_BYTES, OLD_FILE, Journal, read_journal
from mycelia.node.telemetry.requests import RequestLog
from mycelia.node.telemetry.usage import UsageMeter, Use
from mycelia.node.views.history import DayRow
from mycelia.proto.admission.trust import Trust
from mycelia.proto.cache.tier import Tier, Trimmed
from mycelia.proto.cache.value import Reuse
from mycelia.proto.config import TrustConfig
from mycelia.proto.kademlia.peer_buckets import BUCKET_SIZE, PeerBuckets
from mycelia.proto.kademlia.provider_records import EXPIRY_S, MAX_PROVIDERS, Contact, ProviderRecords
from mycelia.proto.wire.blocks import pack_tokens
from tests import profiles
from tests.node.telemetry.test_telemetry import ANSWERED

BEGAN = 1_699_920_000.0
"""Midnight."""
DAY_S = 86_400.0
DAYS = 30
TIMES = 8 if profiles.is_full() else 1
"""Factor of the traffic."""


class Calendar:
    """The wall clock of a month. Calling it gives Unix seconds."""

    def __init__(self) -> None:
        self.now = BEGAN

    def __call__(self) -> float:
        return self.now

    def each_day(self, num_days: int = DAYS) -> Iterator[int]:
        for day in range(num_days):
            self.now = BEGAN + day * DAY_S
            yield day

    def moments(self, count: int) -> Iterator[int]:
        """Moments of the present day, each with its number."""
        began = self.now
        for number in range(count):
            self.now = began + (number + 1) * DAY_S / (count + 1)
            yield number


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


@pytest.fixture
def rng() -> random.Random:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    return random.Random(seed)


def peer(rng: random.Random) -> bytes:
    """An id of a new peer."""
    return bytes.fromhex("002408011220") + rng.randbytes(32)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_the_journal_and_the_log_of_requests(
    calendar: Calendar, rng: random.Random, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a node that is started again each week."""
    monkeypatch.setattr(requests, "MAX_REQUESTS", 64)
    largest = num = 0
    for day in calendar.each_day():
        if day % 7 == 0:
            journal = Journal(tmp_path)
            log = RequestLog(calendar, calendar, journal.note)
            log.restore((record.row, record.steps) for record in read_journal(tmp_path))
            assert not num or log.rows()[-1].id == num.to_bytes(16, "big").hex()
        for number in calendar.moments(50 * TIMES):
            num += 1
            request_id = num.to_bytes(16, "big")
            log.entered(request_id, "model", rng.choice([b"", rng.randbytes(32)]))
            for step in range(10):
                log.emitted(request_id, "bounced", rng.randbytes(38), f"{step} {'word ' * 40}")
            log.answered(request_id, ANSWERED)
            if number % 25 == 24:
                journal.flush()
        largest = max(largest, size_of(tmp_path))
        assert len(log.rows()) <= 64
        assert log.rows()[-1].started_at > calendar.now - DAY_S
    assert {file.name for file in tmp_path.iterdir()} == {JOURNAL_FILE, OLD_FILE}
    assert MAX_FILE_BYTES < largest <= 2 * MAX_FILE_BYTES


async def test_usage_of_keys_and_sums_of_days(
    calendar: Calendar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With smaller bounds, so that old days go."""
    monkeypatch.setattr(usage, "MAX_DAYS", 7)
    monkeypatch.setattr(days_module, "MAX_DAYS", 20)
    names = [f"key-{number}" for number in range(20)]
    keys = [ApiKey(name, name.encode(), Limits(tokens_per_day=1_000)) for name in names]
    meter = UsageMeter(tmp_path, keys, calendar)
    days = Days(tmp_path, calendar)
    sums = DayRow("")
    days.sums = lambda: sums
    limits = KeyLimits(keys, meter.tokens_today, calendar, calendar)
    for day in calendar.each_day():
        for number in range(4):
            calendar.now += 60.0  # (within an hour, so that it is one day in every zone)
            key = keys[(day + number) % len(keys)]
            assert limits.enter(key) is None
            limits.leave(key)
            meter.add(key.client, Use("model", prompt_tokens=10, completion_tokens=5))
            sums = msgspec.structs.replace(sums, given_requests=sums.given_requests + 1, sent_bytes=sums.sent_bytes + 9)
            days.note()
        meter.save()
        days.save()
        assert len(days.since(400)) == min(day + 1, 20)
    assert len(list((tmp_path / usage.FOLDER).iterdir())) == 7
    rows = days.since(400)
    assert {row.given_requests for row in rows} == {4} and {row.sent_bytes for row in rows} == {36}
    assert len(await meter.since(7)) == 7 * 4
    assert size_of(tmp_path) < 50_000
    assert DAYS_FILE.peek(tmp_path) == rows


def test_known_peers_and_trust_survive_daily_restarts(calendar: Calendar, rng: random.Random, tmp_path: Path) -> None:
    steady = [peer(rng) for _ in range(4)]
    config = TrustConfig()
    sizes = []
    for _ in calendar.each_day():
        known = KnownPeers(PEERS_FILE.load(tmp_path) or (), calendar.now)
        trust = Trust(config)
        trust.restore((TRUST_FILE.load(tmp_path) or KeptTrust()).offenders, calendar.now)
        for number in calendar.moments(30 * TIMES):
            stranger = peer(rng)
            host = f"/ip4/9.{rng.randrange(256)}.{rng.randrange(256)}.{number % 250 + 1}/tcp/7117"
            known.note(stranger, [host], [b"n" * 16], rng.uniform(5.0, 3_600.0), calendar.now, host)
            for _ in range(rng.randrange(12)):
                trust.offend(stranger, calendar.now)
        for number, one in enumerate(steady):
            host = f"/ip4/8.8.{number}.1/tcp/7117"
            known.note(one, [host], [b"n" * 16], DAY_S, calendar.now, host)
        PEERS_FILE.save(tmp_path, known.rows(calendar.now))
        TRUST_FILE.save(tmp_path, KeptTrust(trust.offenders(calendar.now)))
        assert len(known) <= MAX_KNOWN
        assert {one.peer for one in known.rows(calendar.now)[: len(steady)]} == set(steady), (
            "those that stay come first"
        )
        assert len(trust.offenders(calendar.now)) <= 2, "an hour forgives all but the last ones"
        sizes.append(size_of(tmp_path))
    assert max(sizes[-10:]) <= 1.2 * max(sizes[:10]) and {file.name for file in tmp_path.iterdir()} == {
        PEERS_FILE.name,
        TRUST_FILE.name,
    }


def test_records_and_peers_of_the_dht(calendar: Calendar, rng: random.Random) -> None:
    """Providers that come and go; some repeat their records all month."""
    me, max_records = peer(rng), 512
    records, buckets = ProviderRecords(max_records, rng), PeerBuckets(me)
    keys = [rng.randbytes(32) for _ in range(16)]
    steady = [(Contact(peer(rng), (b"a",)), f"9.9.{number}.0/24") for number in range(6)]
    there = {one.peer for one, _ in steady}
    found = []
    for _ in calendar.each_day():
        for number in calendar.moments(48):  # (each half hour)
            for contact, subnet in steady:
                records.add(keys[0], contact, subnet, there.__contains__, calendar.now)
                buckets.add(contact.peer, subnet, there.__contains__)
            for _ in range(TIMES):
                visitor, subnet = peer(rng), f"7.{rng.randrange(256)}.{rng.randrange(256)}.0/24"
                for key in rng.sample(keys, 3):
                    records.add(key, Contact(visitor, (b"v",)), subnet, there.__contains__, calendar.now)
                buckets.add(visitor, subnet, lambda one, visitor=visitor: one in there or one == visitor)  # type: ignore[misc]
            if number == 0:
                found.append({one.peer for one in records.providers(keys[0], calendar.now)})
        assert len(records) <= max_records and records.num_keys <= len(keys)
        assert all(len(records.providers(key, calendar.now)) <= MAX_PROVIDERS for key in keys)
        assert len(buckets) <= BUCKET_SIZE * 16
        records.check_invariants()
        buckets.check_invariants()
    assert all(there <= one for one in found[1:]), "a provider that is always there is always found"
    assert there <= set(buckets.peers())
    calendar.now += EXPIRY_S + 1.0
    assert not any(records.providers(key, calendar.now) for key in keys) and not len(records)


def test_files_of_the_second_tier(calendar: Calendar, rng: random.Random, tmp_path: Path) -> None:
    """A node that is started again each week, with far more prefixes than the disk may hold."""
    ram_bytes, disk_bytes, blob_bytes = 60_000, 200_000, 4_000

    def settle(trimmed: Trimmed) -> None:
        for edge in trimmed.unlink:
            files.remove(edge)

    def finish() -> None:
        while files.is_writing:
            for edge, written in files.finished(5.0):
                tier.end_write(edge, written)
                if edge.gone:
                    files.remove(edge)
        settle(tier.trim(calendar.now))

    assert blob_bytes < MAX_QUEUED_BYTES
    for day in calendar.each_day():
        if day % 7 == 0:
            tier, files = Tier(ram_bytes, disk_bytes), EdgeFiles(tmp_path, b"k" * 16)
            found, bad = files.scan()
            assert bad == [] and (day == 0 or len(found) > 10)
            for one in found:
                tier.add_file(one.packed, one.start, one.blob_bytes, one.content_hash, calendar.now, one.whose)
            settle(tier.trim(calendar.now))
        for _ in calendar.moments(8 * TIMES):
            blob = rng.randbytes(blob_bytes)
            packed = pack_tokens([rng.randrange(1_000) for _ in range(16)])
            edge = tier.add(packed, 0, memoryview(blob), blake3(blob).digest(), Reuse(calendar.now))
            if tier.begin_write(edge):
                files.write(edge)
            settle(tier.trim(calendar.now))
        finish()
        tier.check_invariants()
        assert tier.disk_used <= disk_bytes and tier.ram_used <= ram_bytes
        if day % 7 == 6 or day == DAYS - 1:
            files.close()
            assert size_of(tmp_path) <= disk_bytes + 400 * len(tier), "the headers are beside the budget"
            assert size_of(tmp_path) > disk_bytes / 2


def test_the_log_and_reports_of_crashes(calendar: Calendar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "LINE_RATE", 1e9)  # (the real clock hardly moves)
    log_module.configure(logging.INFO)
    monkeypatch.setattr(time, "time", calendar)
    log = structlog.get_logger()
    limit = log_module.LineLimit(calendar)
    num_lines = 0
    with log_module.kept(tmp_path / "node.log"):
        for day in calendar.each_day():
            crashes.write_report(tmp_path / "crashes", "engine", f"reason {day}", ["detail"] * 50)
            for number in calendar.moments(250 * TIMES):
                log.info("answered", request=f"{day}-{number}", detail="x" * 900)
                num_lines += 1
            assert limit(None, "info", {"event": "answered"})["event"] == "answered"
    names = sorted(file.name for file in tmp_path.iterdir() if file.is_file())
    assert names == ["node.log", "node.log.1", "node.log.2"]
    sizes = [(tmp_path / name).stat().st_size for name in names]
    assert all(size <= log_module.MAX_FILE_BYTES for size in sizes) and sum(sizes) < 900 * num_lines
    assert f"{DAYS - 1}-{250 * TIMES - 1}" in crashes.last_lines(tmp_path, 1)[0]
    kept = crashes.reports(tmp_path / "crashes")
    assert len(kept) == MAX_REPORTS
    days = [int(re.findall(r"reason (\d+)", file.read_text())[0]) for file in kept]
    assert days == list(range(DAYS - MAX_REPORTS, DAYS))
