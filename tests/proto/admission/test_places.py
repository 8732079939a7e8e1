import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.proto.admission.places import TURNOVER_S, Admission, Rank
from mycelia.proto.admission.subnets import LOCAL

NEAR, OTHER = f"{LOCAL}127.0.0.1", f"{LOCAL}127.0.0.2"


def filled(admission: Admission[int], subnet: str, num_holders: int, first: int = 0) -> list[int]:
    """The holders that got a place, of ``num_holders`` that ask one a second."""
    numbers = range(first, first + num_holders)
    return [one for one in numbers if admission.admit(one, b"%d" % one, subnet, float(one)) is not None]


def test_one_subnet_alone_leaves_room_for_others() -> None:
    admission: Admission[int] = Admission(128, 3, num_kept=16, own_after_s=1_000.0)
    assert len(filled(admission, NEAR, 200)) == 96
    assert len(filled(admission, OTHER, 200, 1_000)) > 8


def test_when_all_is_taken_the_idlest_of_the_greediest_goes() -> None:
    admission: Admission[int] = Admission(8, 1, own_after_s=1_000.0)
    assert filled(admission, NEAR, 3) == [0, 1, 2]
    for subnet in ("a", "b", "c", "d", "e"):
        filled(admission, subnet, 1, 100 * ord(subnet))
    assert len(admission) == 8
    admission.use(b"0", 1e6)
    assert admission.admit(5_000, b"5000", "new", 5_000.0) == [1]
    admission.check_invariants()


def test_what_is_proven_goes_only_to_those_that_hold_much_less() -> None:
    admission: Admission[int] = Admission(8, 1, own_after_s=1_000.0)
    held = filled(admission, NEAR, 8)
    assert len(held) == 6
    assert filled(admission, "elsewhere", 1, 100) == [100]
    assert filled(admission, OTHER, 1, 200) == [200]
    for one in (*held, 100, 200):
        admission.raise_rank(b"%d" % one, Rank.PROVEN)
    assert admission.admit(300, b"300", OTHER, 300.0) == [0]
    assert admission.admit(301, b"301", OTHER, 301.0) is None, "it would hold half as many"
    assert admission.admit(302, b"302", NEAR, 302.0) is None, "its own subnet is no reason"


@pytest.mark.parametrize("busy", [True, False])
def test_who_is_busy_or_kept_goes_for_nobody(busy: bool) -> None:
    admission: Admission[int] = Admission(4, 1)
    held = filled(admission, NEAR, 4)
    if not busy:
        for one in held:
            admission.keep(one)
    assert admission.admit(100, b"100", OTHER, 1e6, busy={b"%d" % one for one in held} if busy else ()) == []
    assert admission.admit(101, b"101", "far", 1e6, busy={b"%d" % one for one in (*held, 100)}) is None


def test_an_old_idle_one_makes_room_for_its_own_subnet_and_its_own_key() -> None:
    admission: Admission[int] = Admission(100, 2, own_after_s=10.0)
    assert [admission.admit(one, b"same", NEAR, float(one)) for one in (1, 2, 3)] == [[], [], None]
    assert admission.admit(4, b"same", NEAR, 12.0) == [1]


def test_a_known_key_gets_what_is_kept_and_gives_up_to_nobody() -> None:
    admission: Admission[int] = Admission(8, 1, num_kept=4)
    assert len(filled(admission, NEAR, 4)) == 4
    known = [100, 101, 102, 103, 104]
    assert [admission.admit(one, b"%d" % one, NEAR, 1.0, is_known=True) for one in known] == [[], [], [], [], [0]]
    admission.check_invariants()
    assert admission.rank_of(104) == Rank.KEPT and admission.subnet_of(104) == NEAR
    proven: Admission[int] = Admission(8, 1, num_kept=4)
    filled(proven, "far", 8)
    assert proven.admit(100, b"100", "farther", 1e6, is_proven=True) == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "release", "hello", "keep", "use"]),
        st.integers(0, 40),
        st.integers(0, 6),
        st.sampled_from([NEAR, OTHER, "8.8.8.0/24", "9.9.9.0/24", ""]),
        st.booleans(),
    ),
    max_size=120,
)


@given(STEPS)
def test_the_books_fit_whatever_happens(steps: list[tuple[str, int, int, str, bool]]) -> None:
    admission: Admission[int] = Admission(12, 3, num_kept=2, own_after_s=5.0)
    alive: set[int] = set()
    for now, (step, holder, number, subnet, is_known) in enumerate(steps):
        key = b"%d" % number
        if step == "admit" and holder not in alive:
            given_up = admission.admit(holder, key, subnet, float(now), is_known)
            if given_up is not None:
                assert set(given_up) <= alive and len(given_up) <= 1
                alive -= set(given_up)
                alive.add(holder)
        elif step == "release":
            admission.release(holder)
            alive.discard(holder)
        elif step == "hello":
            admission.raise_rank(key, Rank.PROVEN)
        elif step == "keep":
            admission.keep(holder)
        elif step == "use":
            admission.use(key, float(now))
        assert len(admission) == len(alive) <= 12
        admission.check_invariants()


def crowd(settled_after_s: float = 60.0) -> Admission[int]:
    """Eight proven holders of different subnets, one a second: all places are taken."""
    admission: Admission[int] = Admission(8, 1, settled_after_s=settled_after_s)
    for one in range(8):
        assert admission.admit(one, b"%d" % one, f"subnet {one}", float(one)) == []
        admission.raise_rank(b"%d" % one, Rank.PROVEN)
    return admission


def test_a_newcomer_finds_a_place_where_all_are_proven_and_settled() -> None:
    admission = crowd()
    assert admission.admit(100, b"100", "new", 30.0) is None, "they have not met others yet"
    assert admission.admit(101, b"101", "new", 70.0) == [4], "the longest of the younger half"
    admission.raise_rank(b"101", Rank.PROVEN)
    assert admission.admit(102, b"102", "newer", 70.0 + TURNOVER_S / 2) is None, "one at a time"
    assert admission.admit(103, b"103", "newer", 70.0 + TURNOVER_S) == [5]
    admission.check_invariants()


def test_no_crowd_of_newcomers_pushes_out_the_half_that_is_there_for_longest() -> None:
    admission, now = crowd(), 1_000.0
    for number in range(100, 400):
        admission.admit(number, b"%d" % number, f"subnet {number}", now)
        admission.raise_rank(b"%d" % number, Rank.PROVEN)
        now += 10.0
    assert all(admission.subnet_of(one) for one in range(4))
    admission.check_invariants()


def test_a_settled_holder_that_is_busy_or_kept_stays() -> None:
    admission = crowd()
    admission.keep(4)
    assert admission.admit(100, b"100", "new", 100.0, busy={b"5", b"6", b"7"}) is None
    assert admission.admit(101, b"101", "new", 100.0, busy={b"5", b"6"}) == [7]
