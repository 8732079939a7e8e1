"""The benchmarks' own arithmetic and output; the measurements themselves are not for tests."""

import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mycelia.bench.engine import internals
from mycelia.bench.engine import model as model_bench
from mycelia.bench.engine.engine import OWN_TOKENS, SHARED_TOKENS, WORKLOADS, OurEngine, _Prompts
from mycelia.bench.engine.internals import Bench, measure_shares
from mycelia.bench.engine.target import Settings
from mycelia.bench.plans import GossipBench, IndexBench, ModelBench, RoutingBench, ScaleBench
from mycelia.bench.report.report import report_of, row_of, show
from mycelia.bench.routing import index
from mycelia.bench.routing.index import bench_index, make_population
from mycelia.bench.routing.routing import bench_routing
from mycelia.bench.scale.gossip import bench_gossip
from mycelia.bench.scale.scale import bench_scale
from mycelia.node.engine import pipe
from mycelia.node.engine.child.llama.bindings import L
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.model import NUM_VOCAB
from mycelia.node.engine.models import resolve_model
from mycelia.node.engine.settings import EngineSettings
from mycelia.proto.wire.errors import LocalError
from tests.node.engine.child.pooling.pooled_models import RANK, write_bert
from tests.node.engine.gguf_files import quick_model


def test_a_row_is_the_median_with_its_range() -> None:
    row = row_of("name", "s", [3.0, 1.0, 2.0])
    assert (row.value, row.min, row.max, row.runs) == (2.0, 1.0, 3.0, 3)


def test_json_is_one_object_of_the_documented_shape(capsys: pytest.CaptureFixture[str]) -> None:
    show(report_of("engine", [row_of("name", "s", [1.0])]), as_json=True)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    report = json.loads(out)
    assert report.keys() == {"bench", "version", "machine", "rows"}
    assert report["rows"][0].keys() == {"name", "value", "unit", "min", "max", "runs"}


async def test_a_completion_is_timed_and_counted() -> None:
    target = OurEngine(FakeEngine())  # type: ignore[arg-type]
    prompt = list(range(100)) * 3
    cold = await target.complete(prompt, 4)
    warm = await target.complete([*prompt, 7], 4)
    assert cold.cached_tokens == 0 and warm.cached_tokens == len(prompt)
    assert 0 <= cold.ttft_s <= cold.total_s and 1 <= cold.completion_tokens <= 4


async def test_what_one_model_does_here(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneEngine(FakeEngine):
        pid, num_cells = os.getpid(), 512

    @asynccontextmanager
    async def opened(settings: EngineSettings) -> AsyncIterator[FakeEngine]:
        assert settings.slots == 4 and settings.model_path == resolve_model("smollm2")
        yield OneEngine()

    monkeypatch.setattr(model_bench, "open_engine", opened)
    report = await model_bench.bench_model("smollm2", ModelBench(slots=4, prompt_tokens=32, runs=2))
    rows = {row.name: row for row in report.rows}
    names = ["prefill_rate", "decode_rate_1", "decode_rate_2", "decode_rate_4", "engine_memory", "kv_cells"]
    assert [*rows] == [*names, "answers_at_once", "conversations"] and rows["prefill_rate"].runs == 2
    assert all(row.value > 0 for row in report.rows) and rows["answers_at_once"].value <= 4
    with pytest.raises(LocalError, match="mycelia model pull hf:no/model"):
        await model_bench.bench_model("hf:no/model", ModelBench())


async def test_a_model_that_only_reads_texts_is_measured_by_them(tmp_path: Path) -> None:
    path = write_bert(tmp_path / "ranker.gguf", RANK)
    report = await model_bench.bench_model(str(path), ModelBench(prompt_tokens=32, runs=2, threads=1))
    assert [(row.name, row.runs) for row in report.rows] == [("text_rate", 2), ("engine_memory", 1)]
    assert all(row.value > 0 for row in report.rows)


def test_clients_are_counted_by_what_they_need() -> None:
    run = model_bench.Run(prefill_rate=100.0, decode_rates={1: 12.0, 2: 18.0, 4: 19.0, 8: 20.0})
    assert model_bench.readable(run) == 2, "four would get less than 5 tokens/s each"
    assert model_bench.conversations(run) == 5, "60 s / (100 / 100 + 200 / 20)"
    assert (
        model_bench.readable(model_bench.Run(1.0, {1: 4.0}))
        == model_bench.conversations(model_bench.Run(1.0, {1: 0.0}))
        == 0
    )


def test_shared_workloads_share_exactly_their_prefix() -> None:
    prompts = _Prompts(random.Random(1), 50_000)
    made = {workload.name: workload.make(prompts) for workload in WORKLOADS}
    for name, count in (("warm_850_ttft", 3), ("shared_warm_4_wall", 5), ("shared_cold_4_wall", 4)):
        assert len(made[name]) == count
        assert len({tuple(prompt[:SHARED_TOKENS]) for prompt in made[name]}) == 1
        assert len({tuple(prompt[SHARED_TOKENS:]) for prompt in made[name]}) == count
        assert all(len(prompt) == SHARED_TOKENS + OWN_TOKENS for prompt in made[name])
    assert NUM_VOCAB < 1_000 < min(min(prompt) for prompt in made["short_8_rate"])


def test_the_population_holds_what_was_asked_for_and_lookups_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "UPDATE_BLOCKS", 200)
    population = make_population(peers=4, residencies=400, zipf=1.0, families=3, rng=random.Random(1))
    assert [len(blocks) for blocks in population.digests()] == [100] * 4
    report = bench_index(IndexBench(peers=4, residencies=400, zipf=1.0, families=3, runs=1))
    values = {row.name: row.value for row in report.rows}
    assert values.keys() >= {"lookup_us_p50", "lookup_hash_us_p50", "update_blocks_per_s", "bytes_per_residency"}
    assert all(value > 0 for value in values.values())


def test_simulated_rows_are_numbers_and_the_same_every_time() -> None:
    reports = [bench_gossip(GossipBench(16, only=("same_repair_bytes", "partition_rounds"))) for _ in range(2)]
    assert reports[0] == reports[1]
    assert [row.name for row in reports[0].rows] == ["same_repair_bytes", "partition_rounds"]
    assert all(row.value > 0 for row in reports[0].rows)
    with pytest.raises(LocalError, match="floor_ratio"):
        bench_gossip(GossipBench(16, only=("floor",)))


def test_a_missing_rival_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mycelia.bench.report.extra.find_spec", lambda name: None)
    with pytest.raises(LocalError, match="pip install"):
        bench_index(IndexBench(peers=1, residencies=1_000, runs=1, against="dynamo"))


def test_shares_are_measured_on_the_real_loop_which_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internals, "ANSWER_TOKENS", 2 * internals.MIN_STEPS)
    monkeypatch.setattr(internals, "PROMPT_TOKENS", 4)
    monkeypatch.setattr(internals, "RESTORED_TOKENS", 100)
    decode, nowhere = L.llama_decode, os.open(os.devnull, os.O_WRONLY)
    try:
        bench = Bench(quick_model(), Settings(threads=1, cells=2048), pipe.Replies(nowhere), 1)
        assert 0 < bench.step_overhead_share() < 1
        assert L.llama_decode is decode
        monkeypatch.setattr(internals, "ANSWER_TOKENS", 2)
        with pytest.raises(LocalError, match="steps had 8 streams"):
            bench.step_overhead_share()
        restored = bench.tier_restore_share()
        assert restored is not None and 0 < restored < 1
    finally:
        os.close(nowhere)


async def test_a_measurement_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "none.gguf").write_bytes(b"GGUF")
    with pytest.raises(LocalError, match="measured from inside: cannot load the model"):
        await measure_shares(tmp_path / "none.gguf", Settings(threads=1, cells=2048), 1, 1)


def test_the_bench_of_scale_has_its_rows() -> None:
    report = bench_scale(ScaleBench(40, ("cells", "dht")))
    names = {row.name for row in report.rows}
    assert {"cells", "cell_nodes", "lookup_found_p50", "lookup_nobody_p99", "provide_bytes"} <= names
    assert next(row for row in report.rows if row.name == "cells").value == 1
    with pytest.raises(LocalError, match="no group"):
        bench_scale(ScaleBench(40, ("nothing",)))


def test_decisions_are_timed() -> None:
    report = bench_routing(RoutingBench(num_nodes=4, tokens=256, runs=1))
    assert [row.name for row in report.rows] == ["decision_us_p50", "decision_us_p99"]
    assert all(row.value > 0 for row in report.rows)
