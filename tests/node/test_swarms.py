"""A node in a private swarm and in the public one: in memory, with fake engines that take time.

``both`` is such a node, ``member`` is in the private swarm only, ``stranger`` in the public one only.
"""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from mycelia.node.app import Node
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.settings import FakeSettings
from mycelia.node.engine.shares import EngineShares
from mycelia.node.network.identity import Identity
from mycelia.node.network.memory import MemoryNetwork, MemorySwarm
from mycelia.node.network.network import NetworkSettings
from mycelia.node.swarms import Swarms
from mycelia.proto.cells.cells import ROOT, Cell
from mycelia.proto.wire.blocks import STRIDE, block_hashes
from mycelia.proto.wire.messages import Answered, EntryFrame, Failed
from tests.node.members import LONG, Member, an_ask, frames_of, open_members, text_of
from tests.node.requests.test_privacy import probed, prompt_of

SALT = b"of the private swarm".ljust(32)
RATES = {"prefill_rate": 100.0, "decode_rate": 100.0}


@dataclass
class World:
    private: MemorySwarm
    public: MemorySwarm
    both: Swarms
    at_home: Member
    in_public: Member
    member: Member
    stranger: Member

    async def ask(self, text: str, model: str, cache_salt: str = "public") -> list[EntryFrame]:
        with trio.fail_after(300):
            async with self.both.ask(an_ask(text, 8, model, cache_salt)) as frames:
                return [frame async for frame in frames]


@asynccontextmanager
async def open_world(**engine_options: float) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        private, public = [await stack.enter_async_context(MemorySwarm(random.Random(number))) for number in range(2)]

        async def part(
            swarm: MemorySwarm, number: int, salt: bytes, engine: FakeEngine, shares: EngineShares
        ) -> Member:
            identity = Identity(bytes([number]) * 32)
            network: MemoryNetwork = await stack.enter_async_context(
                swarm.open_network(NetworkSettings(identity=identity))
            )
            share = shares.of(salt, is_first=bool(salt) and engine is mine)
            node = Node(identity, share, network, 1, swarm="home" if salt else "")
            await nursery.start(node.run)
            return Member(node, engine, network)

        mine, members, strangers = (FakeEngine(FakeSettings(**(RATES | engine_options))) for _ in range(3))  # type: ignore[arg-type]
        shares = [EngineShares(engine) for engine in (mine, members, strangers)]
        at_home = await part(private, 1, SALT, mine, shares[0])
        in_public = await part(public, 2, b"", mine, shares[0])
        member = await part(private, 3, SALT, members, shares[1])
        stranger = await part(public, 4, b"", strangers, shares[2])
        for share in shares:
            nursery.start_soon(share.run)
        private.link(at_home.peer, member.peer)
        public.link(in_public.peer, stranger.peer)
        await trio.sleep(2)  # (of virtual time: the introductions)
        both = Swarms(at_home.node, in_public.node)
        yield World(private, public, both, at_home, in_public, member, stranger)
        nursery.cancel_scope.cancel()


def gossip_in(swarm: MemorySwarm) -> list[bytes]:
    """The messages that nodes publish from now on."""
    sent, gossip = list[bytes](), swarm.gossip

    def note(publisher: bytes, namespace: bytes, data: bytes, cell: Cell = ROOT) -> None:
        sent.append(data)
        gossip(publisher, namespace, data, cell)

    swarm.gossip = note  # type: ignore[method-assign]
    return sent


def announced(reader: Member, owner: Member, namespace: bytes) -> set[int]:
    """The block hashes that ``reader`` knows of ``owner``'s cache."""
    return set(reader.node.overlay.estimates.entries(owner.peer, namespace))


async def test_what_one_swarm_computed_is_neither_announced_nor_reused_in_the_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """In both directions, for prompts that are open to all of their swarm."""
    heard = []
    for was_asked in (True, False):
        async with open_world() as world:
            open_to, home = world.in_public.engine.info.namespace, world.at_home.node.state().namespace
            sent = gossip_in(world.public)
            if was_asked:
                await frames_of(world.at_home, an_ask(LONG))
            await frames_of(world.in_public, an_ask(LONG[7:]))
            await trio.sleep(30)  # (of virtual time: until every digest is sent)
            prompts = [await prompt_of(world.member, text) for text in (LONG, LONG[7:])]
            chains = {
                (number, namespace): block_hashes(namespace, prompt)
                for number, prompt in enumerate(prompts)
                for namespace in (open_to, bytes.fromhex(home))
            }
            told_public = announced(world.stranger, world.in_public, open_to)
            told_home = announced(world.member, world.at_home, bytes.fromhex(home))
            assert told_public >= set(chains[1, open_to]), "the public one's own"
            assert not told_public & set(chains[0, open_to]) and not told_home & set(chains[1, bytes.fromhex(home)])
            assert (told_home >= set(chains[0, bytes.fromhex(home)])) == was_asked
            for entry in {*chains[0, open_to], *chains[0, bytes.fromhex(home)]}:
                assert not any(entry.to_bytes(8, order) in data for data in sent for order in ("big", "little"))
            heard.append(await probed(world.stranger, world.in_public, [*prompts[0], 0], scope=2))
            answered = (await frames_of(world.at_home, an_ask(LONG[7:])))[-1]
            assert isinstance(answered, Answered) and answered.usage.cached_tokens < STRIDE
    assert heard[0] == heard[1] and heard[0][0] < STRIDE, "neither the count nor the time tells"


async def test_each_swarm_reuses_its_own(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world:
        for part in (world.at_home, world.in_public):
            for cached in (0, len(LONG)):
                answered = (await frames_of(part, an_ask(LONG)))[-1]
                assert isinstance(answered, Answered) and answered.usage.cached_tokens >= cached
                assert bool(answered.usage.cached_tokens) == bool(cached)
        assert len(world.at_home.engine.requests) == 4, "both are served by the same engine"


async def test_a_prompt_enters_the_private_swarm_unless_it_asks_for_the_public_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_world() as world:
        for model, num_public in (("", 0), ("fake", 0), ("@public", 1), ("fake@public", 2)):
            frames = await world.ask(LONG, model)
            assert isinstance(frames[-1], Answered), frames
            engines = [one.engine for one in (world.at_home, world.member, world.stranger)]
            swarms = [request.owner.swarm for engine in engines for request in engine.requests]
            assert swarms.count(b"") == num_public < len(swarms)
        world.both.aliases = {"gpt": "fake", "open": "@public"}
        for model in ("gpt@public", "open"):
            assert isinstance((await world.ask(LONG, model))[-1], Answered)
        assert isinstance((await world.ask(LONG, "gpt"))[-1], Answered)
        public = [one for engine in engines for one in engine.requests if not one.owner.swarm]
        assert len(public) == 4
        assert [row.model for row in await world.both.models()] == ["fake", "fake@public"]
        state = world.both.state()
        assert state.public is not None and [len(state.peers), len(state.public.peers)] == [1, 1]
        assert state.peer != state.public.peer
    async with open_members(1) as (_, (one,)):
        for swarm, end in (("", Answered), ("home", Failed)):
            one.node.swarm = swarm
            async with Swarms(one.node).ask(an_ask("hello", model="@public")) as frames_:
                assert isinstance([frame async for frame in frames_][-1], end)


async def test_the_end_of_one_swarm_does_not_concern_the_other(autojump_clock: trio.testing.MockClock) -> None:
    async with open_world() as world:
        for cut, swarm, model in ((world.stranger, world.public, ""), (world.member, world.private, "@public")):
            swarm.cut(cut.peer)
            await trio.sleep(30)
            assert text_of(await world.ask("hello", model))
            swarm.heal(cut.peer)
        world.at_home.engine.crash()
        await trio.sleep(5)
        for model in ("", "@public"):
            assert text_of(await world.ask(LONG, model))


async def test_members_come_before_strangers_and_strangers_get_a_share(autojump_clock: trio.testing.MockClock) -> None:
    """Five keep the node busy from each side; its own part of the time follows the weights, and nobody starves."""
    async with open_world(slots=1, decode_rate=20.0, max_waiting=64) as world:
        served = {"member": 0, "stranger": 0}

        async def keep_asking(who: Member, at: Member, name: str) -> None:
            number = 0
            while True:
                number += 1
                prompt = [*await prompt_of(who, f"{name} {number} of {LONG}"), 0]
                await probed(who, at, prompt, namespace=bytes.fromhex(at.node.state().namespace))
                served[name.split()[0]] += 1

        with trio.move_on_after(900):
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(keep_asking, world.member, world.at_home, f"member {number}")
                    nursery.start_soon(keep_asking, world.stranger, world.in_public, f"stranger {number}")
        assert 2.5 < served["member"] / served["stranger"] < 5.5, served


@pytest.mark.parametrize("name", ["member", "stranger"])
async def test_a_peer_is_counted_by_its_swarm(autojump_clock: trio.testing.MockClock, name: str) -> None:
    async with open_world() as world:
        who, at = (world.member, world.at_home) if name == "member" else (world.stranger, world.in_public)
        prompt = [*await prompt_of(who, LONG), 0]
        await probed(who, at, prompt, namespace=bytes.fromhex(at.node.state().namespace))
        request = at.engine.requests[-1]
        assert request.client == who.peer and request.subnet.startswith("member ") == (name == "member")
