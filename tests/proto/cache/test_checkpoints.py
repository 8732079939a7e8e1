"""The places where states are saved, what is learned of their use, and which of them are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.proto.cache.checkpoints import (
    ANSWER_END,
    BETWEEN,
    BRANCH,
    EVERY_TOKENS,
    LEAST_TOKENS,
    MAX_COUNT,
    MAX_TURNS,
    PROMPT_END,
    ReuseCounts,
    lengths,
    turns_of,
)
from mycelia.proto.cache.edges import OPEN, TOKEN_BYTES, Edge, Whose
from mycelia.proto.cache.sharing import PUBLIC
from mycelia.proto.cache.tier import Tier
from mycelia.proto.cache.value import Reuse
from mycelia.proto.wire.blocks import pack_tokens


@pytest.mark.parametrize(
    ("begin", "num_prompt", "known", "turn", "grid", "expected"),
    [
        (0, 100, 0, 0, 1, {99: PROMPT_END}),
        (0, 100, 60, 0, 1, {60: BRANCH, 99: PROMPT_END}),
        (0, 100, 60, 95, 1, {60: BRANCH, 95: PROMPT_END}),
        (0, 100, 60, 50, 1, {60: BRANCH, 99: PROMPT_END}),  # (the last turn began long before the end)
        (0, 100, 90, 0, 1, {90: BRANCH}),
        (60, 100, 60, 0, 1, {99: PROMPT_END}),
        (0, 1300, 0, 0, 1, {512: BETWEEN, 1024: BETWEEN, 1299: PROMPT_END}),
        (600, 1300, 1020, 0, 1, {1020: BRANCH, 1299: PROMPT_END}),
        (0, 100, 60, 0, 32, {32: BRANCH, 96: PROMPT_END}),
        (99, 100, 99, 0, 1, {}),
        (0, 10, 0, 0, 1, {}),
    ],
)
def test_places(begin: int, num_prompt: int, known: int, turn: int, grid: int, expected: dict[int, int]) -> None:
    assert lengths(begin, num_prompt, known, turn, grid) == expected


@given(st.integers(0, 3000), st.integers(1, 3000), st.integers(0, 3000), st.integers(0, 3000), st.sampled_from([1, 32]))
@pytest.mark.properties
def test_states_are_apart_and_on_the_way(begin: int, num_prompt: int, known: int, turn: int, grid: int) -> None:
    chosen = list(lengths(begin, num_prompt, known, turn, grid))
    assert all(begin < length < num_prompt and length % grid == 0 for length in chosen)
    places = [begin, *chosen]
    assert all(later - earlier >= LEAST_TOKENS for earlier, later in zip(places, chosen, strict=False))
    longest = max((b - a for a, b in zip(places, [*chosen, num_prompt], strict=True)), default=0)
    assert longest <= EVERY_TOKENS + 2 * max(LEAST_TOKENS, grid)


def test_counts_follow_a_changed_workload() -> None:
    reuse_counts = ReuseCounts()
    for _ in range(50):
        reuse_counts.saved(BRANCH)
        reuse_counts.used(BRANCH, 0)
        reuse_counts.saved(ANSWER_END)
    assert reuse_counts.chance(BRANCH, 0) > 0.9 and reuse_counts.chance(ANSWER_END, 0) < 0.1
    for _ in range(4 * MAX_COUNT):
        reuse_counts.saved(ANSWER_END)
        reuse_counts.used(ANSWER_END, 0)
    assert reuse_counts.chance(ANSWER_END, 0) > 0.9 and reuse_counts.chance(ANSWER_END, 1) < 0.1
    reuse_counts.check_invariants()


STATE, CELL = 1000, 10


def state(
    tier: Tier, tokens: list[int], now: float = 0.0, place: int = BRANCH, whose: Whose = OPEN, turns: int = 0
) -> Edge:
    return tier.add_state(pack_tokens(tokens), memoryview(bytes(STATE)), b"h" * 32, now, place, whose, turns)


def cells(tier: Tier, tokens: list[int], start: int, now: float = 0.0) -> Edge:
    blob = memoryview(bytes(CELL * (len(tokens) - start)))
    return tier.add(pack_tokens(tokens), start, blob, b"h" * 32, Reuse(now))


def test_the_longest_state_of_a_prompt_is_found() -> None:
    tier = Tier(10**6, 0, True)
    prompt = list(range(100, 160))
    short, long = state(tier, prompt[:20]), state(tier, prompt[:40])
    state(tier, [1, *prompt[1:50]])
    assert tier.state(pack_tokens(prompt)) is long
    assert tier.state(pack_tokens(prompt[:39])) is short and tier.state(pack_tokens(prompt[:19])) is None
    assert long.saves == 20 and not tier.plan(pack_tokens(prompt), 0), "a state has no cells"


def test_owners_use_their_states_and_all_what_is_open() -> None:
    tier = Tier(10**6, 0, True)
    prompt = [i % 251 for i in range(EVERY_TOKENS + 88)]
    mine, yours = Whose(b"me", 0), Whose(b"you", 0)
    own = state(tier, prompt[:540], whose=mine)
    fixed = state(tier, prompt[:EVERY_TOKENS], whose=mine)
    public = state(tier, prompt[:200], whose=Whose(PUBLIC.tag, 0))
    packed = pack_tokens(prompt)
    assert tier.state(packed, mine) is own and tier.state(packed, yours) is None
    assert tier.state(packed, Whose(b"you", 256)) is public
    # All know that the first 576 tokens are open, and a length that every prompt has says nothing; another one would.
    assert tier.state(packed, Whose(b"you", 576)) is fixed
    assert tier.state(packed, Whose(b"you", 576, b"swarm")) is None


def test_cells_go_when_no_state_needs_them() -> None:
    tier = Tier(2 * STATE + 1200, 0, True)
    first, second = list(range(30)), list(range(50, 80))
    needed, other = cells(tier, first, 0, now=1.0), cells(tier, second, 0, now=2.0)
    kept = state(tier, first, now=1.0)
    assert [edge.needed for edge in (needed, other)] == [1, 0]
    state(tier, second, now=2.0)
    assert [edge.needed for edge in (needed, other)] == [1, 1]
    tail = cells(tier, [*first, *range(200, 230)], 30, now=3.0)
    assert not tail.needed, "no state reaches into it"
    third = state(tier, list(range(90, 120)), now=3.0)
    gone = tier.trim(3.0).gone
    # The tail saves nothing; it is not enough, and then the state goes that is the least likely to be used.
    assert gone[0] is tail and kept in gone and not third.gone
    assert not needed.needed
    tier.check_invariants()
    tier.remove(third)
    tier.check_invariants()


def test_states_that_are_used_again_stay() -> None:
    """As few-shot prompts do: branches are used again and again, ends of prompts never."""
    tier = Tier(4 * (STATE + 200), 0, True)
    branch = state(tier, list(range(40)), now=0.0)
    for now in range(1, 100):
        if now % 10 == 0:
            assert not branch.gone
            tier.count(branch, float(now))
        state(tier, [*range(40), *range(1000 * now, 1000 * now + 40)], now=float(now), place=PROMPT_END)
        tier.trim(float(now))
    assert not branch.gone and tier.ram_used <= tier.ram_bytes
    assert len(branch.packed) == 40 * TOKEN_BYTES
    tier.check_invariants()


def test_turns_are_counted_by_the_token_of_each_message() -> None:
    assert turns_of([1, 5, 2, 1, 6, 2, 7], {1, 2, 3}) == 1
    assert turns_of([5, 6], {1}) == turns_of([1], {1}) == turns_of([1, 1, 2], ()) == 0
    assert turns_of([1] * 100, {1}) == MAX_TURNS


def test_long_conversations_end_more_often_than_short_ones() -> None:
    """So the state of a short one stays, though it is older."""
    tier = Tier(3 * (STATE + 400), 0, True)
    for now in range(0, 200, 4):
        first, long = list(range(1000 * now, 1000 * now + 40)), list(range(2000 * now, 2000 * now + 40))
        used = state(tier, first, now=float(now), place=ANSWER_END, turns=1)
        tier.count(used, float(now + 1))
        tier.remove(used)
        tier.remove(state(tier, long, now=float(now), place=ANSWER_END, turns=3))
    short = state(tier, list(range(40)), now=200.0, place=ANSWER_END, turns=1)
    for place in range(1, 4):
        state(tier, list(range(100 * place, 100 * place + 40)), now=200.0 + place, place=ANSWER_END, turns=3)
        tier.trim(200.0 + place)
    assert not short.gone


def test_what_nobody_uses_goes_before_an_older_state() -> None:
    tier = Tier(3 * (STATE + 400), 0, True)
    for now in range(0, 200, 4):
        answer = state(tier, list(range(1000 * now, 1000 * now + 40)), now=float(now), place=ANSWER_END)
        tier.count(answer, float(now + 1))
        tier.remove(answer)
        tier.remove(state(tier, list(range(1000 * now, 1000 * now + 30)), now=float(now), place=PROMPT_END))
    old = [state(tier, list(range(n, n + 40)), now=200.0, place=ANSWER_END) for n in (0, 100, 200)]
    new = state(tier, list(range(300, 340)), now=400.0, place=PROMPT_END)
    tier.trim(400.0)
    assert new.gone and not any(edge.gone for edge in old)
