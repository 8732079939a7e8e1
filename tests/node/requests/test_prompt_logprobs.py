"""Logprobs of prompts: what an entry node knows already is not asked for again, whichever node serves."""

import math
import random
from contextlib import aclosing

import msgspec
import pytest
import trio
import trio.testing

from mycelia.node.engine.engine import EngineRequest
from mycelia.node.requests.prompt_logprobs import LogprobsTable, Owner, PromptReports
from mycelia.node.requests.rejoin import AnswerSoFar, rejoining
from mycelia.proto.cache.sharing import Salt
from mycelia.proto.wire.blocks import pack_tokens, unpack_tokens
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import (
    Answered,
    Ask,
    EntryFrame,
    Failed,
    Logprob,
    PromptLogprobs,
    Text,
    TokenLogprobs,
)
from tests.node.members import Member, an_ask, frames_of, open_members
from tests.node.requests.test_rejoin import a_client

OWNER, OTHER = Owner(b"n", Salt(b"a"), 1), Owner(b"n", Salt(b"b"), 1)
SHOTS = list(range(100)) * 2


def entries(tokens: list[int]) -> list[TokenLogprobs]:
    """One that depends on all tokens before it, as a model's does."""
    return [
        TokenLogprobs(chosen=Logprob(token=token, text=b"", logprob=-float(sum(tokens[: place + 1]))), top=())
        for place, token in enumerate(tokens)
    ]


def test_the_table_knows_every_prefix_it_was_told() -> None:
    chance, table, told = random.Random(1), LogprobsTable(40_000), list[list[int]]()
    for _ in range(500):
        stem = chance.choice(told)[: chance.randrange(60)] if told and chance.random() < 0.8 else []
        tokens = stem + [chance.randrange(3) for _ in range(chance.randrange(1, 40))]
        known = table.known(OWNER, tokens)
        assert known == entries(tokens)[: len(known)], "another prompt's"
        longest = max((len(common(tokens, other)) for other in told), default=0)
        assert len(known) == longest, "nothing was dropped"
        table.add(OWNER, tokens, entries(tokens))
        table.check_invariants()
        told.append(tokens)
    assert not table.known(OTHER, told[0]) and not table.known(Owner(b"n", OWNER.salt, 2), told[0])


def common(one: list[int], other: list[int]) -> list[int]:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def test_a_full_table_drops_what_was_longest_unused() -> None:
    chance, table = random.Random(2), LogprobsTable(300)
    for number in range(300):
        tokens = SHOTS[: chance.randrange(20, 60)] + [200 + number] * chance.randrange(1, 30)
        assert table.known(OWNER, tokens) == entries(tokens)[: len(table.known(OWNER, tokens))]
        table.add(OWNER, tokens, entries(tokens))
        table.check_invariants()
    assert len(table.known(OWNER, SHOTS)) >= 20, "what all prompts share is used by all"
    table.add(OWNER, list(range(1_000)), entries(list(range(1_000))))
    table.check_invariants()


async def test_prompts_that_begin_alike_wait_for_the_first(autojump_clock: trio.testing.MockClock) -> None:
    reports, first = PromptReports(), entries([0])[0]
    one = await reports.begin(OWNER, [*SHOTS, 1, 2], first, 0)
    assert one.logprobs == [first]
    with trio.fail_after(1):
        assert (await reports.begin(OTHER, [*SHOTS, 1, 3], first, 0)).logprobs == [first], "another owner"
        assert (await reports.begin(OWNER, [5, *SHOTS], first, 0)).logprobs == [first], "another prompt"
    known: list[int] = []

    async def ask(end: int) -> None:
        report = await reports.begin(OWNER, [*SHOTS, 1, end], first, 0)
        known.append(len(report.logprobs))
        reports.end(report)

    async with trio.open_nursery() as nursery:
        for end in (3, 4, 2):
            nursery.start_soon(ask, end)
        await trio.testing.wait_all_tasks_blocked()
        assert known == []
        one.logprobs += entries([*SHOTS, 1, 2])[1:]
        reports.end(one)
        reports.end(one)
    assert sorted(known) == [201, 201, 202]


async def test_one_that_fails_lets_the_others_go_on(autojump_clock: trio.testing.MockClock) -> None:
    reports, first = PromptReports(), entries([0])[0]
    one, begun = await reports.begin(OWNER, SHOTS, first, 0), []

    async def ask() -> None:
        begun.append(await reports.begin(OWNER, SHOTS, first, 0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        reports.end(one)
    with trio.move_on_after(1) as waiting:
        await reports.begin(OWNER, SHOTS, first, 0)  # (waits for the second one, and is cancelled)
    assert waiting.cancelled_caught
    reports.end(begun[0])
    with trio.fail_after(1):
        await reports.begin(OWNER, SHOTS, first, 0)  # Nothing is left of the cancelled one.


# --- in a swarm -------------------------------------------------------------------------------------------------------


def scoring(tokens: list[int], max_tokens: int = 1, top: int = 1, salt: str = "public") -> Ask:
    ask = an_ask("", max_tokens, cache_salt=salt)
    sampling = msgspec.structs.replace(ask.sampling, prompt_logprobs=top, logprobs=1)
    return msgspec.structs.replace(ask, messages=(), tokens=pack_tokens(tokens), sampling=sampling)


def reported(frames: list[EntryFrame]) -> list[int]:
    """The tokens reported, which must be in order, before any text."""
    tokens: list[int] = []
    for frame in frames:
        if isinstance(frame, PromptLogprobs):
            assert frame.position == len(tokens)
            tokens += [entry.chosen.token for entry in frame.logprobs]
        assert not isinstance(frame, PromptLogprobs) or not any(
            isinstance(one, Text) for one in frames[: frames.index(frame)]
        )
    return tokens


def requests_of(members: list[Member]) -> list[EngineRequest]:
    return [request for member in members for request in member.engine.requests]


async def test_each_prompt_is_reported_and_only_its_new_end_computed(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, members):
        (member,) = members
        for number, end in enumerate(([101, 102], [101, 103, 104], [101, 102], [99])):
            frames = await frames_of(member, scoring([*SHOTS, *end]))
            assert reported(frames) == [*SHOTS, *end] and isinstance(frames[-1], Answered)
            assert sum(isinstance(frame, Text) and bool(frame.tokens) for frame in frames) == 1, "also an end token"
            last = requests_of(members)[-1]
            assert last.sampling.logprobs_from == (1, 201, 202, 200)[number]
            assert frames[-1].usage.cached_tokens == (0, 200, 201, 199)[number], "no logits in the cache"


async def test_owners_do_not_see_each_others(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, members):
        for salt in ("mine", "yours", "mine"):
            frames = await frames_of(members[0], scoring([*SHOTS, 101], salt=salt))
            assert reported(frames) == [*SHOTS, 101]
        assert [request.sampling.logprobs_from for request in requests_of(members)] == [1, 1, 201]


async def test_a_lost_node_is_replaced_in_the_middle_of_the_prompt(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2) as (_, members):
        for number, member in enumerate(members):  # (one of them is asked first)
            member.engine.fail_next(0)
            frames = await frames_of(members[0], scoring([number, *SHOTS], max_tokens=4, salt=str(number)))
            assert reported(frames) == [number, *SHOTS] and isinstance(frames[-1], Answered)
        starts = [request.sampling.logprobs_from for request in requests_of(members)]
        assert len(starts) > 2 and set(starts) == {1, 201}, "the next node is asked for none again"


async def test_no_token_warms_a_prefix(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, members):
        ask = scoring(SHOTS, max_tokens=0)
        warm = msgspec.structs.replace(ask, sampling=msgspec.structs.replace(ask.sampling, prompt_logprobs=0))
        frames = await frames_of(members[0], warm)
        assert isinstance(frames[-1], Answered) and frames[-1].reason == "length"
        assert frames[-1].usage.completion_tokens == 0 and frames[-1].usage.prompt_tokens == len(SHOTS)
        again = await frames_of(members[0], msgspec.structs.replace(warm, request_id=b"2" * 16))
        assert isinstance(again[-1], Answered) and again[-1].usage.cached_tokens == len(SHOTS) - 1
        assert reported(await frames_of(members[0], msgspec.structs.replace(ask, request_id=b"3" * 16))) == SHOTS


async def test_what_no_answer_could_hold_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, members):
        frames = await frames_of(members[0], scoring([1] * 20_000, top=20))
        assert isinstance(frames[-1], Failed) and "alternatives" in frames[-1].message
        assert isinstance((await frames_of(members[0], scoring([1] * 4_000)))[-1], Answered)


@pytest.mark.parametrize("start", [0, 1, 150, 202, 500])
async def test_a_client_may_ask_for_the_end_only(start: int, autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, members):
        ask = scoring([*SHOTS, 101, 102])
        sampling = msgspec.structs.replace(ask.sampling, logprobs_from=start)
        frames = await frames_of(members[0], msgspec.structs.replace(ask, sampling=sampling))
    told = [entry.chosen.token for frame in frames if isinstance(frame, PromptLogprobs) for entry in frame.logprobs]
    assert told == [*SHOTS, 101, 102][start:] and unpack_tokens(ask.tokens)[-1] == 102


@pytest.mark.parametrize("lost_after", [0, 40, 150, 201])
async def test_the_entry_node_vanishes_in_the_middle_of_the_prompt(
    lost_after: int, autojump_clock: trio.testing.MockClock
) -> None:
    ask, frames = scoring([*SHOTS, 101], max_tokens=4), list[EntryFrame]()
    async with a_client(3) as (swarm, _, client):
        with trio.fail_after(300):
            async with aclosing(rejoining(AnswerSoFar(ask), client.enter, math.inf)) as stream:
                async for frame in stream:
                    frames.append(frame)
                    if len(reported(frames)) >= lost_after and len(client.entered) == 1:
                        swarm.cut(client.entered[0])
    assert len(client.entered) == 2 and isinstance(frames[-1], Answered)
    assert reported(frames) == [*SHOTS, 101]


@pytest.mark.parametrize("start", [1, 5])
async def test_an_entry_node_cannot_report_another_part(start: int, autojump_clock: trio.testing.MockClock) -> None:
    so_far = AnswerSoFar(scoring(SHOTS))
    so_far.add_prompt(PromptLogprobs(position=0, logprobs=tuple(entries([1, 2]))))
    with pytest.raises(RemoteError):
        so_far.add_prompt(PromptLogprobs(position=start, logprobs=tuple(entries([1]))))
    assert so_far.rest().sampling.logprobs_from == 2
    plain = AnswerSoFar(an_ask("x"))
    with pytest.raises(RemoteError):
        plain.add_prompt(PromptLogprobs(position=0, logprobs=tuple(entries([1]))))
