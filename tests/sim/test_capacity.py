"""The meaning of a load of 1."""

import math
import random
from collections.abc import Iterator

import pytest

from mycelia.sim.capacity import Work, capacity, mean_work, rate_at
from mycelia.sim.machine import EngineSpec, draw_spec
from mycelia.sim.prompts import Piece, Session, Turn
from mycelia.sim.sessions import CONVERSATIONS, GENERATORS, USUAL_DECODE_RATE


def test_an_engine_answers_what_its_scarcer_resource_allows() -> None:
    work = Work(uncached_tokens=100, answer_tokens=51)
    prefilling = EngineSpec(prefill_rate=100.0, decode_rate=50.0, slots=8, cache_blocks=1)
    decoding = EngineSpec(prefill_rate=1_000.0, decode_rate=50.0, slots=2, cache_blocks=1)
    assert capacity([prefilling], work) == pytest.approx(1.0)
    assert capacity([decoding], work) == pytest.approx(2 / 1.1)
    assert capacity([prefilling, decoding, decoding], work) == pytest.approx(1 + 4 / 1.1)


def once(at_s: float, *pieces: Piece, answer: int = 1) -> Session:
    return Session(at_s, (Turn(pieces, Piece(10_000 + int(at_s), answer)),))


def test_work_is_what_one_cache_without_limits_leaves() -> None:
    again = [once(float(at), Piece(7, 128), Piece(8, 10), answer=4) for at in range(4)]
    assert mean_work(again) == Work(uncached_tokens=10, answer_tokens=4)
    unlike = [once(float(at), Piece(at, 100)) for at in range(4)]
    assert mean_work(unlike) == Work(uncached_tokens=100, answer_tokens=1)
    with pytest.raises(ValueError, match="no prompts"):
        mean_work([])


def test_a_cache_with_limits_drops_what_was_not_used_for_longest() -> None:
    texts = [Piece(1, 64), Piece(2, 64), Piece(3, 64)]
    in_turn = [once(float(at), texts[at % 3]) for at in range(12)]
    assert mean_work(in_turn, 1_000).uncached_tokens == 1, "the last token is always computed"
    assert mean_work(in_turn, 2 * 65).uncached_tokens == 64, "each was dropped just before it comes again"
    # A prefix stays longer than what follows it.
    said = (Piece(1, 640), Piece(2, 64))
    talk = Session(0.0, (Turn(said[:1], Piece(4, 1)), Turn(said, Piece(5, 1))), (1.0,))
    other = once(0.5, Piece(6, 64))
    assert mean_work([talk, other, once(9.0, *said)], 640 + 64 + 2).uncached_tokens == pytest.approx((64 + 1) / 2)


def test_prompts_count_in_order_of_time() -> None:
    answered = (Piece(1, 64), Piece(3, 25), Piece(4, 39))
    slow = Session(0.0, (Turn(answered[:1], Piece(3, 25)), Turn(answered, Piece(5, 1))), (10.0,))
    work = mean_work([slow, once(5.0, Piece(2, 64)), once(20.0, Piece(2, 64))])
    # Second half: the second turn (64 of its 128 tokens are a cached block) and the repeated text.
    assert work == Work((64 + 1) / 2, 1)


def test_work_depends_on_the_seed_and_not_on_the_rate() -> None:
    slow, fast, other = (
        mean_work(GENERATORS["mmlu"](rate, 1.0, random.Random(seed))) for rate, seed in ((1.0, 1), (50.0, 1), (1.0, 2))
    )
    assert slow == fast != other
    # A question and the rest of its prefix's last block, of some 600 tokens.
    assert 104 < slow.uncached_tokens < 200


def test_long_sessions_fill_the_caches_at_the_rate_of_their_load() -> None:
    specs = [draw_spec(random.Random(seed)) for seed in range(30)]

    def agents(rate: float) -> Iterator[Session]:
        return GENERATORS["agents"](rate, 1.0, random.Random(1))

    rate = rate_at(0.7, specs, agents)
    held = sum(spec.context_tokens for spec in specs)
    work = mean_work(agents(rate), held)
    assert capacity(specs, work) == pytest.approx(rate / 0.7, rel=0.1)
    kind = CONVERSATIONS["agents"]
    under_way = rate * (kind.pause_s * math.exp(0.5) + sum(kind.answer_tokens) / 2 / USUAL_DECODE_RATE)
    assert 2.5 < under_way * 25_000 / held < 4, "caches hold about a third of the sessions"
    assert rate_at(0.35, specs, agents) > 0.5 * rate, "fewer sessions leave more of each in the caches"
