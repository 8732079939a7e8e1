"""Whose prefixes may be reused: the rules as properties, compared with a separate cache for each owner."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.proto.cache.radix import RadixTree, common_prefix
from mycelia.proto.cache.sharing import (
    MAX_SUBNETS,
    PUBLIC,
    Owner,
    Path,
    Sharing,
    paint,
    plain,
    split_swarm,
    swarm_of,
    unpaint,
)
from mycelia.proto.wire.blocks import STRIDE
from tests.profiles import examples

ONE, SAME_HOUSE, TWO, THREE = (
    Owner(bytes([number]) * 16, house) for number, house in enumerate(("a", "a", "b", "c"), start=1)
)
SALTED = Owner(b"s" * 16)
PREFIX = list(range(3 * STRIDE))


def num_open(sharing: Sharing, tokens: list[int]) -> int:
    sharing.check_invariants()
    return sharing.num_open(sharing.chain(tokens))


def test_a_prefix_opens_when_a_second_subnet_goes_on_differently() -> None:
    sharing = Sharing(b"secret")
    sharing.note(ONE, [*PREFIX, 7, 8])
    sharing.note(SAME_HOUSE, [*PREFIX, 8, 8])
    sharing.note(ONE, [*PREFIX, 9, 9])
    assert num_open(sharing, PREFIX) == 0, "one subnet, however many names it has"
    sharing.note(TWO, [*PREFIX, 9, 8])
    assert num_open(sharing, [*PREFIX, 9, 9, *PREFIX]) == 3 * STRIDE


@pytest.mark.parametrize("common", [1, STRIDE - 1, STRIDE, STRIDE + 1, 2 * STRIDE + 40])
def test_only_whole_common_blocks_open(common: int) -> None:
    sharing = Sharing(b"secret")
    sharing.note(ONE, PREFIX)
    sharing.note(TWO, [*PREFIX[:common], *[999] * 100])
    assert num_open(sharing, PREFIX) == common // STRIDE * STRIDE


@pytest.mark.parametrize("longer", [1, 30, STRIDE, 200])
def test_who_only_goes_on_farther_is_the_same_conversation(longer: int) -> None:
    """The conversation continued through another entry node, or came again."""
    sharing = Sharing(b"secret")
    whole = [*PREFIX, *range(1_000, 1_030)]
    sharing.note(ONE, whole)
    sharing.note(TWO, whole)
    sharing.note(TWO, [*whole, *range(2_000, 2_000 + longer)])
    sharing.note(THREE, whole[:-20])
    assert num_open(sharing, whole) == 0


def test_a_salt_opens_nothing_and_public_everything() -> None:
    sharing = Sharing(b"secret")
    for last in range(5):
        sharing.note(SALTED, [*PREFIX, last])
    sharing.note(ONE, [*PREFIX, 77])
    assert num_open(sharing, PREFIX) == 0
    sharing.note(PUBLIC, [*PREFIX, 78])
    assert num_open(sharing, PREFIX) == 3 * STRIDE


def test_what_is_open_stays_so_while_it_is_used_and_the_books_are_bounded() -> None:
    sharing = Sharing(b"secret", max_blocks=40)
    sharing.open(PREFIX)
    for number in range(200):
        sharing.note(ONE, [number + 10_000] * 5 * STRIDE)
        assert num_open(sharing, PREFIX) == 3 * STRIDE and len(sharing) <= 40
    for number in range(20):
        sharing.note(ONE, [number + 50_000] * 5 * STRIDE)
    assert num_open(sharing, PREFIX) == 0
    for number in range(2 * MAX_SUBNETS):  # (that continued alike, because they only repeat it)
        sharing.note(Owner(bytes(16), f"house {number}"), PREFIX)
    assert num_open(sharing, PREFIX) == 0


def test_a_path_names_its_owner_and_what_is_open() -> None:
    for tag in (b"", PUBLIC.tag, bytes(16), b"\xff" * 16):
        for cut in (0, 1, 4):
            assert unpaint(paint([5, 0, 2**32 - 1, 7, 9], cut, tag)) == Path((5, 0, 2**32 - 1, 7, 9), cut, tag)
    assert unpaint(paint([1, 2], 2, b"t")) == Path((1, 2), 2, None) and unpaint(()) == Path((), 0, None)
    assert plain(paint([1, 2, 3], 1, b"t", b"s" * 16)) == [1, 2, 3]


def test_a_path_names_its_swarm() -> None:
    swarm, tokens = b"s" * 16, (5, 0, 2**32 - 1, 7, 9)
    for tag in (b"", PUBLIC.tag, b"\xff" * 16):
        for cut in (0, 1, 4):
            path = paint(tokens, cut, tag, swarm)
            assert unpaint(path) == Path(tokens, cut, tag, swarm)
            assert split_swarm(path) == (swarm, paint(tokens, cut, tag))
    assert unpaint(paint(tokens, 5, None, swarm)) == Path(tokens, 5, None, swarm)
    assert split_swarm(paint(tokens, 0, b"t")) == (b"", paint(tokens, 0, b"t")) and split_swarm(()) == (b"", ())
    assert swarm_of(b"") == b"" and len({swarm_of(salt) for salt in (b"a", b"b")}) == 2


def test_what_opens_in_one_swarm_is_not_open_in_another() -> None:
    sharing, swarm = Sharing(b"secret"), b"s" * 16
    for number, owner in enumerate((ONE, TWO)):
        sharing.note(Owner(owner.tag, owner.subnet, swarm), [*PREFIX, number])
    assert num_open(sharing, PREFIX) == 0
    assert sharing.num_open(sharing.chain(PREFIX, swarm)) == 3 * STRIDE
    sharing.note(ONE, [*PREFIX, 1])
    assert num_open(sharing, PREFIX) == 0, "the swarms' subnets do not add up"
    sharing.note(PUBLIC, PREFIX[:STRIDE])
    assert num_open(sharing, PREFIX) == STRIDE


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)
SWARMS = (b"", b"s" * 16)
OWNERS = st.builds(
    lambda one, swarm: Owner(one.tag, one.subnet, swarm),
    st.sampled_from([ONE, TWO, SALTED, PUBLIC]),
    st.sampled_from(SWARMS),
)


@pytest.mark.properties
@given(st.lists(st.tuples(OWNERS, TOKENS, st.integers(0, 3)), max_size=30))
@settings(max_examples=examples(100), deadline=None)
def test_an_owner_sees_its_own_tokens_and_whole_open_ones_alone(kept: list[tuple[Owner, list[int], int]]) -> None:
    """One tree for all behaves as if each owner had its own: a match is explained by what the same owner left with the
    same number of open tokens, or by the open tokens of others in its swarm."""
    tree, left = RadixTree(), list[tuple[Owner, list[int], int]]()
    for number, (owner, tokens, cut) in enumerate(kept):
        seen = tree.match(paint(tokens, cut, owner.tag, owner.swarm))[0]
        mine = [common_prefix(tokens, other) for who, other, at in left if who == owner and at == cut]
        opened = [min(common_prefix(tokens, other), at, cut) for who, other, at in left if who.swarm == owner.swarm]
        assert seen == max([0, *opened, *(length for length in mine if length > cut)])
        for gone in tree.insert(paint(tokens, cut, owner.tag, owner.swarm), number, float(number)):
            assert gone == number or gone not in tree
        left.append((owner, tokens, cut))
