"""Lookups in the Kademlia table: which peers they ask, when they end, and what dishonest peers can make of them."""

import itertools
import random

import pytest

from mycelia.proto.kademlia.lookup import MAX_ASKED, WIDTH, Lookup

ENOUGH = 3


def run(
    lookup: Lookup[int], told_by: dict[int, list[int]], dead: set[int], rng: random.Random
) -> tuple[int, list[int]]:
    """Runs a lookup with answers in any order. Returns how many ended, and the peers still asked. A peer's point is the
    peer itself."""
    num_ended = 0
    under_way: list[int] = []
    while not lookup.is_over:
        under_way += lookup.next_peers()
        assert 0 < len(under_way) <= WIDTH
        peer = under_way.pop(rng.randrange(len(under_way)))
        num_ended += 1
        if peer in dead:
            lookup.failed(peer)
            continue
        for other in told_by.get(peer, []):
            lookup.hear(other, other)
        lookup.answered(peer)
    return num_ended, under_way


@pytest.mark.parametrize("seed", range(20))
def test_it_ends_when_the_nearest_live_peers_have_answered(seed: int) -> None:
    rng = random.Random(seed)
    peers = rng.sample(range(1, 2**32), 200)
    dead = set(rng.sample(peers, 40))
    target = rng.randrange(2**32)
    near = sorted(peers, key=lambda peer: peer ^ target)
    lookup = Lookup[int](target, ENOUGH)
    for peer in near[-20:]:
        lookup.hear(peer, peer)
    dead -= set(near[-20:])
    told_by = dict.fromkeys(peers, near[:20])
    _, still_asked = run(lookup, told_by, dead, rng)
    live = [peer for peer in near if peer not in dead and peer not in still_asked]
    assert lookup.nearest_answered()[:ENOUGH] == live[:ENOUGH], f"seed {seed}"


def test_it_ends_where_nobody_answers_and_where_nobody_is_known() -> None:
    assert Lookup[int](0, ENOUGH).is_over
    lookup = Lookup[int](0, ENOUGH)
    for peer in range(1, 30):
        lookup.hear(peer, peer)
    assert run(lookup, {}, set(range(1, 30)), random.Random(1)) == (29, []) and not lookup.nearest_answered()


def test_liars_who_always_know_somebody_nearer_are_asked_a_bounded_number_of_times() -> None:
    lookup, nearer = Lookup[int](0, ENOUGH), itertools.count(2**40, -1)
    lookup.hear(2**41, 2**41)
    num_asked = 0
    while not lookup.is_over:
        for peer in lookup.next_peers():
            num_asked += 1
            for other in itertools.islice(nearer, 20):
                lookup.hear(other, other)
            lookup.answered(peer)
    assert num_asked == MAX_ASKED


def test_it_is_over_once_it_is_stopped_and_each_peer_is_heard_of_once() -> None:
    lookup = Lookup[int](0, ENOUGH)
    assert lookup.hear(5, 5) and not lookup.hear(5, 0)
    assert [lookup.next_peers() for _ in range(2)] == [[5], []] and not lookup.is_over
    lookup.stop()
    assert (lookup.is_over, lookup.next_peers()) == (True, [])
