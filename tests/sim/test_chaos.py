"""Faults of a simulated swarm: each one occurs, no answer is lost, and the harness would see a lost one."""

import pytest

from mycelia.proto.planes.request import Request
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.chaos import ChaosOutcome, ChaosScenario, chaos
from mycelia.sim.faults import CLOCK, FAULTS, FULL_DISK, KILL, LEAVE, FaultPlan


def run(
    seed: int = 1, kinds: tuple[str, ...] = FAULTS, num_peers: int = 8, length_s: float = 240.0, pace: float = 8.0
) -> ChaosOutcome:
    plan = FaultPlan(kinds, session_s=90.0, partition_every_s=80.0, pace=pace)
    scenario = ChaosScenario(num_peers, length_s=length_s, rate=0.6, plan=plan)
    return chaos(scenario, seed, lambda what: None)


@pytest.mark.parametrize("kind", FAULTS)
def test_no_fault_loses_an_answer(kind: str) -> None:
    outcome = run(kinds=(KILL, kind) if kind in (FULL_DISK, CLOCK) else (kind,), length_s=480.0)
    assert outcome.faults[kind] > 0
    assert len(outcome.answers) > 50 and not outcome.failures
    assert all(answer.is_exact for answer in outcome.answers)


def test_who_leaves_finishes_its_answers_first() -> None:
    """Only answers that take longer than the leaving node waits, which are rare, continue elsewhere in the middle."""
    outcomes = [run(seed, kinds=(LEAVE,), pace=40.0, length_s=480.0) for seed in (1, 2, 3)]
    num_left = sum(outcome.faults[LEAVE] for outcome in outcomes)
    assert num_left > 15
    moved = sum(answer.num_moves for outcome in outcomes for answer in outcome.answers)
    assert moved < num_left / 3, "12 of 42"
    outcome = outcomes[0]
    assert sum(answer.num_rejoins for answer in outcome.answers) <= 1, "an answer that took longer than its entry waits"
    assert any(answer.num_turned_away for answer in outcome.answers), "it took nothing new"
    assert not any(answer.num_retries for answer in outcome.answers), "which is no refusal for load"
    killed = run(kinds=(KILL,), length_s=480.0)
    assert any(answer.num_rejoins for answer in killed.answers)
    assert sum(answer.num_moves for answer in killed.answers) > killed.faults[KILL] / 2


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (2, 3))])
def test_all_faults_together_lose_no_answer(seed: int) -> None:
    outcome = run(seed)
    assert outcome.faults.total() > 20 and not outcome.failures
    assert all(answer.is_exact for answer in outcome.answers)
    assert any(answer.num_moves for answer in outcome.answers)
    assert any(answer.num_rejoins for answer in outcome.answers)


def test_equal_seeds_are_equal_chaos() -> None:
    assert run(4, length_s=60.0).trace == run(4, length_s=60.0).trace != run(5, length_s=60.0).trace


def test_an_answer_that_begins_anew_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Request.begin_attempt

    def forgetful(self: Request, *args: object) -> object:
        self.generated.clear()
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Request, "begin_attempt", forgetful)
    outcome = run()
    assert any(not answer.is_exact for answer in outcome.answers if answer.is_finished)


def test_an_unknown_workload_is_an_error() -> None:
    with pytest.raises(LocalError, match="no workload poems"):
        chaos(ChaosScenario(workload="poems"), 1, lambda what: None)
