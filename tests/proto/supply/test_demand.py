"""Claims about what is asked for: rates, subnets, and the bounds on what is kept."""

import random

import pytest

from mycelia.proto.supply.demand import (
    HALF_LIFE_S,
    HEARD_S,
    MAX_COUNTED,
    MAX_HEARD,
    MAX_OF_SUBNET,
    HeardDemand,
    OwnDemand,
    believed,
    rounded,
)
from mycelia.proto.wire.messages import MAX_DEMANDED, MAX_SMALL, Demand, ModelDemand


def told(refused: int, model: str = "m", coming: tuple[str, ...] = (), chooses: bool = False) -> Demand:
    return Demand(models=(ModelDemand(model=model, asked=refused, refused=refused),), coming=coming, chooses=chooses)


def test_the_largest_claim_is_not_believed_and_the_others_up_to_a_limit() -> None:
    assert believed([], 10) == believed([("a", 99)], 10) == 0
    assert believed([("a", 99), ("b", 4), ("c", 50)], 10) == 14


def test_a_subnet_with_many_keys_is_one_claim() -> None:
    heard = HeardDemand()
    for number in range(20):
        heard.hear(b"liar%d" % number, "192.0.2.0/24", told(MAX_SMALL), 0.0)
    assert heard.refused("m", 10.0, 0.0) == 0 and len(heard.choosers(0.0)) == 0
    heard.hear(b"other", "198.51.100.0/24", told(4), 0.0)
    assert heard.refused("m", 10.0, 0.0) == 4
    assert heard.num_fresh(0.0) == MAX_OF_SUBNET + 1
    heard.check_invariants()


def test_old_reports_and_replaced_ones_do_not_count() -> None:
    heard = HeardDemand()
    heard.hear(b"a", "a", told(8), 0.0)
    heard.hear(b"b", "b", told(8, coming=("m",), chooses=True), 0.0)
    heard.hear(b"c", "c", told(2, coming=("m",), chooses=True), 0.0)
    assert heard.refused("m", 100.0, 0.0) == 10 and heard.coming("m", 0.0) == 1 and len(heard.choosers(0.0)) == 2
    heard.hear(b"b", "b", told(0), 1.0)
    assert heard.refused("m", 100.0, 1.0) == 2 and heard.coming("m", 1.0) == 0
    assert heard.refused("m", 100.0, HEARD_S + 2) == 0 and heard.num_fresh(HEARD_S + 2) == 0


def test_reports_are_bounded() -> None:
    heard, rng = HeardDemand(), random.Random(1)
    for number in range(2_000):
        heard.hear(b"%d" % number, f"h{rng.randrange(600)}", told(1), float(number))
        heard.check_invariants()
    assert heard.num_fresh(2_000.0) == MAX_HEARD


def test_rates_are_those_of_the_last_while() -> None:
    own = OwnDemand()
    for second in range(0, 7_200, 60):  # one a minute, half of them refused
        own.ended("m", second % 120 == 0, float(second))
    assert own.asked("m", 7_200.0) == pytest.approx(60, rel=0.05)
    assert own.refused("m", 7_200.0) == pytest.approx(30, rel=0.1)
    assert own.asked("m", 7_200.0 + HALF_LIFE_S) == pytest.approx(30, rel=0.05)
    assert own.asked("other", 0.0) == own.refused("other", 0.0) == 0


def test_a_report_has_rounded_rates_of_known_models_and_is_bounded() -> None:
    own = OwnDemand()
    for number in range(2 * MAX_COUNTED):
        for _ in range(10):
            own.ended(f"m{number}", False, 0.0)
    rows = own.rows(lambda name: True, 0.0)
    assert len(rows) == MAX_DEMANDED and {row.asked for row in rows} == {rounded(own.asked(rows[0].model, 0.0))}
    assert own.rows(lambda name: False, 0.0) == ()
    assert [rounded(rate) for rate in (0.0, 0.4, 0.6, 1.0, 3.0, 700.0, 1e30)] == [0, 0, 1, 1, 4, 512, MAX_SMALL]
