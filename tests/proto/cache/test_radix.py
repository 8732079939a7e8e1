"""The radix tree: examples, then a stateful comparison with a plain dictionary of token lists."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mycelia.proto.cache.radix import RadixTree, common_prefix
from tests.profiles import examples


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0
    assert common_prefix((1, 2), [1, 2, 3]) == 2


def test_match_ends_inside_an_edge_and_names_a_covering_leaf() -> None:
    tree = RadixTree()
    assert tree.insert([1, 2, 3, 4], 0, 0.0) == []
    assert tree.insert([1, 2, 5], 1, 0.0) == []
    assert tree.match([1, 2, 3, 9]) == (3, 0)
    length, seq_id = tree.match([1, 2])
    assert length == 2 and seq_id in (0, 1)
    assert tree.match([7]) == (0, None)
    assert tree.match([]) == (0, None)
    assert tree.num_tokens == 5
    assert tree.own_tokens(0) == 2 and tree.own_tokens(1) == 1
    tree.check_invariants()


def test_a_prefix_of_another_sequence_is_redundant_whichever_comes_first() -> None:
    tree = RadixTree()
    tree.insert([1, 2, 3], 0, 0.0)
    assert tree.insert([1, 2], 1, 1.0) == [1]
    assert tree.insert([1, 2, 3], 2, 1.0) == [2]
    assert tree.insert([1, 2, 3, 4], 3, 1.0) == [0]
    assert tree.tokens_of(3) == (1, 2, 3, 4)
    assert len(tree) == 1 and tree.num_tokens == 4
    tree.check_invariants()


def test_a_leaf_grows_under_its_own_id() -> None:
    tree = RadixTree()
    tree.insert([1, 2], 5, 0.0)
    tree.pin(5)
    assert tree.insert([1, 2, 3], 5, 1.0) == []
    assert tree.tokens_of(5) == (1, 2, 3) and tree.pins(5) == 1
    with pytest.raises(ValueError, match="other tokens"):
        tree.insert([9], 5, 2.0)
    with pytest.raises(ValueError, match="at least one token"):
        tree.insert([], 6, 2.0)
    tree.check_invariants()


def test_pins_pass_on_and_keep_from_eviction() -> None:
    tree = RadixTree()
    tree.insert([1, 2], 0, 0.0)
    tree.insert([3], 1, 5.0)
    tree.pin(0)
    assert tree.least_valuable() == 1
    assert tree.pinned_tokens() == 2
    assert tree.insert([1, 2, 3], 2, 6.0) == [0]
    assert tree.pins(2) == 1
    with pytest.raises(ValueError, match="pinned"):
        tree.remove(2)
    tree.unpin(2)
    with pytest.raises(ValueError, match="not pinned"):
        tree.unpin(2)
    assert tree.remove(2) == 3
    tree.use([3], 9.0)
    assert tree.least_valuable() == 1
    tree.check_invariants()


def fill(tree: RadixTree, prompts: list[list[int]], room: int, began_s: float) -> None:
    """One request a second, each of which evicts the least valuable leaves until ``room`` tokens are held."""
    for i, tokens in enumerate(prompts):
        now = began_s + i
        seq_id = 1 + max(tree.seq_ids(), default=-1)
        if tree.insert(tokens, seq_id, now) == [seq_id]:
            continue
        tree.pin(seq_id)
        while tree.num_tokens > room and (victim := tree.least_valuable()) is not None:
            tree.remove(victim)
        tree.unpin(seq_id)
        tree.check_invariants()


def test_a_prompt_that_many_share_survives_a_scan_of_one_off_prompts() -> None:
    tree, shared = RadixTree(), list(range(10))
    fill(tree, [[*shared, 100 + i] for i in range(5)], 60, 0.0)
    # Ten prompts of ten tokens: LRU would drop all but the last five or six.
    fill(tree, [[1_000 + 20 * i + j for j in range(10)] for i in range(10)], 60, 5.0)
    assert tree.match(shared)[0] == 10
    # The answers to single questions under it are one-off prompts themselves.
    assert tree.num_tokens - tree.match(shared)[0] >= 41


def test_a_repeated_prompt_survives_a_scan_but_not_for_ever() -> None:
    tree, repeated = RadixTree(), list(range(10))
    fill(tree, [repeated] * 1_000, 60, 0.0)
    fill(tree, [[1_000 + 20 * i + j for j in range(10)] for i in range(20)], 60, 1_000.0)
    assert tree.match(repeated)[0] == 10, "LRU keeps five of twenty"
    fill(tree, [[9_000 + 20 * i + j for j in range(10)] for i in range(40)], 60, 1_020.0)
    assert tree.match(repeated)[0] == 0, "a thousand repeats bought more than nine times the time"


def test_a_conversation_that_goes_on_is_recent_and_no_more() -> None:
    tree = RadixTree()
    for turn in range(1, 6):
        tree.insert([7] * 10 * turn, turn, float(turn))
    assert tree.reuse(5).uses == 0.0 and tree.reuse(5).last_used_s == 5.0
    tree.insert([8], 6, 6.0)
    tree.insert([7] * 50 + [1], 6 + 1, 7.0)
    assert tree.least_valuable() == 6


def test_only_what_is_shared_counts_as_used() -> None:
    tree = RadixTree()
    tree.insert([1, 2, 3, 4], 0, 0.0)
    tree.insert([1, 2, 5, 6], 1, 10.0)
    assert tree.reuse(0).uses == tree.reuse(1).uses == 0.0 and tree.reuse(0).last_used_s == 0.0
    assert tree.least_valuable() == 0
    tree.remove(0)
    # Its edge holds the shared half, used once, and its own half, never used.
    assert tree.reuse(1).uses == 0.5 and tree.reuse(1).last_used_s == 10.0
    tree.use([1, 2, 5, 6], 10.0)
    assert tree.reuse(1).uses == 1.5
    tree.check_invariants()


def test_rows_show_parents_first() -> None:
    tree = RadixTree()
    tree.insert([1, 2, 3], 0, 0.0)
    tree.insert([1, 2, 4, 5], 1, 0.0)
    tree.insert([9], 2, 0.0)
    rows = [(row.level, row.tokens, row.depth_tokens, row.seq_id) for row in tree.rows()]
    assert rows == [(0, (1, 2), 2, None), (1, (3,), 3, 0), (1, (4, 5), 4, 1), (0, (9,), 1, 2)]


def test_depth_is_not_bounded_by_recursion() -> None:
    tree = RadixTree()
    deep = 2_000
    for length in range(1, deep):
        # Every sequence leaves the common one after `length` tokens: a comb of that depth.
        tree.insert([0] * length + [1], length, float(length))
    assert max(row.level for row in tree.rows()) > 1_500
    tree.check_invariants()
    assert tree.match([0] * deep)[0] == deep - 1
    assert len(tree.tokens_of(deep - 1)) == deep
    for length in range(1, deep):
        tree.remove(length)
    assert tree.num_tokens == 0
    tree.check_invariants()


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)
SEQ_IDS = st.integers(0, 5)


class RadixMachine(RuleBasedStateMachine):
    """The model is a dictionary id -> tokens in which no sequence is a prefix of another."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = RadixTree()
        self.model: dict[int, tuple[int, ...]] = {}
        self.pins: dict[int, int] = {}
        self.clock = 0
        self.latest = 0
        """The latest time that the tree was given."""

    @rule(tokens=TOKENS, seq_id=SEQ_IDS)
    def insert(self, tokens: list[int], seq_id: int) -> None:
        self.clock += 1
        wanted = tuple(tokens)
        covering = [other for other, held in self.model.items() if held[: len(wanted)] == wanted]
        extended = [other for other, held in self.model.items() if wanted[: len(held)] == held and held != wanted]
        if seq_id in self.model and seq_id not in extended and covering != [seq_id]:
            # With several leaves below, the tree chooses which one is touched, and so whether that is an error.
            if len(covering) <= 1:
                with pytest.raises(ValueError, match="other tokens"):
                    self.tree.insert(wanted, seq_id, self.clock)
            return
        if len(covering) > 1:
            return
        redundant = self.tree.insert(wanted, seq_id, self.clock)
        self.latest = self.clock
        if covering:
            assert redundant == ([] if covering == [seq_id] else [seq_id])
            return
        assert redundant == [other for other in extended if other != seq_id]
        pins = 0
        for other in extended:
            del self.model[other]
            pins += self.pins.pop(other, 0)
        self.model[seq_id], self.pins[seq_id] = wanted, pins

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        seq_id = data.draw(st.sampled_from(sorted(self.model)))
        if self.pins[seq_id]:
            with pytest.raises(ValueError, match="pinned"):
                self.tree.remove(seq_id)
            return
        before = self.num_tokens()
        freed = self.tree.remove(seq_id)
        del self.model[seq_id], self.pins[seq_id]
        assert freed == before - self.num_tokens()

    @precondition(lambda self: self.model)
    @rule(data=st.data(), up=st.booleans())
    def pin(self, data: st.DataObject, up: bool) -> None:
        seq_id = data.draw(st.sampled_from(sorted(self.model)))
        if up:
            self.tree.pin(seq_id)
            self.pins[seq_id] += 1
        elif self.pins[seq_id]:
            self.tree.unpin(seq_id)
            self.pins[seq_id] -= 1

    @rule(tokens=TOKENS, late=st.integers(-2, 2_000))
    def use(self, tokens: list[int], late: int) -> None:
        """A use changes no sequence, at any time."""
        self.tree.use(tokens, self.clock + late)
        self.latest = max(self.latest, self.clock + late)
        self.clock = max(self.clock, self.latest)

    @rule(tokens=TOKENS)
    def match(self, tokens: list[int]) -> None:
        length, seq_id = self.tree.match(tokens)
        best = max((common_prefix(tokens, held) for held in self.model.values()), default=0)
        assert length == best
        if seq_id is None:
            assert best == 0
        else:
            assert self.model[seq_id][:length] == tuple(tokens[:length])

    def num_tokens(self) -> int:
        return len({held[:end] for held in self.model.values() for end in range(1, len(held) + 1)})

    @invariant()
    def agrees(self) -> None:
        self.tree.check_invariants()
        assert {seq_id: self.tree.tokens_of(seq_id) for seq_id in self.tree.seq_ids()} == self.model
        assert {seq_id: self.tree.pins(seq_id) for seq_id in self.model} == self.pins
        assert self.tree.num_tokens == self.num_tokens()
        free = {seq_id: self.tree.reuse(seq_id) for seq_id in self.model if not self.pins[seq_id]}
        victim = self.tree.least_valuable()
        assert (victim in free) if free else (victim is None)
        assert victim is None or victim == min(free, key=lambda i: (free[i].chance(self.latest), i))
        pinned = [held for seq_id, held in self.model.items() if self.pins[seq_id]]
        assert self.tree.pinned_tokens() == len({held[:end] for held in pinned for end in range(1, len(held) + 1)})


RadixMachine.TestCase.settings = settings(max_examples=examples(80), stateful_step_count=40, deadline=None)
test_against_a_model = RadixMachine.TestCase
