"""The index compared with a naive model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.proto.digests.index import Index
from tests.profiles import examples

PEERS = [b"a", b"b", b"c", b"d"]


def naive(held: dict[bytes, set[int]], chain: list[int]) -> dict[bytes, int]:
    result = {}
    for peer, blocks in held.items():
        depth = 0
        while depth < len(chain) and chain[depth] in blocks:
            depth += 1
        if depth:
            result[peer] = depth
    return result


@given(
    depths=st.lists(st.integers(0, 40), min_size=4, max_size=4),
    branch=st.lists(st.integers(0, 40), min_size=4, max_size=4),
    length=st.integers(0, 40),
)
@pytest.mark.properties
@settings(max_examples=examples(150), deadline=None)
def test_matches_of_prefix_closed_sets_equal_a_linear_walk(depths: list[int], branch: list[int], length: int) -> None:
    """Each peer holds a prefix of the trunk and its own branch, which leaves the trunk somewhere."""
    index, held = Index(), {}
    for number, peer in enumerate(PEERS):
        blocks = set(range(depths[number])) | {1000 * (number + 1) + i for i in range(branch[number])}
        held[peer] = blocks
        index.add(peer, blocks)
    index.check_invariants()
    assert index.matches(list(range(length))) == naive(held, list(range(length)))


@pytest.mark.properties
@given(st.lists(st.sets(st.integers(0, 20)), min_size=4, max_size=4), st.integers(0, 25))
@settings(max_examples=examples(150), deadline=None)
def test_with_gaps_each_peer_matches_up_to_its_last_block(sets: list[set[int]], length: int) -> None:
    index = Index(has_gaps=True)
    for peer, blocks in zip(PEERS, sets, strict=True):
        index.add(peer, blocks)
    held = {peer: [block for block in blocks if block < length] for peer, blocks in zip(PEERS, sets, strict=True)}
    matches = index.matches(list(range(length)))
    expected = {peer: max(blocks) + 1 for peer, blocks in held.items() if blocks}
    assert matches == expected and len(matches) == len(expected)
    assert {peer: matches[peer] for peer in matches} == expected


@pytest.mark.properties
@given(st.lists(st.tuples(st.sampled_from(PEERS), st.booleans(), st.sets(st.integers(0, 5))), max_size=30))
@settings(max_examples=examples(150), deadline=None)
def test_adding_and_discarding_keeps_exactly_what_is_held(steps: list[tuple[bytes, bool, set[int]]]) -> None:
    index = Index()
    held: dict[bytes, set[int]] = {peer: set() for peer in PEERS}
    for peer, is_add, blocks in steps:
        if is_add:
            index.add(peer, blocks)
            held[peer] |= blocks
        else:
            index.discard(peer, blocks)
            held[peer] -= blocks
        index.check_invariants()
    for block in range(6):
        assert index.matches([block]).keys() == {peer for peer, blocks in held.items() if block in blocks}
    for peer in PEERS:
        index.forget(peer, held[peer])
        index.check_invariants()
    assert len(index) == 0


@pytest.mark.properties
@given(st.lists(st.sets(st.integers(0, 20)), min_size=4, max_size=4), st.integers(0, 21))
@settings(max_examples=examples(150), deadline=None)
def test_a_set_with_gaps_matches_something_it_holds_and_disturbs_nobody(sets: list[set[int]], honest: int) -> None:
    """Dishonest peers, and an honest one among them."""
    index, chain = Index(), list(range(21))
    for peer, blocks in zip(PEERS, sets, strict=True):
        index.add(peer, blocks)
    index.add(b"honest", chain[:honest])
    matches = index.matches(chain)
    assert matches.get(b"honest", 0) == honest
    for peer, blocks in zip(PEERS, sets, strict=True):
        least = naive({peer: blocks}, chain).get(peer, 0)
        assert least <= matches.get(peer, 0) <= max(blocks, default=-1) + 1


def test_many_peers_are_written_out() -> None:
    index = Index()
    depths = {bytes([number]): number % 3 + 1 for number in range(100)}
    for peer, depth in depths.items():
        index.add(peer, range(1, depth + 1))
    assert index.matches([1, 2, 3, 4]).to_dict() == depths == dict(index.matches([1, 2, 3, 4]))
    assert len(index.matches([1])) == 100 and not index.matches([4])


def test_a_forgotten_peers_place_is_reused_without_its_blocks() -> None:
    index = Index()
    index.add(b"old", [1, 2])
    index.forget(b"old", [1, 2])
    index.add(b"new", [2])
    assert index.matches([2]) == {b"new": 1}
    assert index.matches([1]) == {}
