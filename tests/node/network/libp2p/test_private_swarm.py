"""Private swarms on loopback: nodes with the key connect, directly and through a relay. Others get only noise."""

import socket
from contextlib import suppress

import pytest
import trio

from mycelia.node.network.libp2p.network import open_network
from mycelia.node.network.network import Connected, MessageStream, NetworkError
from mycelia.node.peer_id import peer_text
from tests.node.network.libp2p.network_helpers import (
    HIDDEN,
    PATIENCE_S,
    eventually,
    following,
    hello,
    light_client,
    node,
)

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
ECHO = "/mycelia/test-echo/1"


async def echo(stream: MessageStream) -> None:
    while True:
        await stream.send(await stream.receive())


async def test_nodes_with_the_key_meet() -> None:
    with trio.fail_after(PATIENCE_S):
        async with (
            open_network(node(swarm_key=KEY), {ECHO: echo}) as one,
            open_network(light_client(swarm_key=KEY)) as other,
        ):
            peer = await other.connect(one.addresses()[0])
            stream = await other.open(peer, ECHO)
            await stream.send(hello("a" * 64))
            assert await stream.receive() == hello("a" * 64)


async def test_nodes_with_the_key_meet_through_a_relay() -> None:
    with trio.fail_after(PATIENCE_S):
        async with (
            open_network(node(swarm_key=KEY)) as relay,
            open_network(node(swarm_key=KEY), {ECHO: echo}) as hidden,
            open_network(light_client(swarm_key=KEY)) as other,
        ):
            await hidden.connect(relay.addresses()[0])
            hidden.set_reachability(HIDDEN)
            await eventually(lambda: any("/p2p-circuit" in address for address in hidden.addresses()))
            circuit = next(address for address in hidden.addresses() if "/p2p-circuit" in address)
            stream = await other.open(await other.connect(circuit), ECHO)
            await stream.send(hello())
            assert await stream.receive() == hello()


@pytest.mark.parametrize("key", [b"", OTHER])
async def test_a_node_without_the_key_is_not_let_in(key: bytes) -> None:
    with trio.fail_after(PATIENCE_S):
        async with (
            open_network(node(swarm_key=KEY)) as private,
            open_network(node(swarm_key=key)) as stranger,
            following(private) as log,
        ):
            for one, other in ((stranger, private), (private, stranger)):
                with pytest.raises(NetworkError, match=peer_text(other.peer_id)):
                    await one.connect(other.addresses()[0])
            assert log.of(Connected) == [] and stranger.peers() == [] and private.peers() == []


async def test_a_stranger_on_the_wire_reads_nothing() -> None:
    said = b""
    with trio.fail_after(PATIENCE_S):
        async with open_network(node(swarm_key=KEY)) as private:
            port = int(private.addresses()[0].split("/")[4])
            with trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stranger:
                await stranger.connect(("127.0.0.1", port))
                await stranger.send(b"\x13/multistream/1.0.0\n\x07/noise\n" + bytes(200))
                with suppress(ConnectionResetError):
                    while data := await stranger.recv(4_096):
                        said += data
    assert len(said) <= 24 + 200
    assert all(word not in said for word in (b"multistream", b"noise", b"mycelia", private.peer_id))
