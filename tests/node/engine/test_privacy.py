"""The facts about others' prompts that a stranger can learn from the engine, by the number of cached tokens and of
computed tokens, which take time."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.node.engine import ipc
from mycelia.node.engine.child.job import Job, Limits
from mycelia.node.engine.child.scheduler import Scheduler
from mycelia.proto.cache.sharing import PUBLIC, Owner
from mycelia.proto.wire.blocks import STRIDE
from tests import profiles
from tests.node.engine.child.test_loop import VOCAB, Rig
from tests.node.engine.child.test_scheduler import SmallBlocks, admit_all, compute, run_to_end
from tests.node.engine.child.tier.test_tier_store import Tiers, opened

VICTIM = Owner(b"v" * 16, "victim's")
OTHER = Owner(b"o" * 16, "other's")
DIGITS = range(10, 20)  # (tokens)


def strangers(count: int) -> list[Owner]:
    return [Owner(bytes([number]) * 16, f"stranger {number % 2}") for number in range(count)]


def ask(rig: Rig, key: int, prompt: Sequence[int], owner: Owner, open_tokens: int = 0) -> tuple[int, int]:
    """(tokens reported as cached, tokens computed) for a prompt alone at the engine."""
    rig.llama.calls.clear()
    rig.submit(key, prompt, 1, owner=owner, open_tokens=open_tokens)
    ended = rig.run(key)
    assert isinstance(ended, ipc.Ended)
    return ended.usage.cached_tokens, sum(len(row.tokens) for rows in rig.llama.calls for row in rows)


def tried(known: list[int], asked: list[int] | None, has_tier: bool) -> list[tuple[int, int]]:
    """The results of strangers who know all tokens before a digit and try each digit: twice under one name, and once
    under different names. asked: the victim's earlier prompt, if any."""
    rig = Tiers(2_000).rig if has_tier else Rig(2_000)
    if asked is not None:
        ask(rig, 0, asked, VICTIM)
    one_name = Owner(b"x" * 16, "stranger")
    names = [one_name] * 20 + [Owner(bytes([digit]) * 16, f"stranger {digit % 2}") for digit in DIGITS]
    guesses = zip([*DIGITS, *DIGITS, *DIGITS], names, strict=True)
    return [ask(rig, key, [*known, digit, 9], owner) for key, (digit, owner) in enumerate(guesses, start=1)]


@pytest.mark.parametrize("has_tier", [False, True])
@pytest.mark.parametrize("num_before", [20, STRIDE - 6, STRIDE + 20])
def test_no_digit_of_a_card_number_is_recovered(num_before: int, has_tier: bool) -> None:
    """Even if the stranger knows all digits before it. Only a stranger that knows all other tokens of a block can guess
    its last one; see below."""
    chance = random.Random(num_before)
    before = [chance.randrange(10, VOCAB - 1) for _ in range(num_before)]
    number, recovered = [chance.choice(DIGITS) for _ in range(16)], 0
    for place in range(0, 16, 1 if profiles.is_full() else 3):
        known = [*before, *number[:place]]
        if (len(known) + 1) % STRIDE:
            others = [tried(known, [*known, digit, 5, 6, 7], has_tier) for digit in DIGITS]
            recovered += any(other != others[0] for other in others)
            assert num_before > STRIDE - 16 or others[0] == tried(known, None, has_tier)
    assert recovered == 0


def test_a_whole_block_can_be_guessed_by_two_requests_a_guess() -> None:
    """The remaining leak when two subnets open a block: the guess must have all its tokens. A salt prevents it."""
    block = [20 + number % 7 for number in range(STRIDE)]
    names = strangers(6)
    for victim, right in ((VICTIM, STRIDE), (Owner(b"salt".ljust(16)), 0)):
        rig = Rig(1_000)
        ask(rig, 1, [*block, 5, 6], victim)
        for key, guess in enumerate(([*block[:-1], 11, 12], [*block, 11], [11, *block[1:], 12])):
            one, two = names[2 * key : 2 * key + 2]
            assert ask(rig, 2 * key + 2, guess, one)[0] == 0, "the first time nothing shows"
            assert ask(rig, 2 * key + 3, [*guess, 13], two)[0] == (right if guess[:STRIDE] == block else 0)


PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=26)
ACTIONS = st.lists(st.tuples(st.booleans(), st.integers(0, 3), PROMPTS), max_size=24)
LIMITS = Limits(num_cells=2_000, context_tokens=60, num_vocab=10, num_sequences=60, slots=4, batch_tokens=64)


def transcript(actions: Sequence[tuple[bool, int, list[int]]], victim: Owner | None, in_steps: bool) -> list[int]:
    """The cached tokens reported to strangers that ask in turn. victim: another owner that asks, if any. in_steps: the
    strangers do not wait for the victim's answers."""
    sched, told = Scheduler(LIMITS, SmallBlocks(b"")), []
    names = [*strangers(3), PUBLIC]
    for key, (is_victims, name, prompt) in enumerate(actions):
        if not is_victims:
            job = sched.submit(key, prompt, 2, 0.0, owner=names[name])
            assert isinstance(job, Job)
            admit_all(sched)
            while job in sched.running or job in sched.waiting:
                compute(sched)
                admit_all(sched)
            told.append(job.cached_tokens)
        elif victim is not None:
            assert isinstance(sched.submit(key, prompt, 2, 0.0, owner=victim), Job)
            admit_all(sched)
            if not in_steps:
                run_to_end(sched)
    return told


@given(ACTIONS, st.booleans())
@settings(max_examples=100, deadline=None)
def test_with_a_salt_nobody_can_tell_that_anything_was_asked(
    actions: list[tuple[bool, int, list[int]]], in_steps: bool
) -> None:
    salted = Owner(b"s" * 16)
    assert transcript(actions, salted, in_steps) == transcript(actions, None, in_steps)


@given(ACTIONS, st.booleans(), st.sampled_from([PUBLIC, *strangers(1)]))
@settings(max_examples=100, deadline=None)
def test_of_another_swarm_nothing_shows_whatever_its_members_declare(
    actions: list[tuple[bool, int, list[int]]], in_steps: bool, member: Owner
) -> None:
    """Not even prompts that hold no secrets, and not for the same peer, if it is in both swarms."""
    victim = Owner(member.tag, member.subnet, b"s" * 16)
    assert transcript(actions, victim, in_steps) == transcript(actions, None, in_steps)


@given(ACTIONS, st.booleans())
@settings(max_examples=100, deadline=None)
def test_without_one_only_whole_blocks_can_show(actions: list[tuple[bool, int, list[int]]], in_steps: bool) -> None:
    """Blocks have four tokens in this test."""
    seen, control = transcript(actions, VICTIM, in_steps), transcript(actions, None, in_steps)
    assert all(found == without or found % 4 == 0 for found, without in zip(seen, control, strict=True))


def test_what_is_kept_for_others_does_not_outlive_its_own_use() -> None:
    """A stranger stores guesses, displaces everything unused, and checks which guesses are still cached. The beginning
    of another client's running prompt must not be among them."""
    rig = Rig(400)
    secret = [10, 11, 12, 13, 14, 15]
    rig.submit(0, [*secret, *[16] * 30], 100, owner=VICTIM)
    for _ in range(3):
        rig.loop.step()
    right, wrong, me = strangers(3)
    guesses = [(secret, right), ([*secret[:-1], 19], wrong)]
    floods = [([first] * 110, me) for first in range(20, 26)]
    for key, (prompt, owner) in enumerate([*guesses, *floods, *guesses], start=1):
        rig.submit(key, prompt, 1, owner=owner)
        found = rig.run(key)
        assert isinstance(found, ipc.Ended) and found.usage.cached_tokens == 0
    assert any(job.key == 0 for job in rig.loop.scheduler.running), "it was there all the time"


def test_the_same_owner_finds_every_token_also_after_a_restart(tmp_path: Path) -> None:
    prompt, public = [*range(10, 40)] * 2, [*range(40, 10, -1)] * 2
    with opened(tmp_path) as tiers:
        assert tiers.ask(prompt, 1, VICTIM) == tiers.ask(public, 1, PUBLIC) == 0
        assert tiers.ask([*prompt, 9], 1, VICTIM) == tiers.ask([*public, 9], 1, PUBLIC) == 60
    with opened(tmp_path) as tiers:
        assert tiers.ask([*prompt, 8], 1, OTHER) == tiers.ask([*prompt, 8], 1, PUBLIC) == 0
        assert tiers.ask([*prompt, 8], 1, VICTIM) == tiers.ask([*public, 8], 1, PUBLIC) == 60


def a_prefix() -> list[int]:
    chance = random.Random(3)
    return [chance.randrange(10, VOCAB - 1) for _ in range(2 * STRIDE + 30)]


@pytest.mark.parametrize("has_tier", [False, True])
def test_what_two_subnets_asked_is_everybodys_in_whole_blocks(has_tier: bool) -> None:
    prefix = a_prefix()
    one, same, two, three = (Owner(bytes([n]) * 16, house) for n, house in enumerate(("a", "a", "b", "c")))
    rig = Tiers(1_000).rig if has_tier else Rig(1_000)
    askers = (one, same, two, three, same, one)
    found = [ask(rig, key, [*prefix, key, key], owner)[0] for key, owner in enumerate(askers)]
    assert found == [0, 0, 0, 2 * STRIDE, len(prefix), len(prefix)]


@pytest.mark.parametrize("has_tier", [False, True])
def test_what_is_said_to_hold_no_secrets_is_everybodys_at_once_and_nothing_else(has_tier: bool) -> None:
    prefix, rest = a_prefix(), [*range(10, 40), *range(10, 40), *range(10, 30)]
    rig = Tiers(1_000).rig if has_tier else Rig(1_000)
    for key, owner in enumerate((VICTIM, Owner(b"salt".ljust(16)))):
        prompt = [key + 3, *prefix[1:], *rest]
        assert ask(rig, 3 * key, prompt, owner, open_tokens=len(prefix))[0] == 0
        assert ask(rig, 3 * key + 1, prompt, OTHER)[0] == 2 * STRIDE
        assert ask(rig, 3 * key + 2, [*prompt, 5], owner, open_tokens=len(prefix))[0] == len(prompt)


def test_what_is_open_is_so_in_the_second_tier_and_after_a_restart(tmp_path: Path) -> None:
    prefix = a_prefix()
    with opened(tmp_path, cells=500) as tiers:
        for key, owner in enumerate(strangers(3)):
            tiers.ask([*prefix, key + 10], 1, owner)
        for first in range(3):
            tiers.ask([first] * 400, 1, Owner(b"flood".ljust(16)))
        assert tiers.ask([*prefix, 14, 15], 1, OTHER) == 2 * STRIDE
    with opened(tmp_path, cells=500) as tiers:
        assert tiers.ask([*prefix, 9], 1, strangers(9)[8]) == 2 * STRIDE


def test_the_second_tier_keeps_swarms_apart_also_after_a_restart(tmp_path: Path) -> None:
    prefix, swarm = a_prefix(), b"s" * 16
    members, others = [Owner(one.tag, one.subnet, swarm) for one in strangers(4)], strangers(4)
    with opened(tmp_path, cells=500) as tiers:
        for key, member in enumerate(members[:2]):
            tiers.ask([*prefix, key + 10], 1, member)
        for first in range(3):
            tiers.ask([first] * 400, 1, Owner(b"flood".ljust(16)))
        assert tiers.ask([*prefix, 13], 1, others[0]) == tiers.ask([*prefix, 13], 1, PUBLIC) == 0
        assert tiers.ask([*prefix, 14], 1, members[2]) == 2 * STRIDE
    with opened(tmp_path, cells=500) as tiers:
        assert tiers.ask([*prefix, 15], 1, others[3]) == 0
        assert tiers.ask([*prefix, 16], 1, members[3]) == 2 * STRIDE
