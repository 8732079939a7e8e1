"""Given requests through a simulated swarm: the cache counts tokens, engines share a machine, equal seeds are equal."""

import random
from itertools import islice

import pytest

from mycelia.sim.machine import EngineSpec
from mycelia.sim.prompts import Prompt
from mycelia.sim.replay import Request, Swarm, followers_of, replay
from mycelia.sim.sessions import arrivals

SPEC = EngineSpec(prefill_rate=100.0, decode_rate=50.0, slots=8, cache_blocks=96, grain=1)
RTT_S = 0.08


def prompt(prefix: int, question: int, num_prefix: int = 300, num_question: int = 50) -> Prompt:
    return Prompt((prefix,) * num_prefix + (1_000 + question,) * num_question, (1 << 30, 1 << 30))


def drawn(count: int = 60, rate: float = 0.5) -> list[Request]:
    rng = random.Random(1)
    times = islice(arrivals(rate, rng), count)
    return [Request(at_s, rng.randrange(4), prompt(rng.randrange(6), place)) for place, at_s in enumerate(times)]


def test_a_second_question_finds_the_tokens_of_its_prefix() -> None:
    requests = [Request(0.0, 0, prompt(1, 1)), Request(10.0, 0, prompt(1, 2)), Request(20.0, 1, prompt(2, 3))]
    records = replay(requests, Swarm([SPEC] * 2, RTT_S), "mycelia", 1)
    assert [record.cached_tokens for record in records] == [0, 300, 0]
    assert records[0].first_token_s - records[0].submitted_s == pytest.approx(3.5, abs=1e-3)
    assert records[1].first_token_s - records[1].submitted_s == pytest.approx(0.5 + (records[1].served_by > 0) * 0.16)


def test_a_token_may_cost_more_the_later_it_stands() -> None:
    spec = EngineSpec(100.0, 50.0, 8, 96, grain=1, start_s=0.1, depth_s=1e-5)
    assert spec.prefill_s(0, 400) == pytest.approx(0.1 + 4.0 + 400 * 200 * 1e-5)
    assert spec.prefill_s(300, 400) == pytest.approx(0.1 + 1.0 + 100 * 350 * 1e-5)


@pytest.mark.parametrize(
    ("spec", "num_prompt", "num_answer"),
    [
        (EngineSpec(1_000.0, 10.0, 1, 96, grain=1), 100, 2_000),  # (a long answer)
        (EngineSpec(25.0, 50.0, 1, 96, grain=1), 4_000, 10),  # (a long prompt, and a laptop)
    ],
)
def test_a_slow_node_is_not_given_up_while_it_works(spec: EngineSpec, num_prompt: int, num_answer: int) -> None:
    slower = EngineSpec(2.0, 10.0, 1, 96, grain=1)  # (where it enters)
    request = Request(0.0, 0, Prompt((1,) * num_prompt, tuple(range(2, 2 + num_answer))))
    (record,) = replay([request], Swarm([slower, spec, spec], RTT_S), "mycelia", 1)
    assert record.done_s and record.served_by > 0 and record.num_attempts == 1


def test_equal_seeds_are_equal_runs_and_everything_is_answered() -> None:
    runs = [replay(drawn(), Swarm([SPEC] * 4, RTT_S, (1.0, 1.0, 0.66, 0.5)), "random", 3) for _ in range(2)]
    assert [record.done_s for record in runs[0]] == [record.done_s for record in runs[1]]
    assert all(record.done_s for record in runs[0])


def test_a_shared_machine_is_slower_and_changes_no_prompt() -> None:
    own, shared = (replay(drawn(), Swarm([SPEC] * 4, RTT_S, speeds), "random", 3) for speeds in (None, (1.0, 0.5)))
    assert [record.num_prompt for record in own] == [record.num_prompt for record in shared]
    waits = [sum(record.first_token_s - record.submitted_s for record in records) for records in (own, shared)]
    assert waits[1] > waits[0]


def test_the_protocol_finds_more_than_chance() -> None:
    swarm = Swarm([SPEC] * 4, RTT_S, (1.0, 1.0, 0.66, 0.5))
    hits = [sum(r.cached_tokens for r in replay(drawn(), swarm, policy, 1)) for policy in ("mycelia", "random")]
    assert hits[0] > hits[1]


def test_a_prompt_goes_only_to_nodes_that_its_entry_is_connected_with() -> None:
    """Each of twelve nodes dials for two connections."""
    requests = [Request(float(place), 0, prompt(place, place)) for place in range(40)]
    records = replay(requests, Swarm([SPEC] * 12, RTT_S, connections=2), "random", 1)
    assert all(record.done_s for record in records)
    assert 2 <= len({record.served_by for record in records}) <= 6


def test_a_request_may_follow_the_answer_to_another_one() -> None:
    requests = [Request(1.0, 0, prompt(1, 1)), Request(5.0, 0, prompt(1, 2), after=0), Request(0.5, 1, prompt(2, 3))]
    first, second, other = replay(requests, Swarm([SPEC] * 2, RTT_S), "mycelia", 1)
    assert second.submitted_s == pytest.approx(first.done_s + 5.0)
    assert other.submitted_s == pytest.approx(first.submitted_s - 0.5)
    assert followers_of([None, 0, None, 0, 1]) == {None: [0, 2], 0: [1, 3], 1: [4]}
