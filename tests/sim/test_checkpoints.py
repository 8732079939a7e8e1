"""The replay of traces by a model that keeps states: what is found, and that the nodes' rule beats LRU."""

import json
import random
from pathlib import Path

import pytest

from mycelia.sim.checkpoints import Model, hit_ratio, main
from mycelia.sim.eviction import Request

MODEL = Model(state=20_000, cell=10, attention_cell=40)


def few_shot(rng: random.Random, count: int) -> list[Request]:
    """Questions of 60 tokens after one of twenty prompts of 300, chosen by Zipf's law."""
    subjects = [tuple(range(1000 * i, 1000 * i + 300)) for i in range(1, 21)]
    chosen = rng.choices(subjects, [1 / i for i in range(1, 21)], k=count)
    return [
        Request(float(i), (*subject, *range(10**6 + 100 * i, 10**6 + 100 * i + 61)), 360)
        for i, subject in enumerate(chosen)
    ]


def test_a_large_cache_finds_all_but_the_first_two_of_each_prompt() -> None:
    requests = few_shot(random.Random(1), 400)
    assert hit_ratio(requests, MODEL, 10**9, "value") == pytest.approx((400 - 2 * 20) / 400 * 300 / 360)


def test_the_value_rule_beats_lru() -> None:
    requests = few_shot(random.Random(2), 400)
    found = {policy: hit_ratio(requests, MODEL, 300_000, policy) for policy in ("lru", "value")}
    assert found["value"] > 1.3 * found["lru"] > 0


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"user": f"hello {i}", "assistant": "hi there " * 20} for i in range(3)]
    trace = tmp_path / "dialogues.jsonl"
    trace.write_text("".join(json.dumps({"turns": turns}) + "\n" for _ in range(3)))
    monkeypatch.setattr("sys.argv", ["checkpoints", "--trace", str(trace), "--size", "9", "--model", "lfm2-1.2b"])
    main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["dialogues.jsonl:", "9", "requests,"]
    assert [line[0] for line in lines[1:]] == ["attention", "lfm2-1.2b", "lfm2-1.2b"]
