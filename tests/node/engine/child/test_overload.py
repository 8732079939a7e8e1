"""An overloaded engine: its retry times are true, and greedy clients do not harm others."""

import random
import statistics

import pytest

from mycelia.node.engine.child.job import Job, Limits, Refusal
from mycelia.node.engine.child.scheduler import Scheduler
from mycelia.proto.admission.fair_queue import ANSWER_WEIGHT
from tests import profiles
from tests.node.engine.child.overload import MAX_ANSWER, MAX_PROMPT, SLOTS, WARM_UP_S, Arrival, poisson, run

HOG, GREEDY, BUSY, SMALL = b"hog", b"greedy", b"busy", b"small"
UNTIL_S = 400.0
SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (2, 3))]


def crowd(seed: int) -> list[Arrival]:
    """About thirteen arrivals a second, at an engine that serves about one."""
    rates = {HOG: 10.0, GREEDY: 2.0, BUSY: 1.0, SMALL: 0.1}
    return [one for client, rate in rates.items() for one in poisson(seed, client, rate, UNTIL_S)]


def test_who_is_refused_is_told_the_truth() -> None:
    """Tries for some refusals when a client that asks again and again is accepted."""
    ratios, num_tried = [], 60
    for seed in (1, 2) if profiles.is_full() else (1,):
        arrivals = crowd(seed)
        late = [one for one in arrivals if WARM_UP_S < one.at < UNTIL_S - 60]
        result = run(arrivals, UNTIL_S, knocking=random.Random(seed).sample(late, num_tried))
        told = {one.arrival: one.retry_after_s for one in result.refused if WARM_UP_S < one.arrival.at < UNTIL_S - 60}
        assert max(told.values()) < 30
        for one, let_in_s in result.let_in_s.items():
            assert let_in_s is not None
            ratios.append(let_in_s / told[one])
    assert len(ratios) >= 0.8 * num_tried, "nearly all are refused"
    assert 0.5 <= statistics.median(ratios) <= 2
    assert sum(0.5 <= ratio <= 2 for ratio in ratios) >= 0.9 * len(ratios), sorted(ratios)


def test_who_comes_when_told_gets_as_much_as_who_knocks_all_the_time() -> None:
    arrivals = [*poisson(1, HOG, 20.0, UNTIL_S), *poisson(1, GREEDY, 1.0, UNTIL_S)]
    service = run(arrivals, UNTIL_S, obedient=[GREEDY]).service
    assert service[GREEDY] == pytest.approx(service[HOG], rel=0.1)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_hog_delays_a_small_client_no_more_than_an_equal_competitor_does(seed: int) -> None:
    small = poisson(seed, SMALL, 0.2, 2 * UNTIL_S)
    waits_s = {}
    for rate in (0.2, 1.0, 10.0):
        waits = run([*small, *poisson(seed, HOG, rate, 2 * UNTIL_S)], 2 * UNTIL_S).waits_s
        waits_s[rate] = statistics.mean(waits[SMALL])
        if rate == 10.0:
            assert statistics.mean(waits[HOG]) > 10 * waits_s[rate], "the hog waits for itself"
    # Beside a competitor that takes the rest of the engine, ten times its load adds almost nothing.
    assert waits_s[10.0] < 1.3 * waits_s[1.0] + 0.2
    # Compared with idle slots the delay is one or two starts: 2.5 s, where a request takes 6 s.
    assert waits_s[10.0] - waits_s[0.2] < 2.5


@pytest.mark.parametrize("seed", SEEDS)
def test_clients_that_always_wait_are_served_alike_whatever_they_ask(seed: int) -> None:
    rivals = [HOG, GREEDY, BUSY]
    result = run(crowd(seed), UNTIL_S, rivals=rivals)
    # The bound of the paper, with the longest answers in all slots.
    assert result.lead <= 2 * max(MAX_PROMPT, ANSWER_WEIGHT * SLOTS * MAX_ANSWER)
    shares = [result.service[client] for client in rivals]
    assert max(shares) < 1.1 * min(shares)


def test_the_first_refusal_of_all_goes_by_what_is_left_of_the_running_jobs() -> None:
    limits = Limits(num_cells=10_000, context_tokens=5_000, num_vocab=10, slots=2, max_waiting=2)
    sched = Scheduler(limits)
    sched.accounts.measured(prefill_rate=100.0, decode_rate=10.0)
    for key in range(2):
        assert isinstance(sched.submit(key, [key] * 1_000, 50, 0.0, client=b"%d" % key), Job)
    while sched.admit(0.0):
        pass
    assert isinstance(sched.submit(2, [1], 1, 0.0), Job) and sched.admit(0.0) is None
    refusal = sched.submit(3, [1], 1, 0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after_s == pytest.approx(2 * (1_000 / 100 + 50 / 10) / 2)
    # The time that passes reveals an engine that stalls.
    refusal = sched.submit(4, [1], 1, 200.0)
    assert isinstance(refusal, Refusal) and refusal.retry_after_s > 20
