"""The meaning of a load of 1."""

import random

import pytest

from mycelia.sim.capacity import Work, capacity, mean_work
from mycelia.sim.engine import EngineSpec
from mycelia.sim.sessions import GENERATORS, Prompt, Session


def test_an_engine_answers_what_its_scarcer_resource_allows() -> None:
    work = Work(uncached_tokens=100, answer_tokens=51)
    prefilling = EngineSpec(prefill_rate=100.0, decode_rate=50.0, slots=8, cache_blocks=1)
    decoding = EngineSpec(prefill_rate=1_000.0, decode_rate=50.0, slots=2, cache_blocks=1)
    assert capacity([prefilling], work) == pytest.approx(1.0)
    assert capacity([decoding], work) == pytest.approx(2 / 1.1)
    assert capacity([prefilling, decoding, decoding], work) == pytest.approx(1 + 4 / 1.1)


def test_work_is_what_one_cache_without_limits_leaves() -> None:
    prompt = Prompt((7,) * 128 + (8,) * 10, (9,) * 4)
    again = [Session(float(at), (prompt,)) for at in range(4)]
    assert mean_work(again) == Work(uncached_tokens=10, answer_tokens=4)
    unlike = [Session(float(at), (Prompt((at,) * 100, (at,)),)) for at in range(4)]
    assert mean_work(unlike) == Work(uncached_tokens=100, answer_tokens=1)
    with pytest.raises(ValueError, match="no prompts"):
        mean_work([])


def test_work_depends_on_the_seed_and_not_on_the_rate() -> None:
    slow, fast, other = (
        mean_work(GENERATORS["mmlu"](rate, 1.0, random.Random(seed))) for rate, seed in ((1.0, 1), (50.0, 1), (1.0, 2))
    )
    assert slow == fast != other
    # A question and the rest of its prefix's last block, of some 600 tokens.
    assert 104 < slow.uncached_tokens < 200
