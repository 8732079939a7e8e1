"""What a peer can learn over the network about others' prompts: in memory, with fake engines that take time."""

import random
from collections.abc import Sequence
from functools import partial

import msgspec
import pytest
import trio
import trio.testing
from blake3 import blake3

from mycelia.node.errors import BusyError
from mycelia.node.requests.entry import GENERATE
from mycelia.node.requests.salts import Salts
from mycelia.proto.cache.sharing import CLIENTS, EVERYBODY, PUBLIC, SALTED, Owner, owner_of
from mycelia.proto.wire.blocks import STRIDE, block_hashes, pack_tokens
from mycelia.proto.wire.messages import (
    Accepted,
    Answered,
    Bounced,
    ChatMessage,
    Conversation,
    Failed,
    Final,
    Generate,
    Sampling,
    Tokens,
)
from tests.node.members import LONG, Member, an_ask, frames_of, open_members

SECRET = "My credit card number is 4929 1734 5608 9015, and it is valid until"
PREFILL_RATE = 10.0
"""Tokens/s: so slow that the network's delays are a small part of a token's time."""


async def probed(
    stranger: Member,
    victim: Member,
    prompt: Sequence[int],
    tag: bytes = b"",
    scope: int = CLIENTS,
    namespace: bytes = b"",
) -> tuple[int, float]:
    """(tokens reported as cached, seconds until the first token) of a request that only a peer can send."""
    generate = Generate(
        request_id=blake3(pack_tokens(prompt) + tag).digest(length=16),
        namespace=namespace or victim.engine.info.namespace,
        prompt=pack_tokens(prompt),
        sampling=Sampling(max_tokens=1),
        promised_tokens=0,
        tag=tag,
        scope=scope,
    )
    began = trio.current_time()
    stream = await stranger.network.open(victim.peer, GENERATE)
    await stream.send(generate)
    cached = first_s = -1.0
    while True:
        match await stream.receive():
            case Accepted(cached_tokens=cached_tokens):
                cached = cached_tokens
            case Tokens():
                first_s = trio.current_time() - began
            case Final(usage=usage):
                await stream.aclose()
                assert usage.cached_tokens == cached
                return int(cached), round(first_s, 1)
            case Failed() | Bounced() as refusal:
                raise AssertionError(refusal)


async def prompt_of(member: Member, text: str) -> list[int]:
    """The tokens up to the end of the text."""
    prompt = await member.engine.tokenize_chat(an_ask(text).conversation)
    return prompt[: bytes(token % 256 for token in prompt).index(text.encode()) + len(text)]


@pytest.mark.parametrize("named", ["as the peer", "by tags", "publicly"])
async def test_nothing_of_a_prompt_is_recovered_token_by_token(
    named: str, autojump_clock: trio.testing.MockClock
) -> None:
    """For every request that a peer can send: the replies and their times do not depend on the victim's prompts."""
    heard = []
    for was_asked in (True, False):
        async with open_members(2, prefill_rate=PREFILL_RATE) as (_, (victim, stranger)):
            if was_asked:
                await frames_of(victim, an_ask(SECRET, cache_salt=""))
            chance, answers = random.Random(5), list[tuple[int, float]]()
            for place in range(SECRET.index("4929"), SECRET.index(",")):
                for digit in [*chance.sample("0123456789", 3), SECRET[place]]:
                    guess = [*await prompt_of(victim, SECRET[:place] + digit), 0]
                    number = len(answers).to_bytes(16)
                    tag, scope = (number, SALTED) if named == "by tags" else (b"", CLIENTS)
                    scope = EVERYBODY if named == "publicly" else scope
                    answers.append(await probed(stranger, victim, guess, tag, scope))
            heard.append(answers)
    assert heard[0] == heard[1]
    if named != "publicly":  # (a public prompt shows exactly what other public prompts hold)
        assert all(cached % STRIDE == 0 for cached, _ in heard[0])


async def test_peers_are_told_of_what_is_open_alone(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(3) as (_, (one, two, three)):
        prompt = await prompt_of(one, LONG)
        chain = block_hashes(one.engine.info.namespace, prompt)

        async def told() -> int:
            await trio.sleep(15)  # (of virtual time: until every digest is sent)
            matches = two.node.overlay.estimates.matches(one.engine.info.namespace, chain)
            return matches.get(one.peer, 0)

        await frames_of(one, an_ask(LONG, cache_salt=""))
        await frames_of(one, an_ask(LONG + "!", cache_salt="a secret of some people"))
        assert await told() == 0
        await probed(three, one, [*prompt, 1], bytes(16))
        assert await told() == len(chain) > 4
        await frames_of(one, an_ask(LONG[7:], cache_salt="public"))
        chain = block_hashes(one.engine.info.namespace, await prompt_of(one, LONG[7:]))
        assert await told() == len(chain)


async def test_a_conversation_goes_back_to_where_it_was(autojump_clock: trio.testing.MockClock) -> None:
    """The node's digest does not have the conversation, but the entry node knows where it was."""
    async with open_members(3, prefill_rate=PREFILL_RATE) as (_, (one, two, _three)):
        said, served = LONG, []
        for _ in range(4):
            answered = (await frames_of(one, an_ask(said, cache_salt="")))[-1]
            assert isinstance(answered, Answered)
            served.append((answered.served_by, answered.usage.cached_tokens))
            said += "and on and on and on it goes, for another whole block and some more"
            await trio.sleep(120)
        assert len({peer for peer, _ in served}) == 1
        assert [cached > 300 for _, cached in served] == [False, True, True, True]
        answered = (await frames_of(two, an_ask(said, cache_salt="")))[-1]
        assert isinstance(answered, Answered) and answered.usage.cached_tokens == 0


async def test_shared_messages_are_their_tokens_alone(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, (one,)):
        system, user = ChatMessage(role="system", content=LONG), ChatMessage(role="user", content="my secret")
        whole = await one.engine.tokenize_chat(Conversation((system, user)))
        for count in (0, 1, 2, 3):
            ask = an_ask("", cache_salt="")
            await frames_of(one, msgspec.structs.replace(ask, messages=(system, user), shared_messages=count))
        told = [request.open_tokens for request in one.engine.requests]
    assert told[0] == 0 and told[2:] == [len(whole)] * 2
    shown = bytes(token % 256 for token in whole[: told[1]])
    assert LONG.encode() in shown and b"my" not in shown


async def test_a_place_is_lacking_for_shared_messages_alone(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, (one,)):
        tokenize, shared = one.engine.tokenize_chat, (ChatMessage(role="system", content="shared"),)

        async def busy(conversation: Conversation, client: bytes = b"", subnet: str = "") -> list[int]:
            if conversation.messages == shared:
                raise BusyError("too many texts wait", 3.0)
            return await tokenize(conversation, client, subnet)

        one.engine.tokenize_chat = busy  # type: ignore[method-assign]
        ask = msgspec.structs.replace(an_ask("", cache_salt=""), messages=shared * 2, shared_messages=1)
        failed = (await frames_of(one, ask))[-1]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.retryable, failed.retry_after_ms) == ("overloaded", True, 3_000)


async def test_a_salt_is_shared_by_who_knows_it_at_any_entry(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2) as (_, (one, two)):
        for number, entry in enumerate((one, one, two)):
            await frames_of(entry, an_ask(LONG + str(number), cache_salt="ours"))
        requests = [request for member in (one, two) for request in member.engine.requests]
        assert len({request.owner.tag for request in requests}) == len({id(m) for m in (one, two) if m.engine.requests})
        assert all(request.owner.subnet == "" for request in requests)


def keyed(key: bytes, data: bytes) -> bytes:
    return blake3(data + key).digest()


def test_owners_are_told_apart_and_none_can_be_claimed() -> None:
    salts, others = (Salts(partial(keyed, key)) for key in (b"1", b"2"))
    assert salts.of("public", b"any").scope == EVERYBODY and not salts.of("public", b"any").key
    assert salts.of("ours", b"a") == others.of("ours", b"b") and salts.of("ours", b"").scope == SALTED
    keys = {salts.of(salt, client).key for salt in ("", "ours", "theirs") for client in (b"", b"a")}
    assert len(keys | {others.of("", b"").key}) == 5
    tag = salts.of("", b"").tag_at(b"server")
    assert tag != salts.of("", b"").tag_at(b"another") and len(tag) == 16
    theirs = owner_of(b"", CLIENTS, b"peer", "house")
    assert owner_of(theirs.tag, CLIENTS, b"thief", "") != theirs and theirs.subnet == "house"
    assert owner_of(tag, SALTED, b"peer", "house") == Owner(owner_of(tag, CLIENTS, b"x", "").tag, "")
    assert owner_of(tag, EVERYBODY, b"peer", "house") == PUBLIC
    assert salts.passed_on("", b"a") not in ("", salts.passed_on("", b"b")) and salts.passed_on("x", b"") == "x"


async def test_a_key_sees_its_own_texts_in_the_tree(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, (one,)):
        for client, text in ((b"k" * 16, "of the first key"), (b"l" * 16, "of the second key")):
            async with one.node.ask(an_ask(text, cache_salt=""), client=client) as frames:
                assert [frame async for frame in frames]
        await frames_of(one, an_ask("of everybody"))
        await trio.testing.wait_all_tasks_blocked()  # The engine's last change has reached the node's tree.
        shown = {client: "".join(row.text for row in await one.node.tree(client)) for client in (b"", b"k" * 16)}
    assert all(name in shown[b""] for name in ("first", "second", "everybody"))
    assert "first" in shown[b"k" * 16] and "everybody" in shown[b"k" * 16] and "second" not in shown[b"k" * 16]
