"""AutoNAT served to other implementations: py-libp2p's own client asks, and hostile questions are refused."""

import pytest
import trio
from libp2p.host.autonat.autonat import AutoNATService
from libp2p.host.autonat.pb.autonat_pb2 import Message
from libp2p.peer.id import ID
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p.autonat import AUTONAT_PROTOCOL, MAX_DIALS, SUBNET_BURST, dialable
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.network import NetworkError
from tests.node.network.libp2p.network_helpers import HIDDEN, PATIENCE_S, eventually, light_client, node

KEY = bytes(range(32))
RELAY = "12D3KooWAfZBCCDd6BbP7yJHgFv6FAzLRyDjVYDd9K7PhFBgnQ3L"


def raw(*addresses: str) -> list[bytes]:
    return [Multiaddr(address).to_bytes() for address in addresses]


async def outcome(client: Libp2pNetwork, server: Libp2pNetwork, *addresses: str) -> tuple[int, bytes | None]:
    """The status and the address in the answer to py-libp2p's client."""
    asker = AutoNATService(client.host.raw, serve=False)
    return await asker.query_server(ID(server.peer_id), raw(*addresses))


@pytest.mark.parametrize("key", [b"", KEY])
async def test_a_peer_learns_whether_it_can_be_dialled(key: bytes) -> None:
    async with open_network(node(swarm_key=key)) as server, open_network(node(swarm_key=key)) as client:
        with trio.fail_after(PATIENCE_S):
            await client.connect(server.addresses()[0])
            own = client.addresses()[0].partition("/p2p/")[0]
            assert await outcome(client, server, "/ip4/8.8.8.8/tcp/53", own) == (Message.OK, Multiaddr(own).to_bytes())
            assert (await outcome(client, server, "/ip4/127.0.0.1/tcp/1"))[0] == Message.E_DIAL_ERROR
            another_nodes = server.addresses()[0].partition("/p2p/")[0]
            assert (await outcome(client, server, another_nodes))[0] == Message.E_DIAL_ERROR
            await eventually(lambda: server.host.swarm.get_connections(ID(client.peer_id)))
            assert len(server.peers()) == len(client.peers()) == 1, "the dial itself is no connection"


async def test_other_machines_are_never_dialled_and_the_peer_itself_seldom() -> None:
    async with open_network(node()) as server, open_network(light_client()) as client:
        with trio.fail_after(PATIENCE_S):
            await client.connect(server.addresses()[0])
            foreign = ("/ip4/8.8.8.8/tcp/53", "/dns4/localhost/tcp/1", f"/ip4/127.0.0.1/tcp/1/p2p/{RELAY}/p2p-circuit")
            assert (await outcome(client, server, *foreign))[0] == Message.E_DIAL_REFUSED
            for _ in range(int(SUBNET_BURST)):
                assert (await outcome(client, server, "/ip4/127.0.0.1/tcp/1"))[0] == Message.E_DIAL_ERROR
            assert (await outcome(client, server, "/ip4/127.0.0.1/tcp/1"))[0] == Message.E_DIAL_REFUSED


async def test_a_question_for_another_peer_or_through_a_relay_is_refused() -> None:
    async with (
        open_network(node()) as relay,
        open_network(node(listen=())) as hidden,
        open_network(light_client()) as client,
    ):
        with trio.fail_after(PATIENCE_S):
            await hidden.connect(relay.addresses()[0])
            for request in (
                Message(type=Message.DIAL_RESPONSE),
                Message(type=Message.DIAL),
                Message(type=Message.DIAL, dial=Message.Dial(peer=Message.PeerInfo(id=new_identity().peer_id))),
            ):
                stream = await hidden.host.outbound.open(relay.peer_id, AUTONAT_PROTOCOL)
                await stream.write(encode_varint_prefixed(request.SerializeToString()))
                answer = Message()
                answer.ParseFromString(await read_varint_prefixed_bytes_limited(stream, 4_096))
                assert answer.dialResponse.status == Message.E_BAD_REQUEST
            hidden.set_reachability(HIDDEN)
            await eventually(hidden.addresses)
            await client.connect(hidden.addresses()[0])
            assert (await outcome(client, hidden, "/ip4/127.0.0.1/tcp/1"))[0] == Message.E_DIAL_REFUSED


async def test_a_light_client_does_not_serve_it() -> None:
    async with open_network(node()) as one, open_network(light_client()) as client:
        with trio.fail_after(PATIENCE_S):
            await client.connect(one.addresses()[0])
            await eventually(one.peers)
            with pytest.raises(NetworkError):
                await one.host.outbound.open(client.peer_id, AUTONAT_PROTOCOL)


def test_addresses_that_may_be_dialled() -> None:
    at = "/ip4/45.1.2.3/tcp/999"
    told = raw("/ip4/45.1.2.3/tcp/1", f"/ip4/45.1.2.3/tcp/2/p2p/{RELAY}", "/ip4/45.1.2.3/tcp/3", "/ip4/45.1.2.4/tcp/4")
    assert [str(one) for one in dialable(told, at)] == ["/ip4/45.1.2.3/tcp/1", "/ip4/45.1.2.3/tcp/2"]
    assert dialable(told, "") == [] and dialable([b"", b"\xff" * 9], at) == []
    assert len(dialable(raw(*(f"/ip4/45.1.2.3/tcp/{port}" for port in range(1, 99))), at)) == MAX_DIALS
    assert [str(one) for one in dialable(raw("/ip6/2a10:0:0::1/tcp/5"), "/ip6/2a10::1/tcp/9")] == ["/ip6/2a10::1/tcp/5"]
