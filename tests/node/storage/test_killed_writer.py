"""Processes that only write a node's files, killed at any moment: the files are always whole."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import structlog.testing

from mycelia.node.engine.child.tier.tier_files import EdgeFiles
from mycelia.node.storage.known_peers import PEERS_FILE
from mycelia.node.storage.rundir import next_epoch
from mycelia.node.storage.saving import FLOORS_FILE, TRUST_FILE
from mycelia.node.telemetry.journal import read_journal
from tests.damage import contents
from tests.node.engine.child.tier.test_tier_files import KEY, readable

NUM_KILLS = 12
LONGEST_S = 0.05
"""Longest time from the first write to the kill, enough for some hundred writes."""

WRITER = """
import itertools, logging, sys, time
from pathlib import Path
from mycelia.node import log as node_log
from mycelia.node.storage.saving import FLOORS_FILE, TRUST_FILE, KeptTrust
from mycelia.node.storage.known_peers import PEERS_FILE, KnownPeer
from mycelia.node.storage.rundir import next_epoch
from mycelia.node.telemetry.journal import Journal
from mycelia.node.telemetry.requests import RequestLog
from mycelia.proto.digests.floors import Floor
from mycelia.proto.admission.trust import Offender
from tests.node.engine.child.tier.test_tier_files import KEY, EdgeFiles, an_edge

node_log.configure(logging.INFO)
folder = Path(sys.argv[1])
journal = Journal(folder)
log = RequestLog(on_change=journal.note)
files = EdgeFiles(folder / "cache", KEY)
for number in itertools.count(int(sys.argv[2]) + 1):
    next_epoch(folder, time.time())
    FLOORS_FILE.save(folder, [Floor(b"o" * 38, b"n" * 16, number, number, 0.0)] * 100)
    TRUST_FILE.save(folder, KeptTrust([Offender(b"o" * 38, 1.0, number, 0.0)] * 100))
    PEERS_FILE.save(folder, [KnownPeer(b"o" * 38, ("/ip4/192.0.2.1/tcp/1",), (), number, 0.0)] * 20)
    log.entered(number.to_bytes(16, "big"), "m", b"")
    journal.flush()
    files.write(an_edge(number % 50, bytes([number % 256]) * 5_000))
    files.finished(1.0)
    print(number, flush=True)
"""


@pytest.mark.parametrize("seed", [1])
def test_a_writer_that_is_killed_leaves_whole_files(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    root = Path(__file__).parents[3]
    last = 0
    for _ in range(NUM_KILLS):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(last)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as writer:
            assert writer.stdout is not None
            first = int(writer.stdout.readline())
            time.sleep(rng.uniform(0, LONGEST_S))  # (waits for no event: a random moment is wanted)
            writer.send_signal(signal.SIGKILL)
            written = [first, *map(int, writer.stdout.read().split()[:-1])]  # (the last number may be torn)
        last = max(last, written[-1])
        with structlog.testing.capture_logs() as logs:
            floors, trust, peers = FLOORS_FILE.load(tmp_path), TRUST_FILE.load(tmp_path), PEERS_FILE.load(tmp_path)
            requests = read_journal(tmp_path)
        assert not logs and floors and trust and peers
        for number in (floors[0].seq, trust.offenders[0].at, peers[0].connected_s):
            assert last <= number <= last + 2, "the newest, or the one that was being written"
        assert last <= int(requests[-1].row.id, 16) <= last + 2 and len(requests) >= len(written)
        assert next_epoch(tmp_path, time.time()) > 1_700_000_000_000
        files = EdgeFiles(tmp_path / "cache", KEY)
        try:
            names = [name for name in contents(tmp_path / "cache" / KEY.hex()) if name.endswith(".edge")]
            assert len(readable(files)) == len(names) > 0
        finally:
            files.close()
        assert os.stat(tmp_path / "requests.journal").st_mode & 0o777 == 0o600
        last += 2
    left = {name for name in contents(tmp_path) if not name.endswith(".tmp")}
    assert left == {"epoch", "floors.msgpack", "trust.msgpack", "peers.msgpack", "requests.journal"}
