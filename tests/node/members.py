"""Nodes for tests: whole ones over the in-memory network, with fake engines."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import combinations

import trio

from node.app import Node
from node.engine.fake import FakeEngine, FakeSettings
from node.network.identity import Identity
from node.network.memory import MemoryNetwork, MemorySwarm
from node.network.network import NetworkSettings
from proto.config import OverlayConfig
from proto.messages import Ask, ChatMessage, EntryFrame, Sampling, Text

LONG = "the quick brown fox jumps over the lazy dog and " * 8


class Member:
    """A node of the test swarm with its parts in reach."""

    def __init__(self, node: Node, engine: FakeEngine, network: MemoryNetwork) -> None:
        self.node = node
        self.engine = engine
        self.network = network

    @property
    def peer(self) -> bytes:
        return self.network.peer_id


@asynccontextmanager
async def open_members(
    count: int,
    config: OverlayConfig = OverlayConfig(),
    models: Sequence[str] = (),
    listen: Callable[[int], tuple[str, ...]] = lambda number: (),
    **engine_options: float,
) -> AsyncIterator[tuple[MemorySwarm, list[Member]]]:
    """``count`` nodes, all connected and introduced to each other. models: of each, where they differ. listen: where
    the first one (1) and the others listen."""
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
            for one, other in combinations(members, 2):
                swarm.link(one.peer, other.peer)
        await trio.sleep(2)  # of virtual time, in which all introductions are over
        assert all(len(member.node.state().peers) == count - 1 for member in members)
        yield swarm, members
        nursery.cancel_scope.cancel()


def an_ask(text: str, max_tokens: int = 8, model: str = "") -> Ask:
    return Ask(
        request_id=bytes(16),
        model=model,
        messages=(ChatMessage(role="user", content=text),),
        sampling=Sampling(max_tokens=max_tokens),
    )


async def frames_of(member: Member, ask: Ask) -> list[EntryFrame]:
    with trio.fail_after(300):
        async with member.node.ask(ask) as frames:
            return [frame async for frame in frames]


def text_of(frames: list[EntryFrame]) -> str:
    return "".join(frame.text for frame in frames if isinstance(frame, Text))
