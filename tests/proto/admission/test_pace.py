import math

from hypothesis import given
from hypothesis import strategies as st

from mycelia.proto.admission import pace
from mycelia.proto.admission.pace import Pace, Rate
from mycelia.proto.admission.subnets import LOCAL

FAR, NEAR = "8.8.8.0/24", f"{LOCAL}127.0.0.1"


def a_pace() -> Pace:
    return Pace(Rate(10.0, 20.0), Rate(20.0, 40.0), Rate(1_000.0, 1_000.0))


def test_a_burst_passes_and_what_follows_waits() -> None:
    paced = a_pace()
    assert [paced.delay_s(b"a", FAR, 10.0, 0.0, math.inf) for _ in range(4)] == [0.0, 0.0, 1.0, 2.0]
    assert paced.delay_s(b"a", FAR, 10.0, 0.0, 2.0) is None, "too long to wait for, and not counted"
    assert paced.delay_s(b"a", FAR, 10.0, 3.0, 2.0) == 0.0


def test_a_subnet_has_a_rate_of_its_own_and_a_private_network_a_larger_one() -> None:
    paced = a_pace()
    assert [paced.delay_s(b"%d" % key, FAR, 20.0, 0.0, math.inf) for key in range(4)] == [0.0, 0.0, 1.0, 2.0]
    assert not any(paced.delay_s(b"%d" % key, NEAR, 20.0, 0.0, math.inf) for key in range(10, 40))
    assert paced.delay_s(b"elsewhere", "9.9.9.0/24", 20.0, 0.0, math.inf) == 0.0


def test_those_that_were_quiet_are_forgotten() -> None:
    paced = a_pace()
    for number in range(2 * pace.MAX_SENDERS):
        paced.delay_s(b"%d" % number, FAR, 1.0, 0.0, math.inf)
    assert len(paced) == pace.MAX_SENDERS


def test_a_month_of_strangers_leaves_nothing() -> None:
    paced = a_pace()
    for number in range(1_000):
        paced.delay_s(b"%d" % number, FAR, 1.0, 60.0 * number, math.inf)
        assert len(paced) <= 2 + pace.FORGOTTEN


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0.5, 30)), max_size=60))
def test_no_more_is_done_than_the_rate_and_one_burst(arrivals: list[tuple[float, float]]) -> None:
    """Work is done when its delay is over."""
    paced, now, done = a_pace(), 0.0, []
    for pause_s, tokens in arrivals:
        now += pause_s
        delay_s = paced.delay_s(b"a", NEAR, tokens, now, math.inf)
        assert delay_s is not None
        done.append((now + delay_s, tokens))
    times = sorted(at for at, _ in done)
    for place, begin in enumerate(times):
        for end in times[place:]:
            taken = sum(tokens for at, tokens in done if begin <= at <= end)
            assert taken <= 20.0 + 10.0 * (end - begin) + 30.0 + 1e-6
