"""Made-up workloads: their rates, their lengths, and what prompts share."""

import random
from collections.abc import Iterator
from itertools import islice, takewhile
from statistics import fmean

import pytest

from mycelia.proto.wire.blocks import STRIDE, block_hashes
from mycelia.sim.prompts import Session
from mycelia.sim.sessions import (
    CONVERSATIONS,
    GENERATORS,
    USUAL_DECODE_RATE,
    arrivals,
    hit_bound,
    in_bursts,
    no_sharing,
)
from mycelia.sim.world import NAMESPACE

RATE = 2.0


def asked_at(sessions: Iterator[Session], until: float) -> list[tuple[float, int]]:
    """(time, tokens) of all prompts until then, if answers take their usual time."""
    asked = []
    for session in takewhile(lambda session: session.at_s < until, sessions):
        at_s = session.at_s
        for turn, think_s in zip(session.turns, (*session.think_s, 0.0), strict=True):
            if at_s < until:
                asked.append((at_s, turn.num_tokens))
            at_s += turn.answer.length / USUAL_DECODE_RATE + think_s
    return asked


@pytest.mark.parametrize("name", list(GENERATORS))
def test_prompts_come_at_the_rate_asked_for_from_the_start(name: str) -> None:
    asked = asked_at(GENERATORS[name](RATE, 1.0, random.Random(1)), 1_200.0)
    thirds = [sum(begins <= at_s < begins + 400 for at_s, _ in asked) / 400 for begins in (0, 400, 800)]
    assert thirds == pytest.approx([RATE] * 3, rel=0.2), name


@pytest.mark.parametrize(
    ("name", "mean", "least", "most"),
    [("multi-turn", 1_200, 120, 6_000), ("tools", 2_400, 720, 7_000), ("agents", 25_000, 8_000, 60_000)],
)
def test_prompts_are_as_long_as_the_table_says(name: str, mean: int, least: int, most: int) -> None:
    lengths = [tokens for _, tokens in asked_at(GENERATORS[name](RATE, 1.0, random.Random(1)), 1_000.0)]
    assert fmean(lengths) == pytest.approx(mean, rel=0.2)
    assert min(lengths) >= least and max(lengths) <= most


@pytest.mark.parametrize("name", list(CONVERSATIONS))
def test_a_conversation_grows_after_a_prefix_that_all_may_share(name: str) -> None:
    kind = CONVERSATIONS[name]
    session = next(one for one in GENERATORS[name](0.01, 1.0, random.Random(2)) if len(one.prompts) > 2)
    assert len(session.think_s) == len(session.prompts) - 1
    first, second, *_ = session.prompts
    assert second.tokens[: len(first.tokens) + len(first.answer)] == first.tokens + first.answer
    grown = len(second.tokens) - len(first.tokens) - len(first.answer)
    assert kind.next_tokens[0] <= grown <= kind.next_tokens[1]
    assert kind.answer_tokens[0] <= len(first.answer) <= kind.answer_tokens[1]
    assert kind.system_tokens[0] <= first.open_tokens <= kind.system_tokens[1]
    assert len(set(first.tokens[: first.open_tokens])) == 1


def bound(name: str) -> float:
    prompts = []
    for session in islice(GENERATORS[name](0.01, 1.0, random.Random(1)), 200):
        for prompt in session.prompts[:8]:
            chain = block_hashes(NAMESPACE, prompt.tokens + prompt.answer)
            prompts.append((chain, len(prompt.tokens) // STRIDE, len(prompt.tokens)))
    return hit_bound(prompts, [True] * len(prompts), STRIDE)


def test_only_some_workloads_share() -> None:
    assert bound("no-sharing") == 0.0
    assert 0.4 < bound("mmlu") < 0.9
    assert 0.6 < bound("multi-turn") < 0.95
    assert 0.8 < bound("tools") < 0.97


def test_bursts_keep_the_rate_and_every_session() -> None:
    evenly = list(islice(no_sharing(5.0, 1.0, random.Random(1)), 500))
    bursts = list(in_bursts(iter(evenly), 10.0))
    assert [one.turns for one in bursts] == [one.turns for one in evenly]
    assert all(one.at_s % 20.0 < 10.0 for one in bursts)
    assert all(abs(one.at_s - other.at_s) <= 10.0 for one, other in zip(bursts, evenly, strict=True))
    assert [one.at_s for one in bursts] == sorted(one.at_s for one in bursts)


def test_arrivals_are_a_poisson_process() -> None:
    times = list(islice(arrivals(4.0, random.Random(1)), 2_000))
    assert times[-1] == pytest.approx(500.0, rel=0.1)
