"""`mycelia bench swarm` without a swarm: its prompts, its fit, its bound, and its comparisons."""

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from mycelia.bench.plans import DIALOGUE, SwarmBench
from mycelia.bench.report.report import report_of
from mycelia.bench.swarm.calibrate import Machine, fit_prefill, speeds_of
from mycelia.bench.swarm.mmlu import draw_prompts, load_subjects, made_up_subjects
from mycelia.bench.swarm.prompts import draw_dialogues, prompts_of, user
from mycelia.bench.swarm.real_swarm import Outcome, Question, Run
from mycelia.bench.swarm.swarm import Round, bound_of, compare, questions_of, requests_of, rows_of, show_swarm
from mycelia.node.cli import cli
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.machine import EngineSpec
from mycelia.sim.replay import Swarm
from mycelia.sim.workload import MMLU_PREFIX_TOKENS

SPEC = EngineSpec(prefill_rate=160.0, decode_rate=60.0, slots=8, cache_blocks=96, grain=1)
SWARM = Swarm([SPEC] * 2, 0.08, (1.0, 0.9))


def rows(num_subjects: int) -> list[dict[str, object]]:
    return [
        {
            "subject": f"subject_{number}",
            "split": split,
            "index": index,
            "question": f"{split} {index} of {number}?",
            "choices": ["one", "two", "three", "four"],
            "answer": "C",
        }
        for number in range(num_subjects)
        for split, count in (("dev", 7), ("test", 3))
        for index in range(count)
    ]


def test_real_texts_have_the_usual_form(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(row) for row in rows(2))
    (tmp_path / "mmlu.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    first, second = load_subjects(tmp_path)
    assert (first.name, second.name) == ("subject_0", "subject_1")
    assert first.prefix.startswith("The following are multiple choice questions (with answers) about subject 0.\n\n")
    assert first.prefix.count("Answer: C\n\n") == 5
    assert first.questions[0] == "test 0 of 0?\nA. one\nB. two\nC. three\nD. four\nAnswer:"


@pytest.mark.parametrize("text", ["", "no JSON\n", '{"subject": "one"}\n'])
def test_a_folder_without_mmlu(tmp_path: Path, text: str) -> None:
    with pytest.raises(LocalError, match=r"mmlu\.jsonl"):
        load_subjects(tmp_path)
    (tmp_path / "mmlu.jsonl").write_text(text)
    with pytest.raises(LocalError, match=r"mmlu\.jsonl"):
        load_subjects(tmp_path)


def test_made_up_texts_are_as_long_as_the_real_ones() -> None:
    subjects = made_up_subjects(3, seed=1)
    assert [len(subject.prefix.split()) for subject in subjects] == list(MMLU_PREFIX_TOKENS)
    assert all(len(set(subject.questions)) == 3 for subject in subjects)
    assert subjects == made_up_subjects(3, seed=1)


def test_popular_subjects_come_often_and_questions_once() -> None:
    subjects = made_up_subjects(500, seed=1)
    prompts = draw_prompts(subjects, 500, 1.0, random.Random(1))
    assert len(set(prompts)) == 500
    counts = sorted((sum(prompt.startswith(one.prefix) for prompt in prompts) for one in subjects), reverse=True)
    assert sum(counts) == 500 and counts[0] > 0.15 * 500 > counts[10]
    assert draw_prompts(subjects[:1], 501, 1.0, random.Random(1)), "questions come again rather than run out"


@pytest.mark.parametrize(("start", "token", "depth"), [(0.02, 0.005, 3e-6), (0.0, 0.006, 0.0), (0.1, 0.005, 0.0)])
def test_the_fit_finds_what_made_the_times(start: float, token: float, depth: float) -> None:
    measured = [
        (cached, n, start + (n - cached) * (token + depth * (cached + n) / 2))
        for cached, n in [(0, 300), (0, 500), (0, 1_200), (300, 400), (500, 550), (1_200, 1_260)]
    ]
    found = fit_prefill(measured)
    for wanted, got in zip((start, token, depth), found, strict=True):
        assert got == pytest.approx(wanted, rel=1e-6, abs=1e-8)


def test_a_fit_of_noise_has_no_negative_cost() -> None:
    rng = random.Random(1)
    measured = [(0, rng.randint(200, 900), rng.uniform(0.5, 5.0)) for _ in range(12)]
    start, token, depth = fit_prefill(measured)
    assert token > 0 and start >= 0 and depth >= 0


def test_speeds_are_never_more_than_the_cores() -> None:
    assert speeds_of([3.0, 3.0, 4.5, 6.0], 2) == pytest.approx((1.0, 1.0, 2 / 3, 0.5))
    assert speeds_of([4.0, 3.0, 4.0, 6.0], 2) == pytest.approx((1.0, 1.0, 2 / 3, 0.5)), "the first one was disturbed"
    assert speeds_of([1.0, 2.0], 0.5) == pytest.approx((1.0, 0.5)), "one with more threads than cores"


def test_a_machine_that_became_slower_is_predicted_by_the_mean_of_the_times() -> None:
    fast = Machine(replace(SPEC, start_s=0.02, depth_s=3e-6), (1.0, 0.9, 0.4), prompts())
    slow = Machine(replace(SPEC, prefill_rate=80.0, decode_rate=20.0), (1.0, 0.9, 0.2), prompts())
    between = fast.halfway_to(slow)
    for cached, num_prompt in [(0, 500), (300, 1_200)]:
        both = fast.spec.prefill_s(cached, num_prompt), slow.spec.prefill_s(cached, num_prompt)
        assert between.spec.prefill_s(cached, num_prompt) == pytest.approx(sum(both) / 2)
    assert between.spec.decode_rate == pytest.approx(30.0)
    assert between.speeds == pytest.approx((1.0, 0.9, 4 / 15))
    assert slow.cold_rate() < between.cold_rate() < fast.cold_rate()
    same = slow.halfway_to(slow)
    assert same.speeds == pytest.approx(slow.speeds) and same.cold_rate() == pytest.approx(slow.cold_rate())


def test_the_bound_counts_tokens() -> None:
    assert bound_of([[1, 2, 3, 4], [1, 2, 9, 9, 9], [1, 2, 3, 4]]) == pytest.approx((2 + 3) / 13)
    assert bound_of([[1, 2], [3, 2]]) == 0.0


def test_dialogues_grow_and_their_prompts_follow_answers() -> None:
    asked = draw_dialogues(60, 1.0, random.Random(1))
    assert len(asked) == 60 and asked == draw_dialogues(60, 1.0, random.Random(1))
    assert {one.messages[0].role for one in asked} == {"system"}
    assert len({one.messages[0].content for one in asked if one.after is None}) < sum(
        one.after is None for one in asked
    )
    for place, one in enumerate(asked):
        assert 8 <= one.max_tokens <= 40
        if one.after is not None:
            assert one.after == place - 1 and one.pause_s > 0
            before = asked[one.after]
            assert one.messages[: len(before.messages)] == before.messages
            assert [message.role for message in one.messages[len(before.messages) :]] == ["assistant", "user"]
    sizes = [sum(len(message.content.split()) for message in one.messages) for one in asked]
    assert 700 < sum(sizes) / len(sizes) < 1_300


def test_a_client_stays_at_its_node_and_clients_make_the_rate() -> None:
    asked = draw_dialogues(400, 1.0, random.Random(1))
    drawn = questions_of(asked, 2.0, 4, seed=1)
    firsts = [question.at_s for question in drawn if question.after is None]
    assert firsts == sorted(firsts) and 400 / firsts[-1] == pytest.approx(2.0, rel=0.4)
    assert {question.entry for question in drawn} == {0, 1, 2, 3}
    for question, one in zip(drawn, asked, strict=True):
        if question.after is not None:
            assert question.entry == drawn[question.after].entry and question.at_s == one.pause_s


def test_workloads_of_a_plan() -> None:
    mmlu, dialogue = SwarmBench(num_requests=5), SwarmBench(num_requests=5, workload=DIALOGUE)
    assert all(one.after is None and one.max_tokens == 4 for one in prompts_of(mmlu, 0))
    assert prompts_of(dialogue, 0) != prompts_of(dialogue, 1)
    assert (mmlu.rate_of(0.5), dialogue.rate_of(0.5)) == (0.4, 1.0)
    assert SwarmBench(rate=3.0).rate_of(0.5) == 3.0 and SwarmBench(load=1.0).rate_of(0.5) == 0.5


def questions() -> list[Question]:
    return [Question(2.0 * place, place % 2, [user(f"text {place}")], 3) for place in range(10)]


def prompts() -> list[list[int]]:
    return [[7] * 200 + [place] * 40 for place in range(10)]


def test_the_simulator_is_asked_the_same() -> None:
    requests = requests_of(questions(), prompts())
    assert [(one.at_s, one.entry) for one in requests] == [(one.at_s, one.entry) for one in questions()]
    assert [list(one.prompt.tokens) for one in requests] == prompts()
    assert all(len(one.prompt.answer) == 3 for one in requests)
    assert len({one.prompt.answer for one in requests}) == len(requests)


def run(ttft_s: float, cached: int) -> Run:
    outcomes = [Outcome(ttft_s, 240, cached, 0) for _ in range(9)]
    return Run([*outcomes, Outcome(failure="gone")], [0.081, 0.085], 0.25)


def test_rows_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    requests = requests_of(questions(), prompts())
    pairs = [
        compare("mycelia", run(0.4, 180), requests, SWARM, 1),
        compare("random", run(1.0, 90), requests, SWARM, 1),
    ]
    rounds = [Round(0.75, pairs)]
    measured = rows_of(rounds, [Machine(SPEC, tuple(SWARM.speeds or ()), prompts())] * 3, 0.5)
    value = {row.name: row.value for row in measured}
    assert value["hit_ratio"] == 0.75 and value["cached_over_bound"] == 1.0 and value["random_hit_ratio"] == 0.375
    assert value["ttft_p50_s"] == 0.4 and value["ttft_p50_vs_random"] == value["ttft_p99_vs_random"] == 0.4
    assert "ttft_p50_vs_best" not in value, "there is one other policy"
    assert value["rtt_ms_min"] == 81.0 and value["requests"] == 10 and value["failed"] == 1
    assert value["sim_error_hit"] == pytest.approx(abs(value["sim_hit_ratio"] - 0.75) / 0.75, abs=1e-3)
    assert value["sim_error_ttft_p50"] == pytest.approx(abs(value["sim_ttft_p50_s"] - 0.4) / 0.4, abs=1e-3)
    assert value["sim_error_ttft_p99"] >= 0
    assert len({row.name for row in measured}) == len(measured)
    show_swarm(report_of("swarm", measured), rounds, as_json=False)
    shown = capsys.readouterr().out
    assert "0.750" in shown and "1 failed" in shown and "81.0 ms" in shown
    show_swarm(report_of("swarm", measured), rounds, as_json=True)
    assert json.loads(capsys.readouterr().out)["bench"] == "swarm"


def test_the_best_other_policy_is_that_of_each_run() -> None:
    requests = requests_of(questions(), prompts())
    waits = ({"mycelia": 0.4, "random": 1.0, "gorgo": 0.5}, {"mycelia": 0.4, "random": 0.8, "gorgo": 1.6})
    rounds = [
        Round(0.75, [compare(policy, run(ttft_s, 180), requests, SWARM, 1) for policy, ttft_s in of_run.items()])
        for of_run in waits
    ]
    measured = rows_of(rounds, [Machine(SPEC, tuple(SWARM.speeds or ()), prompts())], 0.5)
    best = next(row for row in measured if row.name == "ttft_p50_vs_best")
    assert (best.min, best.max) == (0.5, 0.8)


def test_a_swarm_that_answered_nothing_was_not_measured() -> None:
    nothing = replace(run(0.4, 0), outcomes=[Outcome(failure="gone")])
    with pytest.raises(LocalError, match="gone"):
        compare("mycelia", nothing, [], SWARM, 1)


@pytest.mark.parametrize(
    "wrong", [["--policy", "oracle"], ["--rtt", "nan"], ["--nodes", "1"], ["--data", "nowhere"], ["--workload", "x"]]
)
def test_a_wrong_command_line(wrong: list[str]) -> None:
    assert CliRunner().invoke(cli, ["bench", "swarm", *wrong]).exit_code != 0
