"""The replay of eviction policies: every kind of trace is read, and shared prompts are kept longer than by LRU."""

import json
import random
from pathlib import Path

import pytest

from mycelia.sim.eviction import Request, main, mixed, read, replay, working_set

BLOCKS = [{"timestamp": 1_000 * i, "input_length": 1_000, "hash_ids": [0, i + 1]} for i in range(4)]
TURNS = [{"user": "hello", "assistant": "hi"}, {"user": "more", "assistant": "no"}]
DIALOGUES = [{"turns": TURNS} for _ in range(3)]
QUESTIONS = [
    {"subject": subject, "split": split, "question": f"what {i}?", "choices": ["a", "b"], "answer": "A"}
    for subject in ("law", "art")
    for i, split in enumerate(["test", "dev", "dev", "test"])
]


def write(path: Path, rows: object) -> Path:
    assert isinstance(rows, list)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(text: str) -> list[int]:
    return list(text.encode())


@pytest.mark.parametrize(
    ("rows", "num_requests", "num_tokens"),
    [(BLOCKS, 4, 5), (DIALOGUES, 6, len("hello0hi0more0no0")), (QUESTIONS, 3_000, None)],
)
def test_each_kind_of_trace_is_read(tmp_path: Path, rows: object, num_requests: int, num_tokens: int | None) -> None:
    requests = read(write(tmp_path / "trace", rows), words, random.Random(0))
    assert len(requests) == num_requests
    assert all(0 < request.prompt_tokens <= len(request.tokens) for request in requests)
    times = [request.at_s for request in requests]
    assert times == sorted(times)
    assert num_tokens is None or working_set(requests) == num_tokens


def test_questions_share_the_examples_of_their_subject(tmp_path: Path) -> None:
    requests = read(write(tmp_path / "trace", QUESTIONS), words, random.Random(0))
    # Two subjects, each with its examples and two questions.
    assert working_set(requests) < 4 * len(requests[0].tokens)


def test_mixed_traces_take_the_longest_time() -> None:
    short, long = [Request(1.0, (1,), 1), Request(2.0, (2,), 1)], [Request(8.0, (3,), 1)]
    assert [request.at_s for request in mixed([short, long])] == [4.0, 8.0, 8.0]


def test_a_shared_prompt_is_found_more_often_than_under_lru() -> None:
    """Every tenth request, and the first three, share a prompt; the cache holds eight requests."""
    requests = [
        Request(float(i), (*(range(50) if i % 10 == 0 or i < 3 else range(50 * i, 50 * i + 50)), -i), 51)
        for i in range(100)
    ]
    found = {policy: replay(requests, policy, 408)[0] for policy in ("lru", "recency", "value")}
    assert found["lru"] < 0.03 and found["recency"] < 0.03
    assert found["value"] > 0.1


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    trace = str(write(tmp_path / "blocks.jsonl", BLOCKS))
    monkeypatch.setattr("sys.argv", ["eviction", "--trace", trace, "--size", "0.4", "1"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("blocks.jsonl: 4 requests, working set 5 ")
    assert lines[2].split() == ["lru", "0.3750/0.369", "0.3750/0.369"]
    assert [line.split()[0] for line in lines[2:]] == ["lru", "recency", "value"]
