"""Strangers at one address take all that they can of a node on loopback. Peers at other addresses are not affected."""

import math
from contextlib import AsyncExitStack, suppress

import pytest
import trio
from libp2p.exceptions import BaseLibp2pError

from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p import inbound, inbound_streams, streams, yamux, yamux_stream
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.network import Connected, Disconnected, Malformed, MessageStream, NetworkError, Received
from mycelia.proto.admission.pace import Rate
from mycelia.proto.wire.codec import LENGTH_PREFIX, encode
from mycelia.proto.wire.messages import Reconcile, Trace, TraceQuery, TraceStep, Version
from tests.node.network.libp2p.network_helpers import (
    NAMESPACE,
    PATIENCE_S,
    EventLog,
    eventually,
    following,
    hello,
    light_client,
    node,
)
from tests.node.network.libp2p.strangers import ELSEWHERE, Strangers, dial_from, opened, socket_to, strangers

ECHO = "/mycelia/test-echo/1"
FRAME = LENGTH_PREFIX.pack(len(encode(hello()))) + encode(hello())


async def echo(stream: MessageStream) -> None:
    await stream.send(await stream.receive())


async def asked(network: Libp2pNetwork, peer: bytes) -> None:
    """Makes one exchange, which has to succeed."""
    with trio.fail_after(PATIENCE_S):
        stream = await network.open(peer, ECHO, waits=False)
        await stream.send(hello())
        assert await stream.receive() == hello()
        await stream.aclose()


async def welcomed(network: Libp2pNetwork, host: str = ELSEWHERE) -> None:
    """Connects a peer at ``host`` with ``network``, which has to accept its hello and its exchange."""
    async with open_network(light_client()) as honest:
        dial_from(honest, host)
        with trio.fail_after(PATIENCE_S):
            await honest.connect(network.addresses()[0])
            await honest.send(network.peer_id, hello())
            await asked(honest, network.peer_id)


def nobody_is_blamed(log: EventLog) -> bool:
    return not log.of(Malformed)


@pytest.mark.parametrize("num_connections", [128, 200])
async def test_silent_connections_keep_nobody_out(num_connections: int) -> None:
    async with open_network(node(), {ECHO: echo}) as one, following(one) as log, strangers() as silent:
        with trio.fail_after(PATIENCE_S):
            for _ in range(num_connections):
                with suppress(BaseLibp2pError, OSError, trio.BrokenResourceError):
                    await silent.connect(one)
            await eventually(lambda: silent.num_alive <= 96)
        await welcomed(one)
        assert nobody_is_blamed(log)


async def test_who_is_connected_and_busy_stays_when_strangers_come() -> None:
    async with (
        open_network(node(max_connections=8), {ECHO: echo}) as one,
        open_network(light_client()) as client,
        strangers() as silent,
    ):
        with trio.fail_after(PATIENCE_S):
            await client.connect(one.addresses()[0])
            waiting = await client.open(one.peer_id, ECHO)
            await waiting.send(hello())
            for _ in range(32):
                with suppress(BaseLibp2pError, OSError, trio.BrokenResourceError):
                    await silent.connect(one)
            await welcomed(one)
            assert await waiting.receive() == hello()


async def test_an_idle_stranger_makes_room_for_one_of_its_own_subnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that shares an address with an attacker can still connect."""
    monkeypatch.setattr(inbound, "STRANGER_IDLE_S", 0.0)
    async with open_network(node(max_connections=4), {ECHO: echo}) as one, strangers() as silent:
        with trio.fail_after(PATIENCE_S):
            for _ in range(6):
                await silent.connect(one)
            await eventually(lambda: silent.num_alive <= 4)
        await welcomed(one, host="127.0.0.1")


async def test_nothing_is_kept_of_a_stranger_that_left() -> None:
    """libp2p noted the end of every connection by peer id, and removed the notes only where it dials by itself."""
    async with open_network(node()) as one, following(one) as log:
        for _ in range(3):
            async with open_network(light_client()) as stranger:
                await stranger.connect(one.addresses()[0])
        await log.until(lambda log: len(log.of(Disconnected)) == 3)
        connector = one.host.raw.get_network().auto_connector  # type: ignore[attr-defined]
        assert not [name for name, kept in vars(connector).items() if isinstance(kept, dict) and kept]


async def test_there_is_room_for_peers_that_this_node_wants() -> None:
    """Strangers from many addresses hold every place that they can get."""
    async with open_network(node(), {ECHO: echo}) as wanted, strangers() as silent:
        settings = node(max_connections=8, bootstrap=(wanted.addresses()[0],))
        async with open_network(settings) as one, following(one) as log:
            await log.has(Connected)
            await one.disconnect(wanted.peer_id)
            with trio.fail_after(PATIENCE_S):
                for last in range(2, 40):
                    with suppress(BaseLibp2pError, OSError, trio.BrokenResourceError):
                        await silent.connect(one, f"127.0.0.{last}")
            await log.until(lambda log: sum(event.peer == wanted.peer_id for event in log.of(Connected)) == 2)
            assert one.host.inbound.num_connections <= 8


@pytest.mark.parametrize("num_sockets", [128, 200])
async def test_sockets_without_a_handshake_keep_nobody_out(num_sockets: int) -> None:
    async with open_network(node(), {ECHO: echo}) as one, AsyncExitStack() as stack:
        for _ in range(num_sockets):
            await stack.enter_async_context(await socket_to(one))
        await eventually(lambda: one.host.inbound.num_handshakes)
        assert one.host.inbound.num_handshakes <= inbound.MAX_HANDSHAKES
        await welcomed(one)


async def test_of_slow_handshakes_of_one_address_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound, "UNDISTURBED_S", 0.0)
    async with open_network(node(), {ECHO: echo}) as one, AsyncExitStack() as stack:
        for _ in range(40):
            await stack.enter_async_context(await socket_to(one))
        await welcomed(one, host="127.0.0.1")


async def test_handshakes_that_just_began_are_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a machine where many nodes start together would complete none of them."""
    monkeypatch.setattr(inbound, "UNDISTURBED_S", math.inf)
    async with open_network(node(), {ECHO: echo}) as one, AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(await socket_to(one)) for _ in range(2 * inbound.MAX_HANDSHAKES)]
        with trio.fail_after(PATIENCE_S):
            assert await sockets[-1].receive_some() == b""
        with trio.move_on_after(0) as nothing_came:
            await sockets[0].receive_some()
        assert nothing_came.cancelled_caught


async def held_streams(silent: Strangers, one: Libp2pNetwork, protocol: str, said: bytes) -> None:
    """Opens more streams than a node accepts, of nine peers at one address."""
    for _ in range(9):
        connection = await silent.connect(one)
        for _ in range(62):
            with suppress(BaseLibp2pError):
                await opened(connection, protocol, said)


@pytest.mark.parametrize("protocol", [streams.CONTROL_PROTOCOL, ECHO, "/meshsub/1.1.0", "/ipfs/ping/1.0.0"])
async def test_streams_without_a_byte_keep_nobody_out(protocol: str) -> None:
    async with open_network(node(), {ECHO: echo}) as one, following(one) as log, strangers() as silent:
        await held_streams(silent, one, protocol, b"")
        await welcomed(one)
        assert nobody_is_blamed(log)


async def test_streams_that_never_end_keep_nobody_out() -> None:
    """Each stream has an exchange under way, like one whose answer takes long."""

    async def endless(stream: MessageStream) -> None:
        await stream.receive()
        await trio.sleep_forever()

    async with (
        open_network(node(), {ECHO: echo, "/mycelia/endless": endless}) as one,
        following(one) as log,
        strangers() as silent,
    ):
        await held_streams(silent, one, "/mycelia/endless", FRAME)
        await eventually(lambda: one.num_exchanges() > 300)
        await welcomed(one)
        assert one.num_exchanges() <= inbound_streams.MAX_STREAMS - inbound_streams.KEPT_STREAMS
        assert nobody_is_blamed(log)


async def test_a_stream_that_never_says_anything_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound_streams, "FIRST_MESSAGE_S", 0.5)
    async with open_network(node(), {ECHO: echo}) as one, strangers() as silent:
        connection = await silent.connect(one)
        with trio.fail_after(PATIENCE_S):
            for protocol in (
                streams.CONTROL_PROTOCOL,
                ECHO,
                "/meshsub/1.1.0",
                "/ipfs/ping/1.0.0",
                "/ipfs/id/push/1.0.0",
            ):
                stream = await opened(connection, protocol)
                with suppress(BaseLibp2pError):
                    while await stream.read():
                        pass
            bare = await connection.open_stream()
            await bare.write(b"\x13")
            with suppress(BaseLibp2pError):
                while await bare.read():
                    pass


async def test_a_flood_of_streams_is_slowed_and_is_nobodys_offence() -> None:
    async with open_network(node(), {ECHO: echo}) as one, following(one) as log, strangers() as silent:
        connection = await silent.connect(one)
        num_opened = 0

        async def flood() -> None:
            nonlocal num_opened
            while True:
                with suppress(BaseLibp2pError):
                    stream = await opened(connection, ECHO, FRAME)
                    num_opened += 1
                    await stream.reset()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await eventually(lambda: num_opened > 1_000)
            await welcomed(one)
            nursery.cancel_scope.cancel()
        assert nobody_is_blamed(log) and not connection.is_closed


async def test_a_second_control_stream_takes_the_place_of_the_first() -> None:
    async with open_network(node(), {ECHO: echo}) as one, following(one) as log, strangers() as silent:
        connection = await silent.connect(one)
        with trio.fail_after(PATIENCE_S):
            first = await opened(connection, streams.CONTROL_PROTOCOL, FRAME)
            await log.until(lambda log: len(log.of(Received)) == 1)
            second = await opened(connection, streams.CONTROL_PROTOCOL, FRAME)
            await log.until(lambda log: len(log.of(Received)) == 2)
            with suppress(BaseLibp2pError):
                while await first.read():
                    pass
            await second.write(FRAME)
            await log.until(lambda log: len(log.of(Received)) == 3)


async def test_control_messages_wait_by_what_they_cost_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst is read at once, a flood at the rate. Only its sender waits."""
    owner = new_identity().peer_id
    large = Reconcile(
        versions=tuple(Version(owner=owner, namespace=NAMESPACE, epoch=2**40, seq=seq) for seq in range(1_024))
    )
    async with (
        open_network(node(), {ECHO: echo}) as one,
        following(one) as log,
        open_network(light_client()) as flooder,
        open_network(light_client()) as honest,
    ):
        with trio.fail_after(PATIENCE_S):
            for network in (flooder, honest):
                await network.connect(one.addresses()[0])
            begun_at = trio.current_time()
            async with trio.open_nursery() as nursery:

                async def flood() -> None:
                    with suppress(NetworkError):
                        while True:
                            await flooder.send(one.peer_id, large)

                nursery.start_soon(flood)
                await log.until(lambda log: len(log.of(Received)) >= 12)
                for number in range(30):
                    await honest.send(one.peer_id, hello(str(number)))
                await log.until(lambda log: sum(event.peer == honest.peer_id for event in log.of(Received)) == 30)
                nursery.cancel_scope.cancel()
            num_taken = sum(event.peer == flooder.peer_id for event in log.of(Received))
            passed_s = trio.current_time() - begun_at
            cost = 1 + len(encode(large)) / 1_024
            rate = streams.CONTROL_OF_A_PEER
            assert num_taken * cost <= rate.burst + rate.per_s * passed_s + 2 * cost
            assert nobody_is_blamed(log)
            assert flooder.peer_id in one.peers()


async def test_an_exchange_that_costs_too_much_at_once_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "EXCHANGES_OF_A_PEER", Rate(1.0, 4.0))
    async with open_network(node(), {ECHO: echo}) as one, following(one) as log, open_network(light_client()) as client:
        await client.connect(one.addresses()[0])
        num_answered = 0

        async def ask() -> None:
            nonlocal num_answered
            with suppress(NetworkError):
                await asked(client, one.peer_id)
                num_answered += 1

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        assert 3 <= num_answered < 20
        await welcomed(one)
        assert nobody_is_blamed(log)


async def test_large_answers_to_small_questions_count_for_the_peer_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "EXCHANGES_OF_A_PEER", Rate(1.0, 40.0))
    steps = tuple(TraceStep(at_ms=0, name="routed", detail="x" * 256) for _ in range(64))

    async def tell(stream: MessageStream) -> None:
        await stream.receive()
        await stream.send(Trace(steps=steps))

    handlers = {ECHO: echo, "/mycelia/tell": tell}
    async with open_network(node(), handlers) as one, following(one) as log, open_network(light_client()) as client:
        await client.connect(one.addresses()[0])
        num_answered = 0
        with suppress(NetworkError):
            while True:
                stream = await client.open(one.peer_id, "/mycelia/tell")
                await stream.send(TraceQuery(request_id=bytes(16)))
                await stream.receive()
                await stream.aclose()
                num_answered += 1
        assert 1 <= num_answered <= 4, "each answer has 17 KiB, of 45 that may be asked for at once"
        await welcomed(one)
        assert nobody_is_blamed(log)


async def test_a_node_opens_no_more_exchanges_with_a_peer_than_that_one_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(stream: MessageStream) -> None:
        await stream.receive()
        await trio.sleep_forever()

    monkeypatch.setattr(streams, "OPENING_PATIENCE_S", 0.2)
    async with (
        open_network(node(), {ECHO: echo, "/mycelia/endless": endless}) as one,
        following(one) as log,
        open_network(light_client()) as client,
    ):
        with trio.fail_after(PATIENCE_S):
            await client.connect(one.addresses()[0])
            held = [
                await client.open(one.peer_id, "/mycelia/endless", waits=False)
                for _ in range(streams.MAX_OPENED_PER_PEER)
            ]
            for stream in held:
                await stream.send(hello())
            with pytest.raises(NetworkError, match="are open already"):
                await client.open(one.peer_id, ECHO)
            assert len(held) < inbound_streams.MAX_STREAMS_PER_PEER
            await client.send(one.peer_id, hello())
            await log.has(Received)
            await held[0].reset()
            await asked(client, one.peer_id)
            assert nobody_is_blamed(log)


async def test_who_floods_frames_is_read_slowly_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flood opens and ends streams as fast as the bytes can be sent."""
    monkeypatch.setattr(inbound, "FRAMES_OF_A_PEER", Rate(1_000.0, 2_000.0))
    num_sent = num_read = 0
    on_opened = yamux.YamuxConnection.on_opened

    def counted(connection: yamux.YamuxConnection, stream_id: int) -> yamux_stream.YamuxStream | None:
        nonlocal num_read
        num_read += 1
        return on_opened(connection, stream_id)

    async with open_network(node(), {ECHO: echo}) as one, following(one) as log, strangers() as silent:
        connection = await silent.connect(one)
        monkeypatch.setattr(yamux.YamuxConnection, "on_opened", counted)

        async def flood() -> None:
            nonlocal num_sent
            for stream_id in range(1, 2**32, 2):
                connection.queue(yamux_stream.WINDOW, yamux_stream.SYN, stream_id, 0)
                connection.queue(yamux_stream.WINDOW, yamux_stream.RST, stream_id, 0)
                num_sent += 1
                await connection.room()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await eventually(lambda: num_sent > 30_000)
            await welcomed(one)
            nursery.cancel_scope.cancel()
        assert num_read < 10_000, "two reads of 64 kB with frames of 24 bytes, and what the honest peer opened"
        assert nobody_is_blamed(log)
