"""Members of a private swarm that reach each other only through a relay of the open network, on loopback."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from mycelia.node.network.libp2p.carrier import Carrier, open_carrier
from mycelia.node.network.libp2p.network import open_network
from mycelia.node.network.network import NetworkSettings
from mycelia.node.peer_id import peer_text
from mycelia.node.storage.private_swarms import read_swarm, store_membership
from tests.node.network.libp2p.network_helpers import HIDDEN, PATIENCE_S, eventually, hello, node
from tests.node.private_swarm.swarms import NAME, Place, Running, admin, invitation, join, place, running
from tests.node.private_swarm.test_member import is_answered


@asynccontextmanager
async def carried(one: Running, relay: str) -> AsyncIterator[Carrier]:
    plain = NetworkSettings(identity=one.place.identity, bootstrap=(relay,), overlay=False)
    async with open_carrier(one.network, plain) as carrier:
        yield carrier


def circuits(one: Running) -> list[str]:
    return [address for address in one.network.addresses() if "/p2p-circuit" in address]


def forget_contacts(of: Place) -> None:
    """Deletes the addresses by which a node would find the swarm again."""
    store_membership(of.data_dir, NAME, read_swarm(of.data_dir, NAME).roster, ())


async def test_a_node_joins_through_a_relay_that_has_no_key(tmp_path: Path) -> None:
    at, guest = admin(tmp_path), place(tmp_path, "guest")
    with trio.fail_after(PATIENCE_S):
        async with open_network(node()) as relay, running(at) as home, carried(home, relay.addresses()[0]) as carrier:
            carrier.set_reachability(HIDDEN)
            await eventually(lambda: circuits(home))
            text = invitation(at, home, only=circuits(home))
            await join(guest, text)
            async with running(guest) as other, carried(other, relay.addresses()[0]):
                await eventually(lambda: other.network.peers() == [at.peer])
                assert "/p2p-circuit" in other.network.remote_address(at.peer)
                assert await is_answered(other, home)
            assert relay.peers() == [at.peer]  # (as a client: it said no hello)


async def test_members_whose_addresses_are_forgotten_meet_at_a_common_relay(tmp_path: Path) -> None:
    at, guest = admin(tmp_path), place(tmp_path, "guest")
    with trio.fail_after(PATIENCE_S):
        async with open_network(node()) as relay, running(at) as home, carried(home, relay.addresses()[0]) as carrier:
            await join(guest, invitation(at, home))
            forget_contacts(guest)
            carrier.set_reachability(HIDDEN)
            await eventually(lambda: circuits(home))
            async with running(guest) as other, carried(other, relay.addresses()[0]):
                await eventually(lambda: at.peer in other.network.peers())
                assert peer_text(relay.peer_id) in other.network.remote_address(at.peer)


async def test_what_relays_send_besides_circuits_does_not_pile_up(tmp_path: Path) -> None:
    at = admin(tmp_path)
    with trio.fail_after(PATIENCE_S):
        async with open_network(node()) as relay, running(at) as home:
            plain = NetworkSettings(identity=at.identity, bootstrap=(relay.addresses()[0],), overlay=False)
            async with open_network(plain) as public, trio.open_nursery() as nursery:
                nursery.start_soon(Carrier(home.network, public).run)
                await eventually(lambda: public.peers() == [relay.peer_id])
                await relay.send(at.peer, hello())
                await public.disconnect(relay.peer_id)
                await eventually(lambda: not public.events_queue.waiting)
                nursery.cancel_scope.cancel()
