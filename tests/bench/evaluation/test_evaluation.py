"""``make evaluation``: it continues after an interruption, reports who won, and its commands are valid."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from mycelia.bench.evaluation import make
from mycelia.bench.evaluation.bars import (
    CONTENDERS,
    GOOD_2S,
    P50,
    P99,
    QUANTITIES,
    Measured,
    against_best,
    against_oracle,
    bars,
    contenders,
    losses,
)
from mycelia.bench.evaluation.cache import Cache, code_of, key_of
from mycelia.bench.evaluation.make import evaluate, measure, told_command
from mycelia.bench.evaluation.plan import (
    CONDITIONS,
    FULL,
    QUICK,
    RULES,
    SECTIONS,
    SYSTEMS,
    TERMS,
    Cell,
    Labels,
    Size,
    command_of,
    plan,
)
from mycelia.bench.evaluation.text import Made, data_of, grouped, page_of
from mycelia.bench.report.runs import Run, outcomes
from mycelia.node.cli import cli
from mycelia.sim.outcome import Outcome
from mycelia.sim.policies import ORACLES, OWN
from mycelia.sim.scenario import Comparison, Scenario
from mycelia.sim.traces import Trace, TraceRow

TINY = Scenario(rate=2.0, num_peers=4, rtt_s=0.02, warm_s=2.0, measured_s=10.0)
MADE = Made("make evaluation", "abc", "code", 2, 4, "a model", is_quick=True, has_recorded=False, num_planned=99)


def outcome(p99_s: float, goodput: float = 1.0) -> Outcome:
    usual: dict[str, object] = {one.name: 1 for one in fields(Outcome)}
    quantities = {"ttft_p50_s": p99_s / 2, "ttft_p99_s": p99_s, "goodput_2s": goodput, "goodput_5s": goodput}
    return Outcome(**{**usual, **quantities, "ttft_quantiles_s": (p99_s,) * 50})  # type: ignore[arg-type]


def seeds(*p99_s: float, goodput: float = 1.0) -> list[Outcome]:
    return [outcome(one, goodput) for one in p99_s]


def cell(
    section: str = RULES, workload: str = "mmlu", scenario: Scenario = TINY, policies: tuple[str, ...] = ()
) -> Cell:
    labels: Labels = (("workload", workload), ("rtt", "20"), ("load", "0.7"))
    if section == CONDITIONS:
        labels = (("condition", "loss"), *labels)
    return Cell(section, labels, scenario, policies)


# --- running ---------------------------------------------------------------------------------------------------------


def test_what_was_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [cell(policies=("lmetric", OWN)), cell(workload="again", policies=(OWN,))]
    cache = Cache(tmp_path / "kept")
    first = measure(cells, 2, 1, cache)
    assert len(list((tmp_path / "kept").iterdir())) == 4, "the second cell's runs are those of the first one"
    lost = next((tmp_path / "kept").iterdir())
    lost.write_text("{cut off")
    performed: list[Run] = []
    perform = outcomes

    def noted(runs: list[Run], jobs: int) -> Iterator[object]:
        performed.extend(runs)
        return perform(runs, jobs)

    monkeypatch.setattr(make, "outcomes", noted)
    again = measure(cells, 2, 1, cache)
    assert len(performed) == 1 and f"{key_of(performed[0])}.json" == lost.name
    assert [one.result for one in again] == [one.result for one in first]
    # With no time left nothing is run, and only what is complete counts.
    lost.unlink()
    partial = measure(cells, 2, 1, cache, stop_at=0.0)
    assert len(performed) == 1 and len(partial) == len([one for one in first if performed[0].policy not in one.result])


def test_a_key_is_of_all_that_an_outcome_depends_on(tmp_path: Path) -> None:
    matrices = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    for path, text in zip(matrices, ("1", "2", "1"), strict=True):
        path.write_text(text)
    runs = [
        Run(TINY, OWN, 1),
        Run(TINY, OWN, 2),
        Run(TINY, "lmetric", 1),
        Run(replace(TINY, zipf=0.5), OWN, 1),
        Run(replace(TINY, comparison=Comparison.SYSTEMS), OWN, 1),
        Run(replace(TINY, recorded=Trace.of([TraceRow(0.0, 1, 1, (0,))])), OWN, 1),
        Run(replace(TINY, recorded=Trace.of([TraceRow(0.0, 1, 1, (1,))])), OWN, 1),
        *(Run(replace(TINY, rtt_file=path), OWN, 1) for path in matrices),
    ]
    keys = [key_of(run) for run in runs]
    assert keys[-3] == keys[-1], "the same content at another path"
    assert len(set(keys)) == len(keys) - 1


def test_words_are_no_code() -> None:
    source = '"""One."""\n\ndef f():\n    """Two."""\n    return 1  # three\n\nx = 2\n"""Four."""\n'
    assert code_of(source) == code_of("def f():\n\n    return 1\nx = 2\n") != code_of("def f():\n    return 2\nx = 2\n")


def test_only_rules_that_were_good_once_are_run_on_every_seed() -> None:
    first = {f"rule{place}": outcome(1.0 + place, goodput=9.0 - place) for place in range(6)}
    first["quick"] = replace(outcome(99.0, goodput=0.1), ttft_p50_s=0.01)
    first |= {OWN: outcome(50.0), "mycelia-no-rtt": outcome(60.0), ORACLES[0]: outcome(70.0)}
    kept = contenders(cell(), first)
    assert kept == ["rule0", "rule1", "quick", OWN, "mycelia-no-rtt", ORACLES[0]]
    assert len([name for name in kept if name.startswith("rule")]) == CONTENDERS


# --- comparing -------------------------------------------------------------------------------------------------------


def test_the_best_other_rule_is_that_of_the_cell_and_the_quantity() -> None:
    slow, fast, early = seeds(4.0, 4.0), seeds(1.0, 1.0, goodput=0.5), seeds(0.1)
    one = Measured(cell(), {"gorgo": slow, "llmd": fast, "chwbl": early, OWN: seeds(2.0, 2.0), ORACLES[0]: seeds(1, 1)})
    assert one.others == ["gorgo", "llmd"], "those of all seeds"
    assert (one.best_other(P99), one.best_other(GOOD_2S)) == ("llmd", "gorgo")
    ratio = against_best(P99, [one])
    assert ratio is not None and ratio.value == 2.0
    oracle = against_oracle(P99, [one])
    assert oracle is not None and oracle.value == 2.0
    assert against_best(P99, [Measured(cell(), {OWN: slow})]) is None
    # Over cells: the geometric mean of 2 and 1/2.
    other = Measured(cell(), {"lmetric": seeds(4.0, 4.0), OWN: seeds(2.0, 2.0)})
    both = against_best(P99, [one, other])
    assert both is not None and both.value == pytest.approx(1.0)


def test_bars_and_losses_say_who_won() -> None:
    ours, slow, fast = seeds(1.0, 1.1, 0.9), seeds(4.0, 4.0, 4.0), seeds(0.5, 0.5, 0.5, goodput=2.0)
    won = Measured(cell(), {"gorgo": slow, OWN: ours, ORACLES[0]: fast, "mycelia-no-rtt": fast})
    assert all(bar.is_met for bar in bars([won])) and len(bars([won])) == len(QUANTITIES) and losses([won]) == []
    lost = Measured(cell(CONDITIONS), {"gorgo": slow, "lmetric": fast, OWN: ours})
    assert [bar.is_met for bar in bars([won, lost])] == [True] * 4 + [False] * 4
    found = losses([won, lost])
    assert {one.quantity for one in found} == set(QUANTITIES) and all(one.is_clear for one in found)
    assert all(one.measured is lost and one.other == "lmetric" for one in found)
    # Within noise.
    close = Measured(cell(), {"lmetric": seeds(0.8, 1.2, 0.9), OWN: ours})
    assert losses([close]) and not any(one.is_clear for one in losses([close]))
    # A median that is a little worse on every seed is within the bar.
    little = Measured(cell(), {"lmetric": seeds(1.0, 1.0, 1.0), OWN: seeds(1.04, 1.04, 1.04)})
    assert {one.quantity for one in losses([little]) if one.is_clear} == {P99}
    assert {one.quantity for one in losses([little])} == {P99, P50}
    systems = Measured(cell(SYSTEMS), {"gorgo": slow, OWN: ours})
    assert [bar.is_met for bar in bars([systems])] == [True]
    assert [bar.is_met for bar in bars([replace(systems, result={"gorgo": ours, OWN: ours})])] == [False]


def test_goodput_of_nothing_is_half_an_answer() -> None:
    one = Measured(cell(), {"gorgo": seeds(1.0, 1.0, goodput=0.0), OWN: seeds(1.0, 1.0, goodput=0.0)})
    assert one.ratio(GOOD_2S, "gorgo").value == 1.0
    assert one.values(GOOD_2S, OWN) == [0.05] * 2


# --- writing ---------------------------------------------------------------------------------------------------------


def made_up(size: Size) -> list[Measured]:
    return [Measured(one, {name: seeds(1.0, 2.0) for name in one.policies}) for one in plan(size, None)]


def test_the_page_has_every_section_of_the_plan() -> None:
    every = made_up(FULL)
    assert {one.cell.section for one in every} == set(SECTIONS)
    text = page_of(every, MADE)
    for title in ("Bars", "Rules with equal mechanisms", "Whole systems as they are", "Where Mycelia does not win",
                  "What each term is worth", "Run it"):  # fmt: skip
        assert f"## {title}\n" in text
    for group in grouped([one for one in every if one.cell.section == RULES], "workload"):
        assert f"| {group.name} | {len(group.cells)} |" in text
    for block in text.split("\n\n"):
        assert len({line.count("|") for line in block.splitlines() if line.startswith("|")}) <= 1
    assert "\n\n\n" not in text


def test_a_part_of_the_plan_makes_a_page_too() -> None:
    every = made_up(QUICK)
    for section in SECTIONS:
        text = page_of([one for one in every if one.cell.section == section] or every[:1], MADE)
        assert "## Run it" in text and "99 cells" in text


def test_the_data_of_the_details_has_every_number() -> None:
    every = made_up(QUICK)
    script = data_of(every, MADE)
    told = json.loads(script.removeprefix("const EVALUATION = ").removesuffix(";\n"))
    assert len(told["cells"]) == len(every)
    first = told["cells"][0]
    assert first["rules"][OWN]["ttft_p99_s"] == [1.0, 2.0] and first["command"] == command_of(every[0].cell, 2)
    page = Path(__file__).parents[3] / "docs" / "evaluation" / "index.html"
    assert 'src="cells.js"' in page.read_text() and "EVALUATION.cells" in page.read_text()


def test_everything_asked_for_is_in_the_plan(tmp_path: Path) -> None:
    (tmp_path / "internet_rtt_242_cities.json.gz").write_bytes(b"")
    row = '{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [0]}'
    for name in ("mooncake_conversation_trace", "hotspot_mix_trace"):
        (tmp_path / f"{name}.jsonl.gz").write_text(row)
    (tmp_path / "mtbench101_dialogues.jsonl.gz").write_text('{"turns": [{"user": "a", "assistant": "b"}]}')
    cells = plan(FULL, tmp_path)
    rules = [one for one in cells if one.section == RULES]
    assert len(rules) == 8 * 3 * 2 == len({one.labels for one in rules})
    assert all(one.scenario.comparison is Comparison.EQUAL for one in cells if one.section != SYSTEMS)
    assert all(one.scenario.comparison is Comparison.SYSTEMS for one in cells if one.section == SYSTEMS)
    assert {one.label("workload") for one in cells if one.section == TERMS} == {one.label("workload") for one in rules}
    assert cells[0].label("load") == "0.7" and plan(FULL, tmp_path, ["terms"])[0].section == TERMS


@pytest.mark.parametrize("size", [FULL, QUICK])
def test_its_commands_are_real_and_give_the_same_scenario(size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Scenario, tuple[str, ...]]] = []

    def run_policies(scenario: Scenario, policies: tuple[str, ...], *_: object) -> None:
        asked.append((scenario, policies))

    monkeypatch.setattr("mycelia.bench.simulate.simulate.run_policies", run_policies)
    monkeypatch.setattr("mycelia.bench.simulate.simulate.show_simulation", lambda *_: None)
    for one in plan(size, None):
        ran = CliRunner().invoke(cli, shlex.split(command_of(one, 3))[1:], catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        scenario, policies = asked.pop()
        assert scenario == one.scenario and set(one.policies) <= set(policies)


def test_the_document_names_what_gives_its_numbers() -> None:
    assert told_command(False, False, 3, ()) == "make evaluation"
    told = told_command(True, True, 5, ("rules",))
    assert told == 'make evaluation ARGS="--quick --data DIR --seeds 5 --only rules"'


def test_it_writes_its_document_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = replace(QUICK.workloads[0], warm_s=1.0, measured_s=10.0, drain_s=20.0)
    tiny = replace(QUICK, num_peers=3, workloads=(workload,), conditions=(), rules=("gorgo", OWN), systems=(OWN,))
    monkeypatch.setattr(make, "QUICK", tiny)
    told = ("--quick", "--seeds", "1", "--jobs", "1", "--keep", str(tmp_path / "kept"), "--out", str(tmp_path / "page"))
    early = CliRunner().invoke(evaluate, [*told, "--minutes", "0"])
    assert early.exit_code != 0 and "no cell is complete" in str(early.exception)
    ran = CliRunner().invoke(evaluate, told, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    text = (tmp_path / "page" / "evaluation.md").read_text()
    assert "2 of 2 cells" in text and str(tmp_path) not in text
    again = CliRunner().invoke(evaluate, [*told, "--minutes", "0"], catch_exceptions=False)
    assert again.exit_code == 0 and (tmp_path / "page" / "evaluation.md").read_text() == text
    assert (tmp_path / "page" / "evaluation" / "cells.js").read_text().startswith("const EVALUATION")
