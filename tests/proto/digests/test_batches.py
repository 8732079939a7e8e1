"""Gossip to neighbours in batches."""

from hypothesis import given
from hypothesis import strategies as st

from mycelia.proto.digests.batches import MAX_BATCH, MAX_BATCH_BYTES, Batches


def test_the_first_message_of_an_interval_goes_at_once_and_the_others_with_the_next() -> None:
    batches = Batches[str, str]()
    assert batches.add("x", b"1", "one", 9) == ["one"]
    assert batches.add("x", b"2", "two", 9) == batches.add("x", b"3", "three", 9) == []
    assert batches.add("y", b"2", "two", 9) == ["two"]
    assert batches.begin_interval() == {"x": ["two", "three"]}
    assert batches.add("x", b"4", "four", 9) == []  # (it has had a batch in this interval)
    assert batches.add("y", b"4", "four", 9) == ["four"]
    assert batches.begin_interval() == {"x": ["four"]}
    assert batches.begin_interval() == {}
    assert batches.add("x", b"5", "five", 9) == ["five"]


def test_a_neighbour_does_not_get_what_it_brought_meanwhile() -> None:
    batches = Batches[str, str]()
    for number in range(3):
        batches.add("x", b"%d" % number, str(number), 9)
    batches.drop("x", b"1")
    batches.drop("x", b"unknown")
    batches.drop("y", b"2")
    assert batches.begin_interval() == {"x": ["2"]}


def test_a_lost_neighbour_leaves_nothing_behind() -> None:
    batches = Batches[str, str]()
    for number in range(3):
        batches.add("x", b"%d" % number, str(number), 9)
    batches.forget("x")
    batches.forget("y")
    assert batches.begin_interval() == {}
    assert batches.add("x", b"4", "four", 9) == ["four"]


def test_a_full_batch_goes_at_once() -> None:
    batches = Batches[str, int]()
    for number in range(MAX_BATCH):
        batches.add("many", b"%d" % number, number, 9)
    assert batches.add("many", b"last", MAX_BATCH, 9) == list(range(1, MAX_BATCH + 1))
    for number in range(2):
        batches.add("large", b"%d" % number, number, MAX_BATCH_BYTES - 1)
    assert batches.add("large", b"last", 2, 1) == [1, 2]
    assert batches.begin_interval() == {}


@given(st.lists(st.tuples(st.sampled_from(["add", "drop", "tick"]), st.sampled_from("xy"), st.integers(1, 40_000))))
def test_each_message_is_sent_once_unless_it_was_dropped(steps: list[tuple[str, str, int]]) -> None:
    batches = Batches[str, int]()
    due: set[tuple[str, int]] = set()
    for number, (what, peer, num_bytes) in enumerate([*steps, ("tick", "x", 1)]):
        sent: dict[str, list[int]] = {}
        if what == "add":
            due.add((peer, number))
            sent = {peer: batches.add(peer, b"%d" % number, number, num_bytes)}
        elif what == "drop":
            batches.drop(peer, b"%d" % (number - 1))
            due.discard((peer, number - 1))
        else:
            sent = batches.begin_interval()
        for other, messages in sent.items():
            for message in messages:
                due.remove((other, message))
        batches.check_invariants()
    assert not due
