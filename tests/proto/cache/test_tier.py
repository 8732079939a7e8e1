"""The index of the second tier: lookups against a plain search, budgets, and the order of evictions."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mycelia.proto.cache import tier as tier_module
from mycelia.proto.cache.checkpoints import BETWEEN, EVERY_TOKENS
from mycelia.proto.cache.edges import RUN_TOKENS, Edge, Whose, common_tokens, runs
from mycelia.proto.cache.radix import common_prefix
from mycelia.proto.cache.sharing import PUBLIC
from mycelia.proto.cache.tier import Tier, Trimmed
from mycelia.proto.cache.value import Reuse
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.messages import MAX_TOKENS_PER_REQUEST

BLOB = memoryview(bytes(10))


def add(tier: Tier, tokens: list[int], start: int, now: float = 0.0) -> Edge:
    return tier.add(pack_tokens(tokens), start, BLOB, b"h" * 32, Reuse(now))


def planned(tier: Tier, tokens: list[int], covered: int = 0) -> list[tuple[int, int]]:
    return [(piece.start, piece.end) for piece in tier.plan(pack_tokens(tokens), covered)]


def test_pieces_follow_each_other_and_are_few() -> None:
    tier = Tier(10_000, 0)
    add(tier, [1, 2, 3, 4], 0)
    add(tier, [1, 2, 3, 4, 5], 4)
    add(tier, [1, 2, 3, 9, 9], 2)
    long = add(tier, [1, 2, 3, 4, 5, 6, 7], 3)
    assert planned(tier, [1, 2, 3, 4, 5, 6, 7, 8]) == [(0, 4), (4, 7)]
    assert tier.plan(pack_tokens([1, 2, 3, 4, 5, 6]), 0)[1].edge is long
    assert planned(tier, [1, 2, 3, 9, 9, 9], 2) == [(2, 5)]
    assert planned(tier, [1, 2, 3, 4, 5, 6, 7], 7) == [] == planned(tier, [2, 2], 0) == planned(tier, [], 0)
    # The same last tokens after another beginning have other cells.
    assert planned(tier, [7, 2, 3, 9, 9], 2) == []


def test_an_edge_without_its_beginning_waits_for_it() -> None:
    tier = Tier(10_000, 0)
    add(tier, [1, 2, 3, 4], 2)
    assert planned(tier, [1, 2, 3, 4, 5]) == [] and planned(tier, [1, 2, 3, 4, 5], 2) == [(2, 4)]
    add(tier, [1, 2, 8], 0)
    assert planned(tier, [1, 2, 3, 4, 5]) == [(0, 2), (2, 4)]


def test_the_least_recent_goes_and_of_one_sequence_the_end() -> None:
    tier = Tier(840, 0)

    def add(tokens: list[int], start: int, now: float) -> Edge:
        blob = memoryview(bytes(100 * (len(tokens) - start)))
        return tier.add(pack_tokens(tokens), start, blob, b"h" * 32, Reuse(now))

    old, head, tail = add([5, 6, 7, 8], 0, 1.0), add([1, 2], 0, 2.0), add([1, 2, 3, 4], 2, 2.0)
    assert tier.trim(3.0) == Trimmed()
    add([9], 0, 3.0)
    assert tier.trim(3.0).gone == [old] and old.gone
    add([4, 4, 4, 4], 0, 3.0)
    assert tier.trim(3.0).gone == [tail]
    tier.touch([head], 9.0)
    add([4, 4, 4, 5], 0, 4.0)
    assert head not in tier.trim(9.0).gone
    tier.check_invariants()


def test_what_was_used_outlives_what_only_came_later() -> None:
    tier = Tier(40, 0)  # (room for two)
    carried = tier.add(pack_tokens([1, 2]), 0, BLOB, b"h" * 32, Reuse(0.0, 4.0))
    restored, touched = add(tier, [3, 4], 0, 0.0), add(tier, [5, 6], 0, 0.0)
    tier.count(restored, 1.0)
    tier.touch([touched, carried], 2.0)
    assert tier.trim(3.0).gone == [touched]
    later = add(tier, [7, 8], 0, 5.0)
    assert tier.trim(5.0).gone == [restored], "seconds later it is what came later that is likelier"
    add(tier, [9, 9], 0, 6.0)
    assert tier.trim(6.0).gone == [later] and not carried.gone
    tier.check_invariants()


def test_memory_over_its_budget_stays_on_disk() -> None:
    tier = Tier(20, 40)
    first, second = add(tier, [1, 2], 0, 1.0), add(tier, [3, 4], 0, 2.0)
    assert tier.begin_write(first) and not tier.begin_write(first)
    # An edge that is being written is not evicted: it would be lost.
    assert tier.trim(2.0) == Trimmed() and tier.ram_used == 36
    tier.end_write(first, written=True)
    assert tier.trim(2.0) == Trimmed() and first.on_disk and first.blob is None and tier.ram_used == 18
    assert tier.begin_write(second)
    tier.end_write(second, written=True)
    third = add(tier, [5, 6], 0, 3.0)
    assert tier.begin_write(third)
    trimmed = tier.trim(3.0)
    assert (trimmed.gone, trimmed.unlink) == ([first], [first])
    tier.end_write(third, written=False)
    tier.promote(second, BLOB)
    tier.trim(3.0)
    assert not tier.begin_write(add(tier, list(range(40)), 0)), "larger than the disk tier"
    tier.trim(3.0)
    tier.check_invariants()


def test_a_state_that_is_restored_from_disk_needs_no_room_in_memory() -> None:
    """It is not evicted meanwhile, so without a memory tier nothing else could make room for it."""
    tier = Tier(0, 10_000, keeps_states=True)
    state = tier.add_file(pack_tokens([1, 2]), 2, len(BLOB), b"h" * 32, 0.0)
    tier.kept = state
    tier.count(state, 1.0)
    tier.promote(state, BLOB)
    assert tier.trim(1.0) == Trimmed() and state.on_disk and state.blob is None
    tier.check_invariants()


def test_the_number_of_edges_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier_module, "MAX_EDGES", 2)
    tier = Tier(10_000, 10_000)
    file = tier.add_file(pack_tokens([1]), 0, 10, b"h" * 32, 0.0)
    kept = [add(tier, [2], 0, 1.0), add(tier, [3], 0, 2.0)]
    trimmed = tier.trim(2.0)
    assert trimmed == Trimmed([file], [file]) and list(tier) == kept
    tier.check_invariants()


def test_an_edge_needs_a_token() -> None:
    for start in (2, 3, -1):
        with pytest.raises(ValueError, match="at least one"):
            add(Tier(100, 0), [1, 2], start)


@given(st.integers(0, 2000), st.integers(0, 2000))
def test_runs_cover_everything_once(start: int, end: int) -> None:
    cut = list(runs(start, end))
    assert [token for first, last in cut for token in range(first, last)] == list(range(start, end))
    assert all(last - first <= RUN_TOKENS and (last == end or last % RUN_TOKENS == 0) for first, last in cut)


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_common_tokens_is_common_prefix(first: list[int], second: list[int]) -> None:
    assert common_tokens(pack_tokens(first), pack_tokens(second)) == common_prefix(first, second)


@dataclass
class Known:
    """The test model's data of an edge."""

    tokens: list[int]
    start: int


TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=8)


class TierMachine(RuleBasedStateMachine):
    """Random edges over two tokens, with late and failed writes, against a plain search."""

    def __init__(self) -> None:
        super().__init__()
        self.tier = Tier(150, 200)
        self.known: dict[Edge, Known] = {}
        self.writing: list[Edge] = []
        self.now = 0.0

    def settle(self, trimmed: Trimmed) -> None:
        for edge in trimmed.gone:
            assert edge.gone and edge.blob is None and not edge.on_disk
            del self.known[edge]
        assert all(not edge.on_disk for edge in trimmed.unlink)

    @rule(tokens=TOKENS, start=st.integers(0, 7), on_disk=st.booleans(), write=st.booleans())
    def save(self, tokens: list[int], start: int, on_disk: bool, write: bool) -> None:
        self.now += 1
        start = min(start, len(tokens) - 1)
        if on_disk:
            edge = self.tier.add_file(pack_tokens(tokens), start, len(BLOB), b"h" * 32, self.now)
        else:
            edge = add(self.tier, tokens, start, self.now)
        self.known[edge] = Known(tokens, start)
        if write and self.tier.begin_write(edge):
            self.writing.append(edge)
        self.settle(self.tier.trim(self.now))

    @precondition(lambda self: self.writing)
    @rule(written=st.booleans())
    def written(self, written: bool) -> None:
        self.tier.end_write(self.writing.pop(0), written)
        self.settle(self.tier.trim(self.now))

    @precondition(lambda self: self.known)
    @rule(data=st.data(), how=st.sampled_from(["touch", "promote", "remove"]))
    def use(self, data: st.DataObject, how: str) -> None:
        self.now += 1
        edge = data.draw(st.sampled_from(list(self.known)))
        if how == "touch":
            self.tier.touch([edge], self.now)
        elif how == "promote":
            self.tier.promote(edge, BLOB)
        else:
            self.settle(self.tier.remove(edge))
        self.settle(self.tier.trim(self.now))

    @rule(tokens=TOKENS, covered=st.integers(0, 8))
    def look_up(self, tokens: list[int], covered: int) -> None:
        covered = min(covered, len(tokens))
        reached, moved = covered, True
        while moved:
            ends = [
                common_prefix(known.tokens, tokens)
                for known in self.known.values()
                if common_prefix(known.tokens, tokens) > reached >= known.start
            ]
            moved = bool(ends)
            reached = max(ends, default=reached)
        pieces = self.tier.plan(pack_tokens(tokens), covered)
        assert self.tier.reach(pack_tokens(tokens), covered) == reached
        at = covered
        for piece in pieces:
            known = self.known[piece.edge]
            assert known.start <= piece.start == at < piece.end and known.tokens[: piece.end] == tokens[: piece.end]
            at = piece.end
        assert at == reached

    @invariant()
    def books_balance(self) -> None:
        self.tier.check_invariants()
        assert set(self.tier) == set(self.known)


class StatesMachine(TierMachine):
    """The same with states."""

    def __init__(self) -> None:
        super().__init__()
        self.tier = Tier(150, 200, True)

    @rule(tokens=TOKENS, place=st.integers(0, 3))
    def save_state(self, tokens: list[int], place: int) -> None:
        self.now += 1
        edge = self.tier.add_state(pack_tokens(tokens), BLOB, b"h" * 32, self.now, place)
        self.known[edge] = Known(tokens, len(tokens))
        self.settle(self.tier.trim(self.now))

    @rule(tokens=TOKENS)
    def find_state(self, tokens: list[int]) -> None:
        found = self.tier.state(pack_tokens(tokens))
        ends = [
            known.start for edge, known in self.known.items() if edge.is_state and tokens[: known.start] == known.tokens
        ]
        assert (found.end if found is not None else 0) == max(ends, default=0)
        if found is not None:
            self.tier.count(found, self.now)
            self.tier.reuse_counts.check_invariants()


TierMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
test_books_against_a_plain_search = TierMachine.TestCase


@pytest.mark.parametrize("tag", [None, PUBLIC.tag, b"o" * 16])
def test_states_and_cells_of_another_swarm_are_not_used(tag: bytes | None) -> None:
    """Whosever they are, and by the same owner."""
    tier, packed = Tier(10_000, 0), pack_tokens(range(2 * EVERY_TOKENS))
    theirs = Whose(tag, 0 if tag else MAX_TOKENS_PER_REQUEST, b"s" * 16)
    state = tier.add_state(packed, memoryview(b"state"), bytes(32), 0.0, BETWEEN, theirs)
    tier.add(packed, 0, memoryview(b"cells"), bytes(32), Reuse(0.0), theirs)
    for whose in (theirs, Whose(tag or b"x" * 16, MAX_TOKENS_PER_REQUEST, theirs.swarm)):
        assert tier.state(packed, whose) is state and tier.reach(packed, 0, whose) == 2 * EVERY_TOKENS
        elsewhere = Whose(whose.tag, whose.num_open)
        assert tier.state(packed, elsewhere) is None and tier.reach(packed, 0, elsewhere) == 0


StatesMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
test_books_of_states = StatesMachine.TestCase
