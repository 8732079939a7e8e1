"""The real network on loopback: nodes find each other, exchange messages and withstand hostile peers."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
import trio.testing
import varint
from libp2p.network import swarm as swarm_module
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from multiaddr import Multiaddr

from mycelia.node.local_swarm.delay_proxy import open_delay_proxy
from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p import (
    discovery,
    inbound_streams,
    joining,
    liveness,
    negotiation,
    peers,
    streams,
    yamux,
    yamux_stream,
)
from mycelia.node.network.libp2p import fixes as libp2p_fixes
from mycelia.node.network.libp2p.gossip import gossip
from mycelia.node.network.libp2p.gossip.filter import TOPIC_PREFIX
from mycelia.node.network.libp2p.host import Host
from mycelia.node.network.libp2p.kademlia import kademlia
from mycelia.node.network.libp2p.kademlia.messages import Kind, Request
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.network import (
    Connected,
    Disconnected,
    Gossiped,
    Malformed,
    MessageStream,
    NetworkError,
    NetworkSettings,
    Received,
)
from mycelia.node.peer_id import peer_text
from mycelia.proto.cells.cells import ROOT, Cell, cell_of
from mycelia.proto.kademlia.keys import model_key
from mycelia.proto.kademlia.provider_records import Contact
from mycelia.proto.wire.codec import LENGTH_PREFIX, encode
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Tokens
from mycelia.proto.wire.refusals import Refusal
from tests.node.network.libp2p.network_helpers import (
    NAMESPACE,
    PATIENCE_S,
    EventLog,
    announce,
    eventually,
    final,
    following,
    hello,
    light_client,
    node,
    tokens,
)

ECHO = "/mycelia/test-echo/1"
SINK = "/mycelia/test-sink/1"


@asynccontextmanager
async def opened(settings: NetworkSettings, **handlers: object) -> AsyncIterator[tuple[Libp2pNetwork, EventLog]]:
    async with open_network(settings, {ECHO: echo, SINK: sink}) as network, following(network) as log:
        yield network, log


async def echo(stream: MessageStream) -> None:
    """Sends the message back. Fails, as if by a bug, after a Hello named "fail"."""
    message = await stream.receive()
    if message == hello("fail"):
        raise RuntimeError("a bug")
    await stream.send(message)
    for position in range(100):
        await stream.send(tokens(position))
    await stream.send(final())


async def sink(stream: MessageStream) -> None:
    """Reads until the final frame and answers with it."""
    while (message := await stream.receive()) != final():
        pass
    await stream.send(message)


async def connect(one: Libp2pNetwork, other: Libp2pNetwork) -> None:
    with trio.fail_after(PATIENCE_S):
        await one.connect(other.addresses()[0])


async def exchange(network: Libp2pNetwork, peer: bytes, waits: bool = True) -> int:
    """Runs one echo exchange. Returns the number of token frames that arrived."""
    with trio.fail_after(PATIENCE_S):
        stream = await network.open(peer, ECHO, waits)
        await stream.send(hello())
        assert await stream.receive() == hello()
        num_frames = 0
        while await stream.receive() != final():
            num_frames += 1
        await stream.aclose()
    return num_frames


async def publish_until_told(network: Libp2pNetwork, first_seq: int = 1, cell: Cell = ROOT) -> None:
    """Publishes again and again: messages are lost until gossip's mesh has formed."""
    for seq in range(first_seq, first_seq + 10_000):
        await network.publish(NAMESPACE, announce(network.peer_id, seq), cell)
        await trio.sleep(0.1)


async def test_nodes_that_know_only_the_first_find_each_other() -> None:
    async with opened(node()) as (one, log_one):
        known = tuple(one.addresses())
        async with opened(node(bootstrap=known)) as (two, log_two), opened(node(bootstrap=known)) as (three, log_three):
            for network in (one, two, three):
                await network.join(NAMESPACE)
            await log_two.has(Connected, lambda event: event.peer == three.peer_id)
            await log_three.has(Connected, lambda event: event.peer == two.peer_id)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish_until_told, two)
                for log in (log_one, log_three):
                    gossiped = await log.has(Gossiped)
                    assert gossiped.namespace == NAMESPACE
                    assert gossiped.message.head.owner == two.peer_id
                nursery.cancel_scope.cancel()
            assert not log_two.of(Gossiped), "a node does not hear itself"
            assert not any(log.of(Malformed) for log in (log_one, log_two, log_three))


async def test_an_announced_address_is_all_that_others_are_told() -> None:
    """Nodes find each other only through a port that forwards to the first node's own."""
    async with open_delay_proxy(0.001) as proxy:
        announced = f"/ip4/127.0.0.1/tcp/{proxy.port}"
        async with opened(node(announce=(announced,))) as (one, _):
            assert one.addresses() == [f"{announced}/p2p/{peer_text(one.peer_id)}"]
            (bound,) = one.host.raw.get_transport_addrs()
            proxy.forward_to(int(str(bound.value_for_protocol("tcp"))))
            async with opened(node(bootstrap=tuple(one.addresses()))) as (two, log_two):
                await log_two.has(Connected, lambda event: event.peer == one.peer_id)
                async with opened(node(bootstrap=tuple(two.addresses()))) as (three, log_three):
                    for network in (one, two, three):
                        await network.join(NAMESPACE)
                    await log_three.has(Connected, lambda event: event.peer == one.peer_id)
                    await eventually(lambda: three.addresses_of(one.peer_id) == [announced])
    assert proxy.num_connections == 2


async def test_control_messages_and_exchanges() -> None:
    async with opened(node()) as (one, log_one), opened(node()) as (two, _):
        await connect(two, one)
        for index in range(20):
            await two.send(one.peer_id, hello(str(index)))
        await log_one.until(lambda log: len(log.of(Received)) == 20)
        assert [event.message for event in log_one.of(Received)] == [hello(str(index)) for index in range(20)]
        assert await exchange(two, one.peer_id) == 100
        assert await exchange(one, two.peer_id) == 100
        with pytest.raises(NetworkError, match="cannot open /mycelia/nothing"):
            await two.open(one.peer_id, "/mycelia/nothing")
        with pytest.raises(NetworkError, match="not connected"):
            await two.open(new_identity().peer_id, ECHO)
        with pytest.raises(NetworkError, match="not connected"):
            await two.send(new_identity().peer_id, hello())
        with pytest.raises(NetworkError, match="was not joined"):
            await two.publish(NAMESPACE, announce(two.peer_id))


async def test_a_first_message_need_not_wait_until_the_peer_has_named_the_protocol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(node()) as (one, _), opened(node()) as (two, _):
        await connect(two, one)

        async def must_not_wait(*_: object) -> None:
            raise AssertionError("waited")

        monkeypatch.setattr(negotiation, "select", must_not_wait)
        assert await exchange(two, one.peer_id, waits=False) == 100
        with trio.fail_after(PATIENCE_S):
            stream = await two.open(one.peer_id, ECHO, waits=False)
            with trio.CancelScope() as scope:
                scope.cancel()
                await stream.receive()  # (a cancelled call loses nothing)
            many = Tokens(position=0, tokens=bytes(4_096), text=b"")
            await stream.send(many)
            assert await stream.receive() == many and await stream.receive() == tokens(0)
            await stream.reset()
            unknown = await two.open(one.peer_id, "/mycelia/nothing", waits=False)
            await unknown.send(hello())
            with pytest.raises(NetworkError, match=r"does not speak|ended the exchange"):
                await unknown.receive()
        with pytest.raises(NetworkError, match="not connected"):
            await two.open(new_identity().peer_id, ECHO, waits=False)
        assert await exchange(two, one.peer_id, waits=False) == 100


async def test_a_light_client_talks_but_takes_no_part() -> None:
    async with opened(node()) as (one, log_one), opened(light_client()) as (client, _):
        assert client.addresses() == []
        await connect(client, one)
        await client.send(one.peer_id, hello())
        await log_one.has(Received)
        assert await exchange(client, one.peer_id) == 100
        with pytest.raises(NetworkError):
            await client.join(NAMESPACE)
        with pytest.raises(NetworkError):
            await client.publish(NAMESPACE, announce(client.peer_id))


async def test_a_node_that_accepts_no_connections_takes_part_all_the_same() -> None:
    """A node behind a NAT finds and dials the others, and gossip reaches it over its own connections."""
    async with opened(node()) as (one, _):
        known = tuple(one.addresses())
        async with opened(node(bootstrap=known)) as (two, _), opened(node(listen=(), bootstrap=known)) as (hidden, log):
            for network in (one, two, hidden):
                await network.join(NAMESPACE)
            await log.has(Connected, lambda event: event.peer == two.peer_id)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish_until_told, two)
                await log.has(Gossiped)
                nursery.cancel_scope.cancel()


async def test_a_peer_that_leaves_is_noticed_and_its_exchanges_break() -> None:
    async with opened(node()) as (one, log_one):
        async with opened(node()) as (two, _):
            await connect(two, one)
            connected = await log_one.has(Connected)
            assert connected.peer == two.peer_id
            assert connected.address.startswith("/ip4/127.0.0.1/tcp/")
            stream = await one.open(two.peer_id, ECHO)
        assert (await log_one.has(Disconnected)).peer == two.peer_id
        with trio.fail_after(PATIENCE_S), pytest.raises(NetworkError):
            await stream.receive()
        with pytest.raises(NetworkError):
            await one.send(two.peer_id, hello())
        assert one.peers() == []


def knows(network: Libp2pNetwork, peer: Libp2pNetwork, told: list[str]) -> bool:
    return network.addresses_of(peer.peer_id) == told


async def test_a_node_tells_where_its_peers_can_be_dialled_again() -> None:
    """It also knows addresses of a peer that dialled it, though the connection's own address cannot be dialled."""
    async with opened(node()) as (one, _), opened(node()) as (two, _), opened(light_client()) as (client, _):
        await connect(two, one)
        await connect(client, one)
        for network, peer in ((one, two), (two, one)):
            told = [address.partition("/p2p/")[0] for address in peer.addresses()]
            await eventually(partial(knows, network, peer, told))
        assert one.addresses_of(client.peer_id) == one.addresses_of(new_identity().peer_id) == []


async def test_a_peer_that_tells_an_address_without_a_text_costs_nobody_anything() -> None:
    """libp2p accepts any bytes as an address and stores them."""
    poison = Multiaddr(b"\x36\x03x/y\x06\x00\x01")
    async with opened(node()) as (one, _), opened(node()) as (liar, _), opened(node()) as (honest, _):
        liar.host.raw.get_addrs = lambda: [poison]  # type: ignore[method-assign]
        await connect(liar, one)
        store, peer = one.host.raw.get_peerstore(), ID(liar.peer_id)
        await eventually(lambda: store.has_peer(peer) and store.get_protocols(peer))
        assert all(poison not in store.addrs(known) for known in store.peers_with_addrs())
        assert one.addresses_of(liar.peer_id) == []
        dht, key = one.discovery.dht, model_key(NAMESPACE)
        assert dht is not None
        told = Contact(honest.peer_id, (poison.to_bytes(), Multiaddr(honest.addresses()[0]).to_bytes()))
        await connect(honest, one)
        await eventually(lambda: honest.peer_id in one.peers())
        dht.server.answer(Request(Kind.ADD_PROVIDER, key, (told,)), honest.peer_id)
        (provider,) = await dht.find_providers(key)
        await honest.disconnect(one.peer_id)
        await eventually(lambda: honest.peer_id not in one.peers())
        await one.host.outbound.dial(honest.peer_id, provider.addrs)
        assert honest.peer_id in one.peers()


def has_more(kind: type[Connected | Disconnected], count: int, log: EventLog) -> bool:
    return len(log.of(kind)) > count


async def test_a_node_without_bootstrap_finds_whom_it_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so too when no remembered node is there at first, and when all connections were lost."""
    monkeypatch.setattr(joining, "BOOTSTRAP_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(discovery, "PEER_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(joining, "BOOTSTRAP_LONGEST_PAUSE_S", 0.1)
    nobody, identity = new_identity(), new_identity()
    async with open_network(node(identity=identity)) as earlier:
        listen = (earlier.addresses()[0].partition("/p2p/")[0],)
    known = [f"/ip4/127.0.0.1/tcp/1/p2p/{peer_text(nobody.peer_id)}", f"{listen[0]}/p2p/{peer_text(identity.peer_id)}"]
    async with opened(node(remembered=lambda: known)) as (one, log):
        for num_before in range(2):
            async with open_network(node(identity=identity, listen=listen)):
                await log.until(partial(has_more, Connected, num_before))
                assert one.peers() == [identity.peer_id]
            await log.until(partial(has_more, Disconnected, num_before))


async def test_remembered_nodes_are_left_alone_while_enough_are_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "FEW_PEERS", 1)
    monkeypatch.setattr(joining, "REMEMBERED_DIALS", 1)
    async with opened(node()) as (two, _), opened(node()) as (three, _):
        known = [two.addresses()[0], three.addresses()[0]]
        async with opened(node(remembered=lambda: known)) as (one, log):
            assert (await log.has(Connected)).peer == two.peer_id
            await trio.testing.wait_all_tasks_blocked(0.02)  # (the nodes look at their connections four times a second)
            assert one.peers() == [two.peer_id]
            await one.disconnect(two.peer_id)  # (it was dialled a moment ago, so the next node is tried)
            assert (await log.has(Connected, lambda event: event.peer == three.peer_id)).peer == three.peer_id


async def test_disconnect() -> None:
    async with opened(node()) as (one, log_one), opened(node()) as (two, log_two):
        await connect(two, one)
        await log_one.has(Connected)
        await two.disconnect(one.peer_id)
        await log_one.has(Disconnected)
        await log_two.has(Disconnected)


async def test_dialling_both_ways_at_once_makes_one_peer() -> None:
    async with opened(node()) as (one, log_one), opened(node()) as (two, log_two):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect, one, two)
            nursery.start_soon(connect, two, one)
            nursery.start_soon(connect, two, one)
        await log_one.has(Connected)
        await log_two.has(Connected)
        assert await exchange(one, two.peer_id) == 100
        assert len(log_one.of(Connected)) == len(log_two.of(Connected)) == 1


async def test_round_trip_is_measured() -> None:
    async with opened(node()) as (one, _), opened(node()) as (two, _):
        assert two.round_trip_s(one.peer_id) is None
        await connect(two, one)
        await eventually(lambda: two.round_trip_s(one.peer_id) is not None)
        assert 0 < two.round_trip_s(one.peer_id) < PATIENCE_S  # type: ignore[operator]


async def test_a_port_in_use_is_a_local_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        with pytest.raises(LocalError, match="the port is in use; choose another with --listen"):
            async with open_network(node(listen=(address,))):
                pass
    async with open_network(node()) as one:
        address = one.addresses()[0].partition("/p2p/")[0]
        with pytest.raises(LocalError, match="the port is in use; choose another with --listen"):
            async with open_network(node(listen=(address,))):
                pass


@pytest.mark.parametrize(
    "address",
    ["", "nonsense", "/ip4/1.2.3/tcp/1", "/ip4/127.0.0.1/udp/1", "/dns4/localhost/tcp/1", "/ip4/192.0.2.1/tcp/4001"],
)
async def test_an_address_that_cannot_be_listened_on_is_a_local_error(address: str) -> None:
    with pytest.raises(LocalError):
        async with open_network(node(listen=(address,))):
            pass


async def test_a_bootstrap_address_without_a_peer_is_a_local_error() -> None:
    with pytest.raises(LocalError, match="must end in /p2p/PEER_ID"):
        async with open_network(node(bootstrap=("/ip4/127.0.0.1/tcp/1",))):
            pass


async def test_a_wrong_or_dead_address_is_a_network_error() -> None:
    async with opened(node()) as (one, _), opened(node()) as (two, _):
        address = one.addresses()[0].partition("/p2p/")[0]
        with trio.fail_after(PATIENCE_S), pytest.raises(NetworkError, match="answers with another peer id"):
            await two.connect(f"{address}/p2p/{peer_text(new_identity().peer_id)}")
        with trio.fail_after(PATIENCE_S), pytest.raises(NetworkError, match="port 1: connection refused"):
            await two.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{peer_text(new_identity().peer_id)}")
        await connect(two, one)


async def test_an_exception_of_the_body_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError):
        async with open_network(node()):
            raise KeyError("mine")


async def test_bootstrap_is_tried_until_it_is_there_and_again_after_a_restart() -> None:
    identity = new_identity()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/tcp/{free.getsockname()[1]}"
    settings = node(identity=identity, listen=(address,))
    known = (f"{address}/p2p/{peer_text(identity.peer_id)}",)
    async with opened(node(bootstrap=known)) as (two, log_two):
        await two.join(NAMESPACE)
        for times in (1, 2):
            async with opened(settings) as (one, _):
                await one.join(NAMESPACE)
                await log_two.until(lambda log, times=times: len(log.of(Connected)) == times)  # type: ignore[misc]
                assert await exchange(two, one.peer_id) == 100
                async with trio.open_nursery() as nursery:
                    first_seq = times * 100_000
                    nursery.start_soon(publish_until_told, one, first_seq)
                    await log_two.has(Gossiped, lambda event, seq=first_seq: event.message.head.seq >= seq)  # type: ignore[misc]
                    nursery.cancel_scope.cancel()
            await log_two.until(lambda log, times=times: len(log.of(Disconnected)) == times)  # type: ignore[misc]


async def test_a_peer_that_comes_again_is_told_as_lost_and_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut its old connection still looks alive when the new one arrives."""
    monkeypatch.setattr(peers, "RESTART_S", 0)
    identity = new_identity()
    async with opened(node()) as (one, log_one):
        known = tuple(one.addresses())
        async with opened(node(identity=identity)) as (before, _):
            await connect(before, one)
            await log_one.has(Connected)
            async with opened(node(identity=identity, bootstrap=known)):
                await log_one.has(Disconnected)
                await log_one.until(lambda log: len(log.of(Connected)) == 2)


async def test_addresses_of_a_swarm_that_moved_on_do_not_keep_a_node_from_its_peers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A provider record of a dead node costs only a failed dial."""
    monkeypatch.setattr(discovery, "LOOKUP_PAUSES_S", (0.2,) * 50)
    async with opened(node()) as (one, _):
        known = tuple(one.addresses())
        await one.join(NAMESPACE)
        async with opened(node(bootstrap=known)) as (dead, log_dead):
            await dead.join(NAMESPACE)
            await log_dead.has(Connected)
            key = model_key(NAMESPACE)
            dht = one.discovery.dht
            await eventually(lambda: dht is not None and len(dht.server.providers(key)) == 2)
        async with opened(node(bootstrap=known)) as (two, log_two), opened(node(bootstrap=known)) as (three, _):
            await two.join(NAMESPACE)
            await three.join(NAMESPACE)
            await log_two.has(Connected, lambda event: event.peer == three.peer_id)


@pytest.mark.parametrize("target_peers", [1, 2])
async def test_a_node_with_enough_peers_looks_up_only_to_announce(
    target_peers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "LOOKUP_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(discovery, "LOOKUP_INTERVAL_S", 0.0)
    announced: list[bool] = []

    async def find(key: bytes, announces: bool) -> list[PeerInfo]:
        announced.append(announces)
        await trio.lowlevel.checkpoint()
        return []

    async with opened(node()) as (one, _), opened(node(target_peers=target_peers)) as (two, _):
        assert two.discovery.dht is not None
        monkeypatch.setattr(two.discovery.dht, "find_providers", find)
        await connect(two, one)
        await two.join(NAMESPACE)
        await eventually(lambda: announced.count(True) > 2 + 2)
    assert all(announced) == (target_peers == 1)


async def test_gossip_of_a_cell_reaches_its_nodes_alone_until_they_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "LOOKUP_PAUSES_S", (0.2,) * 50)
    async with opened(node()) as (one, log_one):
        known = tuple(one.addresses())
        async with opened(node(bootstrap=known)) as (two, log_two), opened(node(bootstrap=known)) as (three, log_three):
            cell = cell_of(NAMESPACE, two.peer_id, 1)
            for network in (one, two, three):
                await network.join(NAMESPACE)
            await log_three.has(Connected, lambda event: event.peer == two.peer_id)
            for network in (one, two):
                await network.join_cell(NAMESPACE, cell)
                await network.leave_cell(NAMESPACE, ROOT)
            with pytest.raises(NetworkError, match="was not joined"):
                await two.publish(NAMESPACE, announce(two.peer_id))
            with pytest.raises(NetworkError, match="was not joined"):
                await three.publish(NAMESPACE, announce(three.peer_id), cell)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish_until_told, two, 1, cell)
                assert (await log_one.has(Gossiped)).cell == cell
                nursery.cancel_scope.cancel()
            # The nodes are still found under the model's own key.
            key = model_key(NAMESPACE)
            dht = one.discovery.dht
            await eventually(lambda: dht is not None and len(dht.server.providers(key)) == 3)
            await two.leave_cell(NAMESPACE, cell)
            await two.leave_cell(NAMESPACE, cell)
            await two.join_cell(NAMESPACE, cell)
            heard = len(log_one.of(Gossiped))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish_until_told, two, 10_000, cell)
                await log_one.until(lambda log: len(log.of(Gossiped)) > heard)
                nursery.cancel_scope.cancel()
            assert not log_three.of(Gossiped)
            assert not any(log.of(Malformed) for log in (log_one, log_two, log_three))


async def test_a_namespace_that_is_left_has_no_gossip_in_any_cell_and_may_be_joined_again() -> None:
    async with opened(node()) as (one, _):
        cell = cell_of(NAMESPACE, one.peer_id, 1)
        for _ in range(2):
            await one.join(NAMESPACE)
            await one.join_cell(NAMESPACE, cell)
            for joined in (ROOT, cell):
                await one.publish(NAMESPACE, announce(one.peer_id), joined)
            await one.leave(NAMESPACE)
            await one.leave(NAMESPACE)
            for left in (ROOT, cell):
                with pytest.raises(NetworkError, match="was not joined"):
                    await one.publish(NAMESPACE, announce(one.peer_id), left)


async def test_in_a_cell_a_node_looks_for_its_own_kind_also_when_it_has_peers_enough() -> None:
    async with opened(node(target_peers=2)) as (one, _), opened(node()) as (two, _), opened(node()) as (three, _):
        await connect(one, two)
        await connect(one, three)
        seeker = one.discovery
        assert seeker.room(NAMESPACE, ROOT) == 0
        mine = cell_of(NAMESPACE, one.peer_id, 1)
        near = [mine == cell_of(NAMESPACE, network.peer_id, 1) for network in (two, three)]
        assert seeker.room(NAMESPACE, mine) == 2 - sum(near)
        async with opened(node()) as (four, _):
            other = Cell(1, cell_of(NAMESPACE, four.peer_id, 1).prefix ^ 1)
            record = PeerInfo(ID(four.peer_id), [Multiaddr(four.addresses()[0].partition("/p2p/")[0])])
            await seeker.dial_providers([record], NAMESPACE, other)
            assert four.peer_id not in one.peers(), "a record of a node that cannot be of that cell"


async def test_a_prefix_is_provided_found_and_its_provider_dialled() -> None:
    async with opened(node()) as (one, _), opened(node()) as (two, _), opened(node()) as (three, log_three):
        for network in (two, three):
            await connect(network, one)
        key = b"k" * 16
        with trio.fail_after(PATIENCE_S):
            await two.provide(key)
            assert await three.find_providers(b"x" * 16) == []
            assert await three.find_providers(key) == [two.peer_id]
            await three.dial(two.peer_id)
            await log_three.has(Connected, lambda event: event.peer == two.peer_id)
            await three.dial(two.peer_id)
        with pytest.raises(NetworkError, match="nothing is known"):
            await three.dial(new_identity().peer_id)


async def test_the_nodes_of_a_model_are_found_by_one_that_does_not_serve_it() -> None:
    async with opened(node()) as (one, _), opened(node()) as (two, _), opened(light_client()) as (client, _):
        await connect(two, one)
        with trio.fail_after(PATIENCE_S):
            await two.join(NAMESPACE)
            dht, key = one.discovery.dht, model_key(NAMESPACE)
            await eventually(lambda: dht is not None and dht.server.providers(key))
            assert await one.find_nodes(NAMESPACE) == [two.peer_id]
            await two.disconnect(one.peer_id)
            await eventually(lambda: not one.remote_address(two.peer_id))
            await one.dial(two.peer_id)
            assert one.remote_address(two.peer_id)
            assert await one.find_nodes(b"x" * 16) == []
        with pytest.raises(NetworkError, match="light client"):
            await client.find_nodes(NAMESPACE)


async def test_connections_can_all_go_out_from_one_port() -> None:
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("0.0.0.0", 0))
        port = reserved.getsockname()[1]
        other = node(listen=("/ip4/127.0.0.2/tcp/0",))
        async with (
            opened(node()) as (one, _),
            opened(other) as (two, _),
            opened(light_client(dial_port=port)) as (client, _),
        ):
            for network in (one, two):
                await connect(client, network)
                await eventually(lambda network=network: network.remote_address(client.peer_id))  # type: ignore[misc]
                assert network.remote_address(client.peer_id).endswith(f"/tcp/{port}")


# --- hostile and broken peers --------------------------------------------------------------------------------------


async def test_garbage_on_a_control_stream_costs_the_peer_and_not_the_node() -> None:
    async with opened(node()) as (one, log_one), opened(light_client()) as (evil, _):
        await connect(evil, one)
        for garbage in (LENGTH_PREFIX.pack(2**31), LENGTH_PREFIX.pack(3) + b"abc", LENGTH_PREFIX.pack(0)):
            num_before = len(log_one.of(Malformed))
            stream = await evil.host.outbound.open(one.peer_id, streams.CONTROL_PROTOCOL)
            await stream.write(garbage)
            await log_one.until(lambda log, num=num_before: len(log.of(Malformed)) > num)  # type: ignore[misc]
        stream = await evil.host.outbound.open(one.peer_id, streams.CONTROL_PROTOCOL)
        data = encode(final())
        await stream.write(LENGTH_PREFIX.pack(len(data)) + data)
        await log_one.has(Malformed, lambda event: "does not belong" in event.reason)
        assert {event.peer for event in log_one.of(Malformed)} == {evil.peer_id}
        await evil.send(one.peer_id, hello("still here"))
        await log_one.has(Received)


async def test_malformed_gossip_costs_the_forwarder_and_is_not_relayed() -> None:
    async with opened(node()) as (one, log_one), opened(node()) as (two, log_two):
        await connect(two, one)
        await one.join(NAMESPACE)
        await two.join(NAMESPACE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_until_told, two)
            await log_one.has(Gossiped)
            nursery.cancel_scope.cancel()
        topic = "mycelia/1/" + NAMESPACE.hex()
        await eventually(lambda: two.gossip.router.mesh[topic])  # type: ignore[union-attr]
        for garbage in (b"garbage", b"", encode(hello()), b"\x00" * 50_000):
            num_before = len(log_one.of(Malformed))
            await two.gossip.pubsub.publish(topic, garbage)  # type: ignore[union-attr]
            await log_one.until(lambda log, num=num_before: len(log.of(Malformed)) > num)  # type: ignore[misc]
        assert {event.peer for event in log_one.of(Malformed)} == {two.peer_id}
        num_heard = len(log_one.of(Gossiped))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_until_told, two)
            await log_one.until(lambda log: len(log.of(Gossiped)) > num_heard)
            nursery.cancel_scope.cancel()
        assert not log_two.of(Malformed)


async def test_too_many_streams_are_refused_and_forgotten() -> None:
    async with opened(node()) as (one, log_one), opened(light_client()) as (evil, _):
        await connect(evil, one)
        with trio.fail_after(PATIENCE_S):
            held = []
            with suppress(NetworkError):
                while True:
                    raw = await evil.host.outbound.open(one.peer_id, ECHO)
                    await raw.write(b"\0")
                    held.append(raw)
            assert len(held) <= inbound_streams.MAX_STREAMS_PER_PEER
            for raw in held:
                await raw.reset()
        await eventually(lambda: len(one.host.streams) < 10)
        assert await exchange(evil, one.peer_id) == 100
        assert not log_one.of(Malformed)


async def test_a_handler_that_fails_ends_its_stream_only() -> None:
    async with opened(node()) as (one, _), opened(node()) as (two, _):
        await connect(two, one)
        stream = await two.open(one.peer_id, ECHO)
        await stream.send(hello("fail"))
        with trio.fail_after(PATIENCE_S), pytest.raises(NetworkError):
            await stream.receive()
        assert await exchange(two, one.peer_id) == 100


async def test_slots_of_past_connections_are_free_again() -> None:
    async with opened(node(max_connections=2)) as (one, log_one):
        for times in range(1, 6):
            async with opened(light_client()) as (client, _):
                await connect(client, one)
                assert await exchange(client, one.peer_id) == 100
            await log_one.until(lambda log, times=times: len(log.of(Disconnected)) == times)  # type: ignore[misc]
            await eventually(lambda: not one.host.inbound.num_connections)


async def test_a_cancelled_send_leaves_the_connection_whole() -> None:
    """Large messages are cancelled at every stage while another exchange runs over the same connection."""
    large = hello("x" * 64)
    async with opened(node()) as (one, log_one), opened(node()) as (two, _):
        await connect(two, one)
        for microseconds in range(0, 4_000, 100):
            stream = await two.open(one.peer_id, ECHO)
            with trio.move_on_after(microseconds / 1e6):
                for _ in range(1_000):
                    await stream.send(large)
            await stream.reset()
        assert await exchange(two, one.peer_id) == 100
        assert not log_one.of(Disconnected)


async def test_a_claim_of_a_huge_negotiation_ends_the_connection() -> None:
    """Any program can send it before the handshake. A node must neither wait for the bytes nor reserve memory."""
    async with opened(node()) as (one, _), opened(light_client()) as (evil, _):
        port = int(one.addresses()[0].split("/")[4])
        with trio.fail_after(PATIENCE_S / 4):
            for data in (varint.encode(1 << 30), b"\x13/multistream/1.0.0\n" + varint.encode(2_000) + b"x"):
                async with await trio.open_tcp_stream("127.0.0.1", port) as connection:
                    await connection.send_all(data)
                    with suppress(trio.BrokenResourceError):
                        async for _ in connection:
                            pass
            await connect(evil, one)
            stream = await evil.host.swarm.get_connections()[0].new_stream()
            await stream.write(varint.encode(1 << 30))
            assert await stream.read(100) == b"\x13/multistream/1.0.0\n"
            with pytest.raises(StreamError):
                await stream.read(100)


async def test_what_is_read_in_small_pieces_is_not_announced_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    num_updates = 0
    queue = yamux.YamuxConnection.queue

    def counted(
        connection: yamux.YamuxConnection, kind: int, flags: int, stream: int, length: int, data: bytes = b""
    ) -> None:
        nonlocal num_updates
        num_updates += kind == yamux_stream.WINDOW
        queue(connection, kind, flags, stream, length, data)

    monkeypatch.setattr(yamux.YamuxConnection, "queue", counted)
    async with opened(node()) as (one, _), opened(light_client()) as (client, _):
        await connect(client, one)
        assert await exchange(client, one.peer_id) == 100
        assert num_updates < 50
        # These messages fill several windows, so this ends only if the receiver returns room in time.
        async with trio.open_nursery() as nursery:
            stream = await client.open(one.peer_id, SINK)
            nursery.start_soon(stream.receive)
            for _ in range(300):
                await stream.send(Tokens(position=0, tokens=bytes(4_096), text=b""))
            await stream.send(final())


async def test_raw_noise_at_the_port_is_harmless() -> None:
    async with opened(node()) as (one, log_one), opened(node()) as (two, _):
        port = int(one.addresses()[0].split("/")[4])
        for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x13/multistream/1.0.0\n", bytes(1000)):
            connection = await trio.open_tcp_stream("127.0.0.1", port)
            await connection.send_all(data)
            await connection.aclose()
        await connect(two, one)
        assert await exchange(two, one.peer_id) == 100
        assert isinstance(log_one.of(Connected)[0], Connected)


async def test_no_error_of_libp2ps_ends_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers can make libp2p's code raise any error."""
    met: set[str] = set()
    all_met = trio.Event()

    def failing(name: str) -> Callable[..., Awaitable[None]]:
        async def fail(*_: object, **__: object) -> None:
            met.add(name)
            if len(met) == 5:
                all_met.set()
            raise ExceptionGroup(name, [KeyError(name)])

        return fail

    monkeypatch.setattr(discovery, "LOOKUP_PAUSES_S", (0.1,) * 50)
    monkeypatch.setattr(liveness.Liveness, "watch", failing("ping"))
    monkeypatch.setattr(kademlia.Kademlia, "find_providers", failing("lookup"))
    monkeypatch.setattr(Host, "keep_peerstore", failing("peerstore"))
    monkeypatch.setattr(Pubsub, "publish", failing("publish"))
    async with opened(node()) as (one, _):
        known = tuple(one.addresses())
        async with opened(node(bootstrap=known)) as (two, log_two):
            await two.join(NAMESPACE)
            await log_two.has(Connected)
            await two.publish(NAMESPACE, announce(two.peer_id))
            monkeypatch.setattr(two.host.swarm, "dial_addr", failing("dial"))
            with pytest.raises(NetworkError, match="cannot reach"):
                await two.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{peer_text(new_identity().peer_id)}")
            with trio.fail_after(PATIENCE_S):
                await all_met.wait()
        # The failing pings have cut that connection, or soon will. Therefore another node checks the network.
        monkeypatch.undo()
        async with opened(node(bootstrap=known)) as (three, log_three):
            await log_three.has(Connected)
            assert await exchange(three, one.peer_id) == 100


async def test_a_provider_that_never_stays_is_dialled_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, a banned peer is found again by every lookup."""
    async with opened(node()) as (one, log_one), opened(node()) as (two, _):
        seeker, peer = one.discovery, two.peer_id
        providers = [PeerInfo(ID(peer), [Multiaddr(two.addresses()[0].partition("/p2p/")[0])])]
        with trio.fail_after(PATIENCE_S):
            for times in (1, 2, 3):
                await seeker.try_peer(peer, providers[0].addrs)
                assert seeker.backoffs[peer].pause_s == discovery.PEER_FIRST_PAUSE_S * 2 ** (times - 1)
                await one.disconnect(peer)
                await log_one.until(lambda log, times=times: len(log.of(Disconnected)) == times)  # type: ignore[misc]
            await seeker.dial_providers(providers, NAMESPACE, ROOT)
            assert not one.peers()
            # The pause of a peer that stays is forgotten.
            await connect(one, two)
            monkeypatch.setattr(discovery, "STABLE_S", 0)
            await seeker.dial_providers(providers, NAMESPACE, ROOT)
        assert not seeker.backoffs


async def test_a_peer_that_is_gone_leaves_no_quota_behind() -> None:
    async with opened(node()) as (one, _), opened(light_client()) as (evil, _):
        await connect(evil, one)
        stream = await evil.host.outbound.open(one.peer_id, streams.CONTROL_PROTOCOL)
        await evil.disconnect(one.peer_id)
        await eventually(lambda: not evil.peers())
        # A peer's streams may be served for a moment after its connection is gone.
        await evil.streams.serve_control(stream)
        message = rpc_pb2.Message(from_id=new_identity().peer_id, data=b"", topicIDs=["x"])
        assert one.gossip is not None
        assert not one.gossip.accept(ID(new_identity().peer_id), message)
        assert not one.gossip.router.graft_flood_tracking


async def test_a_flood_of_gossip_ends_at_the_flooders_neighbours() -> None:
    flooder, relay, bystander = (ID(new_identity().peer_id) for _ in range(3))
    async with opened(node()) as (one, _):
        service = one.gossip
        assert service is not None
        charged: list[bytes] = []
        service.charge = lambda peer, reason, refusal=Refusal.MALFORMED: charged.append(peer)
        topic = f"{TOPIC_PREFIX}{NAMESPACE.hex()}"
        service.topics[topic] = (NAMESPACE, ROOT)
        data = encode(announce(flooder.to_bytes()))

        def accepted(forwarder: ID, author: ID, count: int) -> int:
            raw = rpc_pb2.Message(from_id=author.to_bytes(), data=data, topicIDs=[topic])
            return sum(service.accept(forwarder, raw) for _ in range(count))

        assert accepted(relay, flooder, 1_000) <= gossip.AUTHOR_BURST + 5
        assert not charged, "the relay may not know yet"
        assert accepted(relay, bystander, 1) == 1
        assert accepted(flooder, flooder, 1_000) <= gossip.AUTHOR_BURST + 5
        assert set(charged) == {flooder.to_bytes()}


def test_a_missing_private_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    libp2p_fixes.check_private_names()
    monkeypatch.delattr(Pubsub, "push_msg")
    monkeypatch.delattr(swarm_module, "_HAPPY_EYEBALLS_DELAY")
    monkeypatch.setattr(Pubsub, "__init__", lambda self: None)
    with pytest.raises(LocalError, match=r"Pubsub\.counter.*_HAPPY_EYEBALLS_DELAY.*push_msg.*libp2p==0\.8\.1"):
        libp2p_fixes.check_private_names()
