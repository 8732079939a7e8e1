"""What a node does with the news of how peers reach it: the addresses that it announces, its part in the DHT, and the
connections that a change of this machine's addresses leaves behind."""

import trio
from libp2p.peer.id import ID

from mycelia.node.network.libp2p.kademlia.messages import KAD_PROTOCOL
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.network import Reachability
from mycelia.node.peer_id import peer_text
from tests.node.network.libp2p.network_helpers import HIDDEN, PATIENCE_S, eventually, node
from tests.node.network.libp2p.test_network import connect

OUTSIDE = "/ip4/45.10.1.7/tcp/7117"


def protocols_of(peer: Libp2pNetwork, at: Libp2pNetwork) -> list[str]:
    """The protocols that ``at`` knows of ``peer``."""
    return at.host.raw.get_peerstore().get_protocols(ID(peer.peer_id))


async def test_what_peers_found_open_is_announced_first_and_told_to_connected_peers() -> None:
    async with open_network(node()) as one, open_network(node()) as two:
        with trio.fail_after(PATIENCE_S):
            await connect(one, two)
            await eventually(lambda: two.peer_id in one.peers() and one.addresses_of(two.peer_id))
            two.set_reachability(Reachability(open=(OUTSIDE,)))
            assert two.addresses()[0] == f"{OUTSIDE}/p2p/{peer_text(two.peer_id)}"
            await eventually(lambda: OUTSIDE in one.addresses_of(two.peer_id))


async def test_a_public_address_that_peers_found_closed_is_not_announced() -> None:
    async with open_network(node(announce=())) as one:
        one.set_reachability(Reachability(open=(OUTSIDE,)))
        one.set_reachability(Reachability(closed=frozenset({"ip4"})))
        assert not any(address.startswith(OUTSIDE) for address in one.addresses())
        assert one.addresses(), "its address on this machine is for others in the same network"


async def test_a_node_that_nobody_can_dial_is_a_client_of_the_dht_until_it_is_open() -> None:
    async with open_network(node()) as hidden, open_network(node()) as other:
        with trio.fail_after(PATIENCE_S):
            await connect(other, hidden)
            await eventually(lambda: KAD_PROTOCOL in protocols_of(hidden, at=other))
            hidden.set_reachability(HIDDEN)
            await eventually(lambda: KAD_PROTOCOL not in protocols_of(hidden, at=other))
            hidden.set_reachability(Reachability(open=(OUTSIDE,)))
            await eventually(lambda: KAD_PROTOCOL in protocols_of(hidden, at=other))


async def test_connections_from_an_address_that_is_gone_end() -> None:
    async with open_network(node()) as one, open_network(node()) as two:
        with trio.fail_after(PATIENCE_S):
            await connect(one, two)
            await eventually(lambda: one.peer_id in two.peers())
            one.interfaces_changed({"127.0.0.1"})
            assert one.peers() == [two.peer_id], "the address of this connection is still there"
            one.interfaces_changed({"192.168.1.7"})
            await eventually(lambda: not two.peers())
