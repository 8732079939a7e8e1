"""Traces and sessions: the errors for bad files, and what prompts share."""

import gzip
import json
import random
from itertools import islice
from pathlib import Path

import pytest

from mycelia.proto.wire.blocks import STRIDE, block_hashes
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.sessions import GENERATORS, hit_bound
from mycelia.sim.traces import read_mooncake, sessions_of
from mycelia.sim.world import NAMESPACE

GOOD = {"timestamp": 0, "input_length": 1_000, "output_length": 5, "hash_ids": [0, 1]}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_a_trace_is_read_gzipped_or_not(tmp_path: Path) -> None:
    rows = [{**GOOD, "timestamp": at, "output_length": 0, "extra": 1} for at in (3_000, 3_000, 3_000, 6_000)]
    plain = read_mooncake(write(tmp_path / "trace.jsonl", *rows, "\n"))
    (tmp_path / "trace.gz").write_bytes(gzip.compress((tmp_path / "trace.jsonl").read_bytes()))
    assert read_mooncake(tmp_path / "trace.gz") == plain
    assert [row.at_s for row in plain] == [0.0, 1.0, 2.0, 3.0]
    assert plain[0].output_length == 1


def test_prompts_of_a_trace_share_what_its_ids_share(tmp_path: Path) -> None:
    rows = [{**GOOD, "hash_ids": [0, last], "timestamp": 1_000 * last} for last in (1, 2, 3)]
    sessions = list(sessions_of(read_mooncake(write(tmp_path / "trace", *rows)), rate=3.0))
    assert [session.at_s for session in sessions] == pytest.approx([0.0, 0.5, 1.0])
    first, second = (session.prompts[0] for session in sessions[:2])
    assert len(first.tokens) == 1_000 and len(first.answer) == 5
    assert first.tokens[:512] == second.tokens[:512]
    assert not set(first.tokens[512:]) & set(second.tokens)
    assert not set(first.answer) & set(second.answer)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"timestamp": 1, "input_len', "line 2: no JSON, or cut off"),
        ("[1]\n", "line 2: not a JSON object"),
        ("[" * 100_000, "line 2: no JSON"),
        ({**GOOD, "timestamp": -1}, "line 2: timestamp"),
        ({**GOOD, "timestamp": float("nan")}, "line 2: timestamp"),
        ({**GOOD, "timestamp": True}, "line 2: timestamp"),
        ({**GOOD, "input_length": 0}, "line 2: input_length"),
        ({**GOOD, "input_length": "many"}, "line 2: input_length"),
        ({**GOOD, "output_length": -1}, "line 2: output_length"),
        ({**GOOD, "output_length": 1.5}, "line 2: output_length"),
        ({**GOOD, "hash_ids": [0, -1]}, "line 2: hash_ids"),
        ({**GOOD, "hash_ids": 7}, "line 2: hash_ids"),
        ({**GOOD, "hash_ids": [0]}, "line 2: 1 hash_ids for 1000 tokens: expected 2"),
        *(
            ({key: value for key, value in GOOD.items() if key != name}, f"line 2: lacks the field {name}")
            for name in GOOD
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: object, reason: str) -> None:
    with pytest.raises(LocalError, match=reason):
        read_mooncake(write(tmp_path / "trace.jsonl", GOOD, bad))


def test_an_unsorted_trace_is_refused(tmp_path: Path) -> None:
    rows = [{**GOOD, "timestamp": at} for at in (0, 2_000, 1_000)]
    with pytest.raises(LocalError, match="line 3: not sorted: timestamp 1000 after 2000"):
        read_mooncake(write(tmp_path / "trace.jsonl", *rows))


def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = [{**GOOD, "hash_ids": [rng.getrandbits(28), rng.getrandbits(28)]} for _ in range(2_000)]
    data = gzip.compress(write(tmp_path / "trace.jsonl", *rows).read_bytes())
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(LocalError, match=r"line \d+: the compressed file is cut off or damaged"):
        read_mooncake(path)


def test_a_trace_without_requests_or_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="no requests"):
        read_mooncake(write(tmp_path / "trace.jsonl"))
    with pytest.raises(LocalError, match="cannot read"):
        read_mooncake(tmp_path / "none")
    with pytest.raises(LocalError, match="cannot read"):
        read_mooncake(tmp_path)


@pytest.mark.parametrize("name", list(GENERATORS))
def test_sessions_come_at_the_rate_asked_for(name: str) -> None:
    sessions = list(islice(GENERATORS[name](5.0, 1.0, random.Random(1)), 1_000))
    prompts = sum(len(session.prompts) for session in sessions)
    assert prompts / sessions[-1].at_s == pytest.approx(5.0, rel=0.15)
    assert all(len(session.think_s) == len(session.prompts) - 1 for session in sessions)
    assert all(prompt.tokens and prompt.answer for session in sessions for prompt in session.prompts)


def bound(name: str) -> float:
    prompts = []
    for session in islice(GENERATORS[name](5.0, 1.0, random.Random(1)), 300):
        for prompt in session.prompts:
            chain = block_hashes(NAMESPACE, prompt.tokens + prompt.answer)
            prompts.append((chain, len(prompt.tokens) // STRIDE, len(prompt.tokens)))
    return hit_bound(prompts, [True] * len(prompts), STRIDE)


def test_only_some_workloads_share() -> None:
    assert bound("no-sharing") == 0.0
    assert 0.4 < bound("mmlu") < 0.9
    assert 0.6 < bound("multi-turn") < 0.95


def test_the_hit_bound_counts_what_came_before() -> None:
    prompts = [((1, 2), 2, 130), ((1, 2, 3), 3, 192), ((1, 2, 3), 3, 192)]
    assert hit_bound(prompts, [False, True, True], 64) == pytest.approx((128 + 191) / 384)
    assert hit_bound(prompts, [False, False, False], 64) == 0.0
