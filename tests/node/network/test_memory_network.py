"""The in-memory network behaves like the real one where tests rely on it."""

import random

import pytest
import trio

from mycelia.node.network.identity import Identity, new_identity
from mycelia.node.network.memory import WINDOW_BYTES, MemoryNetwork, MemorySwarm
from mycelia.node.network.network import (
    Connected,
    Disconnected,
    Gossiped,
    Malformed,
    MessageStream,
    NetworkError,
    Received,
)
from mycelia.node.peer_id import peer_text
from mycelia.proto.cells.cells import ROOT, cell_of
from mycelia.proto.wire.codec import MAX_MESSAGE_BYTES, encode
from mycelia.proto.wire.errors import LimitExceeded, RemoteError
from tests.node.network.libp2p.network_helpers import (
    NAMESPACE,
    announce,
    final,
    following,
    hello,
    light_client,
    node,
    tokens,
)

ECHO = "/mycelia/test-echo/1"


def swarm(seed: int = 1, **changes: float) -> MemorySwarm:
    return MemorySwarm(random.Random(seed), **changes)


async def echo(stream: MessageStream) -> None:
    message = await stream.receive()
    if message == hello("fail"):
        raise RuntimeError("a bug")
    for position in range(5):
        await stream.send(tokens(position))
    await stream.send(final())


def bootstrap_to(network: MemoryNetwork) -> tuple[str, ...]:
    return (f"/ip4/127.0.0.1/tcp/1/p2p/{peer_text(network.peer_id)}",)


async def test_messages_of_every_plane_arrive(autojump_clock: trio.testing.MockClock) -> None:
    async with swarm() as world, world.open_network(node(), {ECHO: echo}) as one, following(one) as log_one:
        async with world.open_network(node(bootstrap=bootstrap_to(one))) as two:
            assert (await log_one.has(Connected)).peer == two.peer_id
            for index in range(20):
                await two.send(one.peer_id, hello(str(index)))
            await log_one.until(lambda log: len(log.of(Received)) == 20)
            assert [event.message for event in log_one.of(Received)] == [hello(str(index)) for index in range(20)]
            await one.join(NAMESPACE)
            await two.join(NAMESPACE)
            await two.publish(NAMESPACE, announce(two.peer_id))
            assert (await log_one.has(Gossiped)).message == announce(two.peer_id)
            stream = await two.open(one.peer_id, ECHO)
            await stream.send(hello())
            frames = [await stream.receive() for _ in range(6)]
            assert frames == [*(tokens(position) for position in range(5)), final()]
            with pytest.raises(NetworkError):
                await stream.receive()
            assert two.round_trip_s(one.peer_id)
            with pytest.raises(NetworkError):
                await two.open(one.peer_id, "/mycelia/nothing")
        assert (await log_one.has(Disconnected)).peer == two.peer_id


async def test_nodes_of_a_namespace_are_connected_and_a_cut_breaks_everything(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        swarm() as world,
        world.open_network(node(), {ECHO: echo}) as one,
        following(one) as log_one,
        world.open_network(node(), {ECHO: echo}) as two,
        following(two) as log_two,
    ):
        await one.join(NAMESPACE)
        await two.join(NAMESPACE)
        await log_one.has(Connected)
        stream = await one.open(two.peer_id, ECHO)
        world.cut(two.peer_id)
        with pytest.raises(NetworkError):
            await stream.receive()
        await log_one.has(Disconnected)
        await log_two.has(Disconnected)
        with pytest.raises(NetworkError):
            await one.send(two.peer_id, hello())
        with pytest.raises(NetworkError):
            await one.connect(bootstrap_to(two)[0])
        world.heal(two.peer_id)
        await log_two.until(lambda log: len(log.of(Connected)) == 2)
        await one.send(two.peer_id, hello())
        await log_two.has(Received)


async def test_garbage_is_charged(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        swarm() as world,
        world.open_network(node(), {ECHO: echo}) as one,
        following(one) as log_one,
        world.open_network(node(bootstrap=bootstrap_to(one))) as evil,
    ):
        evil.send_raw(one.peer_id, b"garbage")
        await log_one.until(lambda log: len(log.of(Malformed)) == 1)
        evil.send_raw(one.peer_id, encode(final()))
        await log_one.until(lambda log: len(log.of(Malformed)) == 2)
        await one.join(NAMESPACE)
        world.gossip(evil.peer_id, NAMESPACE, encode(hello()))
        await log_one.until(lambda log: len(log.of(Malformed)) == 3)
        stream = await evil.open(one.peer_id, ECHO)
        await stream.send_raw(b"\xff")
        with pytest.raises(NetworkError):
            await stream.receive()
        assert len(log_one.of(Malformed)) == 4
        failing = await evil.open(one.peer_id, ECHO)
        await failing.send(hello("fail"))
        with pytest.raises(NetworkError):
            await failing.receive()


async def test_received_garbage_is_a_remote_error(autojump_clock: trio.testing.MockClock) -> None:
    async def babble(stream: MessageStream) -> None:
        await stream.send_raw(b"garbage")  # type: ignore[attr-defined]

    async with (
        swarm() as world,
        world.open_network(node(), {ECHO: babble}) as one,
        world.open_network(node(bootstrap=bootstrap_to(one))) as two,
    ):
        stream = await two.open(one.peer_id, ECHO)
        with pytest.raises(RemoteError):
            await stream.receive()


async def test_a_reader_that_does_not_read_stops_the_writer(autojump_clock: trio.testing.MockClock) -> None:
    async def sleep(stream: MessageStream) -> None:
        await trio.sleep_forever()

    async with (
        swarm() as world,
        world.open_network(node(), {ECHO: sleep}) as one,
        world.open_network(node(bootstrap=bootstrap_to(one))) as two,
    ):
        stream = await two.open(one.peer_id, ECHO)
        for _ in range(WINDOW_BYTES // len(encode(tokens(0))) + 1):
            await stream.send(tokens(0))
        with pytest.raises(NetworkError, match="does not read"):
            await stream.send(tokens(0))


async def test_a_message_over_the_limit_ends_the_exchange(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        swarm() as world,
        world.open_network(node(), {ECHO: echo}) as one,
        world.open_network(node(bootstrap=bootstrap_to(one))) as two,
    ):
        stream = await two.open(one.peer_id, ECHO)
        with pytest.raises(LimitExceeded):
            await stream.send(hello("x" * MAX_MESSAGE_BYTES))
        assert not two.num_exchanges()


async def run_lossy(seed: int) -> list[int]:
    """The sequence numbers of those of another node's 200 messages that arrive."""
    sender = Identity(b"a" * 32)
    async with (
        swarm(seed, gossip_loss=0.3) as world,
        world.open_network(node(identity=Identity(b"b" * 32))) as one,
        world.open_network(node(identity=sender)) as two,
        following(one) as log,
    ):
        await one.join(NAMESPACE)
        await two.join(NAMESPACE)
        for seq in range(200):
            await two.publish(NAMESPACE, announce(sender.peer_id, seq))
        await trio.sleep(1)
        return [event.message.head.seq for event in log.of(Gossiped)]


async def test_loss_and_order_follow_the_seed(autojump_clock: trio.testing.MockClock) -> None:
    heard = await run_lossy(1)
    assert 100 < len(heard) < 180
    assert heard != sorted(heard), "gossip is not ordered"
    assert await run_lossy(1) == heard
    assert await run_lossy(2) != heard


async def test_a_light_client_takes_no_part(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        swarm() as world,
        world.open_network(node(), {ECHO: echo}) as one,
        world.open_network(light_client(bootstrap=bootstrap_to(one))) as client,
    ):
        with pytest.raises(NetworkError):
            await client.join(NAMESPACE)
        with pytest.raises(NetworkError):
            await client.publish(NAMESPACE, announce(client.peer_id))
        with pytest.raises(NetworkError):
            await client.send(new_identity().peer_id, hello())
        await client.disconnect(one.peer_id)
        assert client.peers() == []


async def test_gossip_of_a_cell_reaches_its_nodes_alone(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        swarm() as world,
        world.open_network(node()) as one,
        following(one) as log_one,
        world.open_network(node()) as two,
        world.open_network(node()) as three,
        following(three) as log_three,
    ):
        cell = cell_of(NAMESPACE, two.peer_id, 2)
        for network in (one, two, three):
            await network.join(NAMESPACE)
        for network in (one, two):
            await network.join_cell(NAMESPACE, cell)
            await network.leave_cell(NAMESPACE, ROOT)
        await two.publish(NAMESPACE, announce(two.peer_id), cell)
        assert (await log_one.has(Gossiped)).cell == cell
        with pytest.raises(NetworkError):
            await two.publish(NAMESPACE, announce(two.peer_id))
        await three.publish(NAMESPACE, announce(three.peer_id))
        await trio.sleep(1)  # of virtual time
        assert len(log_one.of(Gossiped)) == 1 and not log_three.of(Gossiped)


async def test_a_prefix_is_provided_and_found(autojump_clock: trio.testing.MockClock) -> None:
    async with swarm() as world, world.open_network(node()) as one, world.open_network(node()) as two:
        key = b"k" * 16
        await two.provide(key)
        assert await one.find_providers(key) == [two.peer_id]
        assert await two.find_providers(key) == [] == await one.find_providers(b"x" * 16)
        await one.dial(two.peer_id)
        assert world.connected(one.peer_id, two.peer_id)
        world.cut(two.peer_id)
        with pytest.raises(NetworkError):
            await one.dial(two.peer_id)
