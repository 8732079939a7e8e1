"""The chance of reuse: its order, its decay, its bounds."""

from hypothesis import given
from hypothesis import strategies as st

from mycelia.proto.cache.value import HALF_LIFE_S, MAX_USES, Reuse

TIMES = st.floats(-1e6, 1e6)
REUSES = st.builds(Reuse, TIMES, st.floats(0, MAX_USES))


def test_recent_before_old_and_used_before_unused() -> None:
    now = 100.0
    assert Reuse(90.0).chance(now) > Reuse(80.0).chance(now)
    assert Reuse(90.0, 1.0).chance(now) > Reuse(90.0).chance(now)
    assert Reuse(40.0, 8.0).chance(now) > Reuse(90.0).chance(now), "nine times as likely, six times as old"
    assert Reuse(-4_000.0, 8.0).chance(now) < Reuse(0.0).chance(now)


def test_uses_fade_by_half_and_are_bounded() -> None:
    reuse = Reuse(0.0, 4.0)
    assert reuse.uses_at(HALF_LIFE_S) == 2.0 and reuse.uses_at(3 * HALF_LIFE_S) == 0.5
    reuse.touch(HALF_LIFE_S)
    assert (reuse.last_used_s, reuse.uses) == (HALF_LIFE_S, 2.0)
    reuse.count(2 * HALF_LIFE_S)
    assert reuse.uses == 2.0
    for _ in range(1_000):
        reuse.count(2 * HALF_LIFE_S)
    assert reuse.uses == MAX_USES
    assert reuse.uses_at(1e9) == 0.0


def test_a_past_now_moves_nothing_back() -> None:
    reuse = Reuse(50.0, 3.0)
    reuse.touch(10.0)
    assert reuse == Reuse(50.0, 3.0) and reuse.chance(10.0) == reuse.chance(50.0) == 4.0


@given(REUSES, TIMES)
def test_repeats_buy_at_most_a_bounded_time(reuse: Reuse, now: float) -> None:
    age_s = max(0.0, now - reuse.last_used_s)
    assert 0.0 < reuse.chance(now) <= (1.0 + MAX_USES) / (1.0 + age_s)
    assert reuse.chance(now + 1.0) <= reuse.chance(now)


@given(REUSES, st.integers(1, 10_000), REUSES, st.integers(1, 10_000))
def test_a_blend_lies_between(first: Reuse, tokens: int, second: Reuse, other_tokens: int) -> None:
    blend = first.blended(tokens, second, other_tokens)
    for mean, parts in (
        (blend.uses, sorted((first.uses, second.uses))),
        (blend.last_used_s, sorted((first.last_used_s, second.last_used_s))),
    ):
        assert parts[0] - 1e-6 <= mean <= parts[1] + 1e-6
