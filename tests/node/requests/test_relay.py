"""Prompts for models of other nodes: strangers cannot make a node flood another, nor take all that it passes on."""

from collections import Counter
from contextlib import AsyncExitStack

import pytest
import trio
from structlog.testing import capture_logs

from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p.streams import MAX_OPENED_PER_PEER
from mycelia.node.network.memory import MemoryNetwork, MemorySwarm
from mycelia.node.network.network import Malformed, MessageStream, NetworkSettings
from mycelia.node.requests.entry import ASK
from mycelia.node.requests.relay import MAX_RELAYED_PER_SERVER, RETRY_MS
from mycelia.proto.wire.codec import MAX_MESSAGE_BYTES, encode
from mycelia.proto.wire.messages import Answered, Ask, ChatMessage, EntryFrame, Failed, Sampling
from tests.node.members import LONG, Member, an_ask, frames_of, open_members


async def ask(network: MemoryNetwork, entry: bytes, what: Ask) -> EntryFrame:
    """The last frame of an answer."""
    stream = await network.open(entry, ASK)
    await stream.send(what)
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
    """Three peers ask 40 times each for a model that another node serves, and no answer ever ends."""
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
            last.append(await ask(network, one.peer, an_ask(LONG, model="large")))

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
                outcomes[type(await ask(client, one.peer, an_ask(LONG, model="large"))).__name__] += 1
            outcomes[type(await ask(client, one.peer, an_ask(LONG, model="nobody's"))).__name__] += 1
        assert outcomes == {"Answered": 120, "Failed": 3}
        assert not [event for event in two.network.events_queue.waiting if isinstance(event, Malformed)]


def largest_ask(model: str) -> Ask:
    """The longest message that a stream accepts, before anything is added to it."""

    def of(length: int) -> Ask:
        turns = ("a" * (MAX_MESSAGE_BYTES // 2), "b" * length)
        messages = tuple(ChatMessage(role="user", content=content) for content in turns)
        return Ask(request_id=bytes(range(16)), model=model, messages=messages, sampling=Sampling(max_tokens=1))

    short = of(MAX_MESSAGE_BYTES // 2 - 256)
    longest = of(MAX_MESSAGE_BYTES // 2 - 256 + MAX_MESSAGE_BYTES - len(encode(short)))
    assert len(encode(longest)) == MAX_MESSAGE_BYTES
    return longest


async def test_prompts_that_grow_over_a_message_cut_nobody_off(autojump_clock: trio.testing.MockClock) -> None:
    """A salt is added to a prompt that is passed on. A stream lost in this way would count for as long as the two nodes
    are connected."""
    async with (
        open_members(2, models=("small", "large"), links=((0, 1),)) as (swarm, (one, two)),
        AsyncExitStack() as stack,
    ):
        (client,) = await strangers(stack, swarm, one, 1)
        with capture_logs() as logs:
            for _ in range(MAX_OPENED_PER_PEER + 2):
                frame = await ask(client, one.peer, largest_ask("large"))
                assert isinstance(frame, Failed) and frame.code == "too_long" and not frame.retryable
        assert not one.network.num_exchanges(two.peer)
        assert not [line for line in logs if line["log_level"] in ("error", "critical")]
        frames = await frames_of(one, an_ask(LONG, model="large"))
        assert isinstance(frames[-1], Answered) and frames[-1].served_by == two.peer
