"""An opened exchange frees its place after any failure. Otherwise a stranger could use up a node's places."""

import pytest
import trio

from mycelia.node.network.libp2p.network import open_network
from mycelia.node.network.libp2p.streams import MAX_OPENED_PER_PEER
from mycelia.node.network.libp2p.yamux import MAX_STREAMS
from mycelia.node.network.network import MessageStream
from mycelia.proto.wire.codec import MAX_MESSAGE_BYTES
from mycelia.proto.wire.errors import LimitExceeded
from mycelia.proto.wire.messages import Ask, ChatMessage, Sampling
from tests.node.network.libp2p.network_helpers import final, hello, node

ECHO = "/mycelia/test-echo/1"


async def answer(stream: MessageStream) -> None:
    await stream.receive()
    await stream.send(final())


async def test_messages_over_the_limit_use_up_no_exchanges() -> None:
    content = "x" * MAX_MESSAGE_BYTES
    too_long = Ask(
        request_id=bytes(16),
        model="",
        messages=(ChatMessage(role="user", content=content),),
        sampling=Sampling(max_tokens=1),
    )
    async with open_network(node(), {ECHO: answer}) as one, open_network(node()) as two:
        await two.connect(one.addresses()[0])
        for _ in range(MAX_OPENED_PER_PEER + 1):
            stream = await two.open(one.peer_id, ECHO, waits=False)
            with pytest.raises(LimitExceeded):
                await stream.send(too_long)
        assert not two.num_exchanges(one.peer_id)


async def test_openings_that_are_cancelled_at_any_moment_use_up_no_streams() -> None:
    async with open_network(node(), {ECHO: answer}) as one, open_network(node()) as two:
        await two.connect(one.addresses()[0])

        async def cancelled_after(num_steps: int, waits: bool) -> None:
            async with trio.open_nursery() as nursery:

                async def say(scope: trio.CancelScope) -> None:
                    with scope:
                        stream = await two.open(one.peer_id, ECHO, waits=waits)
                        await stream.send(hello())
                        await stream.reset()

                scope = trio.CancelScope()
                nursery.start_soon(say, scope)
                for _ in range(num_steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

        for num_steps in range(12):
            for index in range(MAX_STREAMS):
                await cancelled_after(num_steps, waits=bool(index % 2))
        assert not two.num_exchanges(one.peer_id)
        stream = await two.open(one.peer_id, ECHO, waits=False)  # (raises when all places are in use)
        await stream.reset()
