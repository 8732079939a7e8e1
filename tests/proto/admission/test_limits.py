"""Token buckets by key, in bounded memory."""

from hypothesis import given
from hypothesis import strategies as st

from mycelia.proto.admission.limits import Limits, TokenBucket


def test_keys_that_were_quiet_are_forgotten() -> None:
    """Otherwise a node that runs for months keeps a bucket of each stranger that it met, thousands in each table."""
    limits = Limits[int](rate=1.0, burst=2.0)
    for number in range(1_000):
        assert limits.take(number, 10.0 * number)
        assert len(limits) <= 2


def test_no_key_is_forgotten_that_owes_something_while_there_is_room() -> None:
    limits = Limits[int](rate=0.001, burst=1.0, max_keys=8)
    assert limits.take(0, 0.0)
    for number in range(1, 8):
        assert limits.take(number, float(number))
    assert len(limits) == 8 and not limits.take(0, 9.0)
    assert limits.take(8, 10.0) and len(limits) == 8


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 5)), max_size=80))
def test_what_is_forgotten_makes_no_difference(taken: list[tuple[int, float]]) -> None:
    """The same as with a bucket for each key for ever."""
    limits, buckets, now = Limits[int](rate=0.5, burst=2.0), dict[int, TokenBucket](), 0.0
    for key, pause_s in taken:
        now += pause_s
        bucket = buckets.setdefault(key, TokenBucket(0.5, 2.0, now))
        assert limits.has(key, now) == bucket.has(now)
        assert limits.take(key, now) == bucket.take(now)
