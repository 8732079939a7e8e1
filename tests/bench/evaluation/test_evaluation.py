"""``make evaluation``: it continues after an interruption, reports bars met and missed, and its commands are valid."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from mycelia.bench.evaluation import cache as evaluation_cache
from mycelia.bench.evaluation.bars import Measured, bars, losses
from mycelia.bench.evaluation.cache import Cache, key_of
from mycelia.bench.evaluation.make import evaluate, measure, told_command
from mycelia.bench.evaluation.plan import FULL, IMBALANCE, QUICK, SWEEP, Cell, Size, command_of, plan
from mycelia.bench.evaluation.text import Made, page_of
from mycelia.bench.report.runs import Run, outcomes
from mycelia.node.cli import cli
from mycelia.sim.outcome import Outcome
from mycelia.sim.scenario import Scenario

TINY = Scenario(rate=2.0, num_peers=4, rtt_s=0.02, warm_s=2.0, measured_s=10.0)
MADE = Made("make evaluation", "code", 2, 4, "a model", scale="quick", with_traces=False)


def outcome(ttft_s: float, hit_ratio: float = 0.7, imbalance: float = 1.2) -> Outcome:
    return Outcome(
        num_requests=10, num_failed=0, num_returned=0, num_refused=0, num_too_long=0, rate=2.0,
        hit_ratio=hit_ratio, hit_bound=0.75, ttft_p50_s=ttft_s / 2,
        ttft_p90_s=ttft_s, ttft_p99_s=ttft_s, ttft_quantiles_s=(ttft_s,) * 50, utilisation=0.5,
        load_imbalance=imbalance, stale_share=0.0, digest_bytes_per_s=1.0, goodput_2s=1.0, goodput_5s=1.0,
        liar_share=0.0,
    )  # fmt: skip


def test_what_was_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [Cell(SWEEP, (("rtt", "20"),), TINY, ("lmetric", "mycelia")), Cell(IMBALANCE, (), TINY, ("mycelia",))]
    cache = Cache(tmp_path / "kept")
    first = measure(cells, 2, 1, cache)
    assert len(list((tmp_path / "kept").iterdir())) == 4  # (the second cell's runs are those of the first one)
    lost = next((tmp_path / "kept").iterdir())
    lost.write_text("{cut off")
    performed: list[Run] = []
    perform = outcomes

    def noted(runs: list[Run], jobs: int) -> Iterator[object]:
        performed.extend(runs)
        return iter(perform(runs, jobs))

    monkeypatch.setattr(evaluation_cache, "outcomes", noted)
    again = measure(cells, 2, 1, cache)
    assert len(performed) == 1 and f"{key_of(performed[0])}.json" == lost.name
    assert [one.result for one in again] == [one.result for one in first]


def test_a_key_is_of_all_that_an_outcome_depends_on(tmp_path: Path) -> None:
    matrices = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    for path, text in zip(matrices, ("1", "2", "1"), strict=True):
        path.write_text(text)
    runs = [
        Run(TINY, "mycelia", 1),
        Run(TINY, "mycelia", 2),
        Run(TINY, "lmetric", 1),
        Run(replace(TINY, zipf=0.5), "mycelia", 1),
        *(Run(replace(TINY, rtt_file=path), "mycelia", 1) for path in matrices),
    ]
    keys = [key_of(run) for run in runs]
    assert keys[4] == keys[6]  # the same content at another path
    assert len(set(keys)) == len(keys) - 1


def test_bars_and_losses_say_who_won() -> None:
    cell = Cell(SWEEP, (("rtt", "200"), ("zipf", "1.5")), TINY, ())
    ours, slow, fast = [outcome(1.0), outcome(1.1), outcome(0.9)], [outcome(4.0)] * 3, [outcome(0.5)] * 3
    won = Measured(cell, {"longest_prefix": slow, "mycelia": ours, "oracle": fast, "mycelia-no-rtt": fast})
    assert won.best_baseline("ttft_p99_s") == "longest_prefix"
    tails, *medians, hits = bars([won])
    assert tails.is_met and all(bar.is_met for bar in medians) and len(medians) == 2
    assert not hits.is_met and losses([won]) == []
    lost = Measured(cell, {"lmetric": fast, "longest_prefix": slow, "mycelia": ours})
    assert not bars([lost])[0].is_met
    (one, quantity, best, ratio), _ = losses([lost])
    assert (one, quantity, best) == (lost, "ttft_p99_s", "lmetric") and ratio.is_worse
    # Within noise.
    close = Measured(cell, {"lmetric": [outcome(0.8), outcome(1.2), outcome(0.9)], "mycelia": ours})
    assert losses([close]) and "worse by more than noise in 0 of 1" in bars([close])[0].measured
    uneven = Measured(Cell(IMBALANCE, (), TINY, ()), {"mycelia": [outcome(1.0, imbalance=2.0)] * 2, "oracle": ours})
    assert [bar.is_met for bar in bars([uneven])] == [False]


def test_the_page_has_every_section_of_the_plan() -> None:
    cells = plan(QUICK, None)
    every = [Measured(cell, {name: [outcome(1.0), outcome(2.0)] for name in cell.policies}) for cell in cells]
    text = page_of(every, MADE)
    for title in ("Bars", "Where Mycelia does not win", "The sweep", "Liars", "Each term of the cost left out"):
        assert f"## {title}\n" in text
    assert all(command_of(cell, 2) in text for cell in cells if cell.section != SWEEP)
    for block in text.split("\n\n"):
        assert len({line.count("|") for line in block.splitlines() if line.startswith("|")}) <= 1


@pytest.mark.parametrize("size", [FULL, QUICK])
def test_its_commands_are_real_and_give_the_same_scenario(size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Scenario, tuple[str, ...]]] = []

    def run_policies(scenario: Scenario, policies: tuple[str, ...], *_: object) -> None:
        asked.append((scenario, policies))

    monkeypatch.setattr("mycelia.bench.simulate.simulate.run_policies", run_policies)
    monkeypatch.setattr("mycelia.bench.simulate.simulate.show_simulation", lambda *_: None)
    for cell in plan(size, None):
        ran = CliRunner().invoke(cli, shlex.split(command_of(cell, 3))[1:], catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        assert asked.pop() == (cell.scenario, cell.policies)


def test_the_document_names_what_gives_its_numbers() -> None:
    assert told_command(None, False, 3, ()) == "make evaluation"
    told = told_command("quick", True, 5, ("no sharing",))
    assert told == "make evaluation ARGS=\"--quick --data DIR --seeds 5 --only 'no sharing'\""


def test_it_writes_its_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mycelia.bench.evaluation.make.QUICK", replace(QUICK, num_peers=3, slow_s=(1.0, 10.0)))
    told = ("--quick", "--only", "churn", "--seeds", "1", "--jobs", "1", "--keep", str(tmp_path / "kept"))
    ran = CliRunner().invoke(evaluate, [*told, "--out", str(tmp_path / "page.md")], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    text = (tmp_path / "page.md").read_text()
    assert "## Nodes that come and go" in text and "The sweep" not in text and str(tmp_path) not in text
