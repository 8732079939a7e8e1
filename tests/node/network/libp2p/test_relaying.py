"""Circuits on loopback: peers reach a node that they cannot dial through a relay, which keeps to its limits."""

from contextlib import AsyncExitStack

import pytest
import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import IOException
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, Status, StopMessage
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p import circuits, inbound_streams, relay_server, relaying
from mycelia.node.network.libp2p.circuits import HOP_PROTOCOL, STOP_PROTOCOL
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.network import MessageStream, NetworkError, Reachability
from mycelia.node.peer_id import peer_text
from mycelia.proto.admission.pace import Rate
from mycelia.proto.wire.messages import Ask, Sampling
from tests.node.network.libp2p.network_helpers import HIDDEN, PATIENCE_S, eventually, hello, light_client, node

ECHO = "/mycelia/test-echo/1"


async def echo(stream: MessageStream) -> None:
    while True:
        await stream.send(await stream.receive())


async def placed(hidden: Libp2pNetwork, relay: Libp2pNetwork) -> str:
    """The address at which ``hidden`` can be reached through ``relay``."""
    await hidden.connect(relay.addresses()[0])
    hidden.set_reachability(HIDDEN)
    await eventually(hidden.addresses)
    (address,) = hidden.addresses()
    assert address == f"{relay.addresses()[0]}/p2p-circuit/p2p/{peer_text(hidden.peer_id)}"
    return address


async def hop(network: Libp2pNetwork, relay: bytes, request: HopMessage) -> int:
    """The status in a relay's answer."""
    stream = await network.host.outbound.open(relay, HOP_PROTOCOL)
    await stream.write(encode_varint_prefixed(request.SerializeToString()))
    answer = HopMessage()
    answer.ParseFromString(await read_varint_prefixed_bytes_limited(stream, 4_096))
    return answer.status


async def stop(network: Libp2pNetwork, target: bytes) -> int:
    """The status in a node's answer to an incoming circuit through ``network``."""
    stream = await network.host.outbound.open(target, STOP_PROTOCOL)
    request = StopMessage(type=StopMessage.CONNECT, peer=PeerId(id=new_identity().peer_id))
    await stream.write(encode_varint_prefixed(request.SerializeToString()))
    answer = StopMessage()
    answer.ParseFromString(await read_varint_prefixed_bytes_limited(stream, 4_096))
    return answer.status


def to(peer: bytes) -> HopMessage:
    return HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=peer))


def an_ask(num_chars: int) -> Ask:
    return Ask(request_id=bytes(16), model="", messages=(), text="x" * num_chars, sampling=Sampling(max_tokens=1))


async def test_a_node_that_nobody_can_dial_is_reached_through_its_relay() -> None:
    async with (
        open_network(node()) as relay,
        open_network(node(listen=()), {ECHO: echo}) as hidden,
        open_network(light_client()) as client,
    ):
        with trio.fail_after(PATIENCE_S):
            address = await placed(hidden, relay)
            assert await client.connect(address) == hidden.peer_id
            assert client.remote_address(hidden.peer_id).endswith("/p2p-circuit")
            assert relay.relayed().circuits == 1 and hidden.relayed().circuits == 0
            await eventually(lambda: hidden.remote_address(client.peer_id))
            await hidden.send(client.peer_id, hello("through the relay"))
            stream = await client.open(hidden.peer_id, ECHO)
            for num_chars in (1, 200_000, 500_000):  # (the last one exceeds all windows on the way)
                await stream.send(an_ask(num_chars))
                assert await stream.receive() == an_ask(num_chars)
            assert 1_400_000 < relay.relayed().bytes < 1_600_000 and relay.relayed().places == 1
            await client.disconnect(hidden.peer_id)
            await eventually(lambda: not relay.relayed().circuits)
            hidden.set_reachability(Reachability())
            await eventually(lambda: not hidden.addresses())


async def test_the_loss_of_the_relay_is_the_loss_of_the_connection_and_another_one_is_found() -> None:
    async with (
        open_network(node()) as first,
        open_network(node()) as second,
        open_network(node(listen=())) as hidden,
        open_network(light_client()) as client,
    ):
        with trio.fail_after(PATIENCE_S):
            address = await placed(hidden, first)
            await hidden.connect(second.addresses()[0])
            await client.connect(address)
            await first.disconnect(hidden.peer_id)
            await eventually(lambda: not client.remote_address(hidden.peer_id))
            with pytest.raises(NetworkError, match="refuses"):
                await client.connect(address)
            await eventually(lambda: any(peer_text(second.peer_id) in address for address in hidden.addresses()))
            (address,) = hidden.addresses()
            await client.connect(address)


async def test_a_place_is_worth_no_more_than_the_connection_that_it_was_given_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A restarted relay has no reservations, even if the node connects with it again a moment later."""
    monkeypatch.setattr(relaying, "RETRY_S", 0.5)
    async with open_network(node()) as relay, open_network(node(listen=())) as hidden:
        with trio.fail_after(PATIENCE_S):
            await placed(hidden, relay)
            await relay.disconnect(hidden.peer_id)
            await eventually(lambda: not hidden.remote_address(relay.peer_id))
            await hidden.connect(relay.addresses()[0])
            await eventually(lambda: hidden.peer_id in relay.relay_server.reserved)
            await eventually(hidden.addresses)


async def test_not_all_nodes_have_their_places_at_the_same_relays() -> None:
    async with (
        open_network(node()) as one,
        open_network(node()) as two,
        open_network(node()) as three,
        open_network(node(listen=())) as hidden,
    ):
        for relay in (one, two, three):
            await hidden.connect(relay.addresses()[0])
        hidden.relaying.want(frozenset({"ip4"}))
        orders = {tuple(peer for peer, _ in hidden.relaying.candidates(0.0)) for _ in range(50)}
        assert all(sorted(order) == sorted(network.peer_id for network in (one, two, three)) for order in orders)
        assert len(orders) > 1


async def test_one_subnet_does_not_take_all_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_server, "MAX_RESERVATIONS", 8)
    reserve = HopMessage(type=HopMessage.RESERVE)
    async with open_network(node()) as relay, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_network(light_client())) for _ in range(4)]
        hosts = dict(
            zip((client.peer_id for client in clients), ("8.8.8.8", "8.8.8.9", "8.8.8.1", "9.9.9.9"), strict=True)
        )
        monkeypatch.setattr(relay.table, "remote_address", lambda peer: f"/ip4/{hosts[peer]}/tcp/1")
        with trio.fail_after(PATIENCE_S):
            for client in clients:
                await client.connect(relay.addresses()[0])
            first, second, third, elsewhere = clients
            for client in (first, second):
                assert await hop(client, relay.peer_id, reserve) == Status.OK
            assert await hop(first, relay.peer_id, reserve) == Status.OK, "that is its own place again"
            assert await hop(third, relay.peer_id, reserve) == Status.RESERVATION_REFUSED
            assert await hop(elsewhere, relay.peer_id, reserve) == Status.OK
            await first.disconnect(relay.peer_id)
            await eventually(lambda: first.peer_id not in relay.peers())
            assert await hop(third, relay.peer_id, reserve) == Status.OK


async def test_one_subnet_does_not_take_all_circuits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot take all of them by its own target and a client for each circuit, nor by circuits to other targets."""
    monkeypatch.setattr(relay_server, "MAX_CIRCUITS", 8)
    async with open_network(node()) as relay, AsyncExitStack() as stack:
        targets = [await stack.enter_async_context(open_network(node(listen=()))) for _ in range(2)]
        clients = [await stack.enter_async_context(open_network(light_client())) for _ in range(4)]
        hosts = dict.fromkeys((network.peer_id for network in (*targets, *clients)), "8.8.8.8")
        hosts[clients[-1].peer_id] = "9.9.9.9"
        hosts[targets[-1].peer_id] = "7.7.7.7"
        monkeypatch.setattr(relay.table, "remote_address", lambda peer: f"/ip4/{hosts[peer]}/tcp/1")
        with trio.fail_after(PATIENCE_S):
            own, other = [await placed(target, relay) for target in targets]
            for client in clients[:2]:
                await client.connect(own)
            with pytest.raises(NetworkError, match="refuses"):
                await clients[2].connect(own)
            with pytest.raises(NetworkError, match="refuses"):
                await clients[2].connect(other)
            with pytest.raises(NetworkError, match="refuses"):
                await clients[3].connect(own)
            await clients[3].connect(other)
            assert relay.relayed().circuits == 3
            await clients[0].disconnect(targets[0].peer_id)
            await eventually(lambda: relay.relayed().circuits == 2)
            await clients[2].connect(own)


async def test_a_flood_of_circuits_to_one_node_ends_at_the_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_server, "CONNECTS", Rate(0.01, 3.0))
    async with (
        open_network(node()) as relay,
        open_network(node(listen=())) as hidden,
        open_network(light_client()) as client,
    ):
        with trio.fail_after(PATIENCE_S):
            await placed(hidden, relay)
            await client.connect(relay.addresses()[0])
            statuses = []
            for _ in range(6):
                statuses.append(await hop(client, relay.peer_id, to(hidden.peer_id)))
            assert statuses == [Status.OK] * 3 + [Status.RESOURCE_LIMIT_EXCEEDED] * 3


async def test_a_relay_that_was_dialled_in_vain_is_let_go() -> None:
    """A failed circuit ends the connection with its relay, unless another circuit uses that connection."""
    async with (
        open_network(node()) as relay,
        open_network(node(listen=())) as hidden,
        open_network(light_client()) as client,
    ):
        with trio.fail_after(PATIENCE_S):
            address = await placed(hidden, relay)
            nobody = address.replace(peer_text(hidden.peer_id), peer_text(new_identity().peer_id))
            with pytest.raises(NetworkError, match="refuses"):
                await client.connect(nobody)
            await eventually(lambda: not client.peers())
            open_circuit = client.host.outbound.open_circuit

            async def late(relay: bytes, target: bytes) -> ReadWriteCloser:
                while target != hidden.peer_id and hidden.peer_id not in client.peers():
                    await client.table.changed.wait()
                return await open_circuit(relay, target)

            client.host.outbound.open_circuit = late
            async with trio.open_nursery() as nursery:

                async def in_vain() -> None:
                    with pytest.raises(NetworkError, match="refuses"):
                        await client.connect(nobody)

                nursery.start_soon(in_vain)
                await eventually(client.peers)  # (so it is this dial that connected with the relay)
                await client.connect(address)
            assert set(client.peers()) == {relay.peer_id, hidden.peer_id}


async def test_a_silent_circuit_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_server, "IDLE_S", 0.5)
    async with (
        open_network(node()) as relay,
        open_network(node(listen=())) as hidden,
        open_network(light_client()) as client,
    ):
        with trio.fail_after(PATIENCE_S):
            await placed(hidden, relay)

            async def say_nothing(pipe: circuits.Pipe, address: Multiaddr) -> None:
                await trio.sleep_forever()

            monkeypatch.setattr(hidden.host.inbound, "serve_circuit", say_nothing)
            await client.connect(relay.addresses()[0])
            await client.relaying.open_circuit(relay.peer_id, hidden.peer_id)
            assert relay.relayed().circuits == 1
            await eventually(lambda: not relay.relayed().circuits)


async def test_a_peer_is_found_at_its_relay_by_the_dht() -> None:
    async with (
        open_network(node()) as relay,
        open_network(node(listen=())) as hidden,
        open_network(node(announce=("/ip4/127.0.0.1/tcp/1",))) as seeker,  # (so that the hidden node cannot dial it)
    ):
        with trio.fail_after(PATIENCE_S):
            await placed(hidden, relay)
            await seeker.connect(relay.addresses()[0])
            await hidden.join(b"n" * 16)
            found: list[bytes] = []
            while not found:
                found = await seeker.find_nodes(b"n" * 16)
            assert found == [hidden.peer_id]
            await seeker.dial(hidden.peer_id)
            assert seeker.remote_address(hidden.peer_id).endswith("/p2p-circuit")


async def test_what_a_relay_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_server, "MAX_RESERVATIONS", 1)
    monkeypatch.setattr(relay_server, "MAX_CIRCUITS_PER_PEER", 1)
    async with (
        open_network(node()) as relay,
        open_network(node(listen=())) as hidden,
        open_network(light_client()) as client,
        open_network(node(relay=False)) as unwilling,
    ):
        with trio.fail_after(PATIENCE_S):
            address = await placed(hidden, relay)
            await client.connect(relay.addresses()[0])
            reserve = HopMessage(type=HopMessage.RESERVE)
            assert await hop(client, relay.peer_id, reserve) == Status.RESERVATION_REFUSED
            assert await hop(client, relay.peer_id, to(new_identity().peer_id)) == Status.NO_RESERVATION
            assert await hop(hidden, relay.peer_id, to(hidden.peer_id)) == Status.NO_RESERVATION
            assert await hop(client, relay.peer_id, HopMessage(type=HopMessage.STATUS)) == Status.UNEXPECTED_MESSAGE
            await client.connect(address)
            assert await hop(client, relay.peer_id, to(hidden.peer_id)) == Status.RESOURCE_LIMIT_EXCEEDED
            await client.connect(unwilling.addresses()[0])
            with pytest.raises(NetworkError, match="does not speak"):
                await hop(client, unwilling.peer_id, reserve)
            # Only a node's relays may pass it circuits, and no circuit leads through another.
            assert await stop(client, hidden.peer_id) == Status.PERMISSION_DENIED
            hidden.relaying.relays[client.peer_id] = (Multiaddr("/ip4/127.0.0.1/tcp/1"), trio.current_time())
            assert await stop(client, hidden.peer_id) == Status.PERMISSION_DENIED
            assert await hop(client, hidden.peer_id, reserve) == Status.PERMISSION_DENIED
            with pytest.raises(NetworkError, match="not connected directly"):
                await client.relaying.open_circuit(hidden.peer_id, new_identity().peer_id)


@pytest.mark.parametrize(("bound", "value"), [("MAX_CIRCUIT_BYTES", 200_000), ("MAX_CIRCUIT_S", 2.0)])
async def test_a_circuit_ends_at_its_bounds(monkeypatch: pytest.MonkeyPatch, bound: str, value: float) -> None:
    monkeypatch.setattr(relay_server, bound, value)
    async with (
        open_network(node()) as relay,
        open_network(node(listen=()), {ECHO: echo}) as hidden,
        open_network(light_client()) as client,
    ):
        with trio.fail_after(PATIENCE_S):
            await client.connect(await placed(hidden, relay))
            stream = await client.open(hidden.peer_id, ECHO)

            async def talk() -> None:
                while True:
                    await stream.send(an_ask(20_000))
                    await stream.receive()

            with pytest.raises(NetworkError):
                await talk()
            await eventually(lambda: not relay.relayed().circuits and not client.remote_address(hidden.peer_id))


async def test_garbage_and_silence_cost_a_relay_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuits, "STEP_DEADLINE_S", 0.5)
    monkeypatch.setattr(inbound_streams, "FIRST_MESSAGE_S", 0.5)
    async with open_network(node()) as relay, open_network(light_client()) as evil:
        await evil.connect(relay.addresses()[0])
        with trio.fail_after(PATIENCE_S):
            for garbage in (b"", b"\xff" * 20, b"\xff\xff\x7f", b"\x03abc"):
                stream = await evil.host.outbound.open(relay.peer_id, HOP_PROTOCOL)
                await stream.write(garbage)
                with pytest.raises((BaseLibp2pError, IOException)):  # (a reset, at the latest at the deadline)
                    await read_varint_prefixed_bytes_limited(stream, 4_096)
            assert await hop(evil, relay.peer_id, HopMessage(type=HopMessage.RESERVE)) == Status.OK


async def test_who_lies_behind_a_relay_is_not_taken_for_another() -> None:
    """Noise detects a relay that connects the client with another peer."""
    async with (
        open_network(node()) as relay,
        open_network(node(listen=())) as hidden,
        open_network(node(listen=())) as liar,
        open_network(light_client()) as client,
    ):
        with trio.fail_after(PATIENCE_S):
            address = await placed(hidden, relay)
            await placed(liar, relay)
            opened_to = relay.relay_server.opened_to

            async def wrong(target: bytes, source: bytes) -> object:
                return await opened_to(liar.peer_id, source)

            relay.relay_server.opened_to = wrong  # type: ignore[method-assign, assignment]
            with pytest.raises(NetworkError):
                await client.connect(address)
            await eventually(lambda: not relay.relayed().circuits)
            assert not client.peers() or client.peers() == [relay.peer_id]
