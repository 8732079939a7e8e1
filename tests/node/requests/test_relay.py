"""Prompts for models of other nodes: strangers can neither have a node flood another, nor take all it passes on."""

from collections import Counter
from contextlib import AsyncExitStack

import pytest
import trio

from mycelia.node.network.identity import new_identity
from mycelia.node.network.memory import MemoryNetwork, MemorySwarm
from mycelia.node.network.network import Malformed, MessageStream, NetworkSettings
from mycelia.node.requests.entry import ASK
from mycelia.node.requests.relay import MAX_RELAYED_PER_SERVER, RETRY_MS
from mycelia.proto.wire.messages import Answered, EntryFrame, Failed
from tests.node.members import LONG, Member, an_ask, frames_of, open_members


async def ask(network: MemoryNetwork, entry: bytes, model: str) -> EntryFrame:
    """The last frame of an answer."""
    stream = await network.open(entry, ASK)
    await stream.send(an_ask(LONG, model=model))
    frame = await stream.receive()
    while not isinstance(frame, Answered | Failed):
        frame = await stream.receive()
    await stream.aclose()
    return frame


async def strangers(stack: AsyncExitStack, swarm: MemorySwarm, entry: Member, count: int) -> list[MemoryNetwork]:
    networks = []
    for _ in range(count):
        settings = NetworkSettings(identity=new_identity(), overlay=False)
        networks.append(await stack.enter_async_context(swarm.open_network(settings)))
        swarm.link(networks[-1].peer_id, entry.peer)
    return networks


async def test_a_node_asks_another_no_more_than_that_one_takes(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three peers ask 40 times each for a model that is served elsewhere, and every answer takes for ever."""
    async with (
        open_members(2, models=("small", "large"), links=((0, 1),)) as (swarm, (one, two)),
        AsyncExitStack() as stack,
        trio.open_nursery() as nursery,
    ):
        num_open, most_open, over = 0, 0, trio.Event()

        async def endless(stream: MessageStream) -> None:
            nonlocal num_open, most_open
            assert stream.peer == one.peer
            await stream.receive()
            num_open += 1
            most_open = max(most_open, num_open)
            try:
                await over.wait()
            finally:
                num_open -= 1

        serve = two.network.handlers[ASK]
        two.network.serve(ASK, endless)
        last: list[EntryFrame] = []

        async def flood(network: MemoryNetwork) -> None:
            last.append(await ask(network, one.peer, "large"))

        for network in await strangers(stack, swarm, one, 3):
            for _ in range(40):
                nursery.start_soon(flood, network)
        await trio.sleep(5)
        assert num_open == most_open == 24, "three quarters of what goes to one node"
        assert len(last) == 120 - num_open
        assert {(frame.code, frame.retryable, frame.retry_after_ms) for frame in last if isinstance(frame, Failed)} == {
            ("overloaded", True, RETRY_MS)
        }
        two.network.serve(ASK, serve)
        (frame,) = [frame for frame in await frames_of(one, an_ask(LONG, model="large")) if isinstance(frame, Answered)]
        assert frame.served_by == two.peer, "the owner's own prompts still get there"
        nursery.cancel_scope.cancel()
    assert most_open < MAX_RELAYED_PER_SERVER


async def test_places_are_free_again(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        open_members(2, models=("small", "large"), links=((0, 1),)) as (swarm, (one, two)),
        AsyncExitStack() as stack,
    ):
        (client,) = await strangers(stack, swarm, one, 1)
        outcomes: Counter[str] = Counter()
        for _ in range(3):
            for _ in range(40):
                outcomes[type(await ask(client, one.peer, "large")).__name__] += 1
            outcomes[type(await ask(client, one.peer, "nobody's")).__name__] += 1
        assert outcomes == {"Answered": 120, "Failed": 3}
        assert not [event for event in two.network.events_queue._events if isinstance(event, Malformed)]
