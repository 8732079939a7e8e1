"""Whole nodes for tests: over the in-memory network, with fake engines."""

import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import combinations

import trio

from mycelia.node.app import Node
from mycelia.node.engine.engine import Residence
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.settings import FakeSettings
from mycelia.node.network.identity import Identity
from mycelia.node.network.memory import MemoryNetwork, MemorySwarm
from mycelia.node.network.network import NetworkSettings
from mycelia.proto.config import OverlayConfig
from mycelia.proto.wire.messages import Ask, ChatMessage, EntryFrame, Sampling, Text, Vitals

LONG = "the quick brown fox jumps over the lazy dog and " * 8


class Member:
    """A node of the test swarm, with access to its parts."""

    def __init__(self, node: Node, engine: FakeEngine, network: MemoryNetwork) -> None:
        self.node = node
        self.engine = engine
        self.network = network

    @property
    def peer(self) -> bytes:
        return self.network.peer_id


class AwayEngine(FakeEngine):
    """Its model is not loaded, and loading takes ``load_s``."""

    load_s = 10.0

    @property
    def residence(self) -> Residence:
        return Residence("unloaded", self.load_s)

    def vitals(self) -> Vitals:
        rate = 100
        return Vitals(
            queued_tokens=round(rate * self.load_s), active_requests=0, waiting_requests=0, slots=8, prefill_rate=rate
        )


@asynccontextmanager
async def open_members(
    count: int,
    config: OverlayConfig = OverlayConfig(),
    models: Sequence[str] = (),
    links: Iterable[tuple[int, int]] | None = None,
    listen: Callable[[int], tuple[str, ...]] = lambda number: (),
    **engine_options: float,
) -> AsyncIterator[tuple[MemorySwarm, list[Member]]]:
    """``count`` nodes, connected and introduced to each other. models: one for each node, if they differ. links: pairs
    of connected nodes, besides those of one model; None: all. listen: for the first (1) and the others."""
    links = list(combinations(range(count), 2) if links is None else links)
    async with AsyncExitStack() as stack:
        swarm = await stack.enter_async_context(MemorySwarm(random.Random(1)))
        nursery = await stack.enter_async_context(trio.open_nursery())
        members = []
        for number in range(count):
            identity = Identity(bytes([number + 1]) * 32)
            settings = NetworkSettings(identity=identity, listen=listen(number + 1))
            network = await stack.enter_async_context(swarm.open_network(settings))
            named = {"model_name": models[number]} if models else {}
            engine = FakeEngine(FakeSettings(**named, **engine_options))  # type: ignore[arg-type]
            node = Node(identity, engine, network, 1, config=config)
            await nursery.start(node.run)
            members.append(Member(node, engine, network))
        if models:  # (nodes of one model find each other, others by their bootstrap addresses)
            for one, other in links:
                swarm.link(members[one].peer, members[other].peer)
        await trio.sleep(2)  # of virtual time, in which all introductions end
        for one, other in links:
            assert swarm.connected(members[one].peer, members[other].peer)
        assert all(len(member.node.state().peers) == len(member.network.peers()) for member in members)
        yield swarm, members
        nursery.cancel_scope.cancel()


def an_ask(text: str, max_tokens: int = 8, model: str = "", cache_salt: str = "public") -> Ask:
    return Ask(
        request_id=bytes(16),
        model=model,
        messages=(ChatMessage(role="user", content=text),),
        sampling=Sampling(max_tokens=max_tokens),
        cache_salt=cache_salt,
    )


async def frames_of(member: Member, ask: Ask, client: bytes = b"") -> list[EntryFrame]:
    with trio.fail_after(300):
        async with member.node.ask(ask, None, client) as frames:
            return [frame async for frame in frames]


def text_of(frames: list[EntryFrame]) -> str:
    return "".join(frame.text for frame in frames if isinstance(frame, Text))
