"""Recorded workloads: the errors for bad files, and what prompts share."""

import gzip
import json
import random
from itertools import islice
from pathlib import Path

import pytest

from mycelia.proto.cache.sharing import EVERYBODY
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.sessions import hit_bound
from mycelia.sim.traces import read_dialogues, read_mooncake

GOOD = {"timestamp": 0, "input_length": 1_000, "output_length": 5, "hash_ids": [0, 1]}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_a_trace_is_read_gzipped_or_not(tmp_path: Path) -> None:
    rows = [{**GOOD, "timestamp": at, "output_length": 0, "extra": 1} for at in (3_000, 3_000, 3_000, 6_000)]
    plain = read_mooncake(write(tmp_path / "trace.jsonl", *rows, "\n"))
    (tmp_path / "trace.gz").write_bytes(gzip.compress((tmp_path / "trace.jsonl").read_bytes()))
    assert read_mooncake(tmp_path / "trace.gz") == plain
    assert [row.at_s for row in plain.rows] == [0.0, 1.0, 2.0, 3.0]
    assert plain.rows[0].output_length == 1
    assert read_mooncake(write(tmp_path / "other.jsonl", rows[0])) != plain


def test_prompts_of_a_trace_share_what_its_ids_share(tmp_path: Path) -> None:
    rows = [{**GOOD, "hash_ids": [0, last], "timestamp": 1_000 * last} for last in (1, 2, 3)]
    sessions = list(read_mooncake(write(tmp_path / "trace", *rows)).sessions(3.0, random.Random(1)))
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


DIALOGUE = {"id": "GR-1", "turns": [{"user": "u" * 41, "assistant": "a" * 8}, {"user": "", "assistant": "b" * 9}]}


def test_dialogues_grow_turn_by_turn_and_share_nothing_with_others(tmp_path: Path) -> None:
    dialogues = read_dialogues(write(tmp_path / "dialogues.jsonl", DIALOGUE, "\n"))
    assert dialogues.lengths == [[(11, 2), (1, 3)]]
    first, second = islice((one for one in dialogues.sessions(0.1, random.Random(1)) if len(one.prompts) == 2), 2)
    asked, again = first.prompts
    assert (len(asked.tokens), len(asked.answer), len(again.tokens), len(again.answer)) == (11, 2, 14, 3)
    assert again.tokens[:13] == asked.tokens + asked.answer
    assert not set(again.tokens) & set(second.prompts[1].tokens)
    assert asked.open_tokens == 0 and asked.salt.scope != EVERYBODY


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("[1]\n", "line 2: not a JSON object"),
        ({"turns": []}, "line 2: turns is not a list of 1 to 1000"),
        ({"turns": [DIALOGUE["turns"][0]] * 1_001}, "line 2: turns"),
        ({"turns": ["hello"]}, "line 2: a turn has no texts"),
        ({"turns": [{"user": "hello", "assistant": 1}]}, "line 2: a turn has no texts"),
    ],
)
def test_a_bad_dialogue_is_named(tmp_path: Path, bad: object, reason: str) -> None:
    with pytest.raises(LocalError, match=reason):
        read_dialogues(write(tmp_path / "dialogues.jsonl", DIALOGUE, bad))
    with pytest.raises(LocalError, match="no dialogues"):
        read_dialogues(write(tmp_path / "empty.jsonl"))


def test_the_hit_bound_counts_what_came_before() -> None:
    prompts = [((1, 2), 2, 130), ((1, 2, 3), 3, 192), ((1, 2, 3), 3, 192)]
    assert hit_bound(prompts, [False, True, True], 64) == pytest.approx((128 + 191) / 384)
    assert hit_bound(prompts, [False, False, False], 64) == 0.0
