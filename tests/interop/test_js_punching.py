"""A node behind a router and a js-libp2p peer that met through a relay are soon connected directly (DCUtR)."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.util import find_spec

import pytest
import trio

from mycelia.node.local_swarm.processes import LocalSwarm
from tests.e2e.conftest import DEADLINE_S
from tests.e2e.internet import PORT, Internet, Kind, can_make_routers, public_address
from tests.e2e.test_nat import at_home, public_peers
from tests.interop.js_peer import JsPeer, js_peer, missing

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(not can_make_routers(), reason="needs root, iproute2, nftables and a kernel that translates"),
    pytest.mark.skipif(find_spec("mycelia.node.network.libp2p.punching") is None, reason="nodes punch no holes yet"),
]


@pytest.fixture
def internet() -> Iterator[Internet]:
    internet = Internet(f"js{os.getpid()}")
    try:
        yield internet
    finally:
        internet.remove()


@asynccontextmanager
async def js_in_the_open(internet: Internet, relay: str, announces: bool) -> AsyncIterator[tuple[JsPeer, str]]:
    """A peer with a public address, and its address at the relay. announces: whether it tells others the public one."""
    own = f"/ip4/{public_address(2)}/tcp/{PORT}"
    announced = [own] if announces else []
    async with js_peer(
        namespace=internet.namespace, listen=[own, f"{relay}/p2p-circuit"], announce=announced, punches=[own]
    ) as js:
        circuit = f"{relay}/p2p-circuit/p2p/{js.id}"
        told = await js.until("addresses", lambda told: circuit in told)
        assert (f"{own}/p2p/{js.id}" in told) == announces
        yield js, circuit


async def direct_with(js: JsPeer, peer: str) -> None:
    await js.until("connections", lambda ones: any(one["peer"] == peer and one["direct"] for one in ones))


async def test_js_asks_a_node_to_punch(internet: Internet, swarm: LocalSwarm) -> None:
    home = internet.home(Kind.RESTRICTED)
    with trio.fail_after(DEADLINE_S):
        relay, _ = await public_peers(swarm, internet, 1)
        async with js_in_the_open(internet, relay, announces=False) as (js, circuit):
            node = await at_home(swarm, home, [relay, circuit])
            await direct_with(js, (await node.wait_ready()).peer)


async def test_a_node_dials_the_address_of_js(internet: Internet, swarm: LocalSwarm) -> None:
    home = internet.home(Kind.RESTRICTED)
    with trio.fail_after(DEADLINE_S):
        relay, _ = await public_peers(swarm, internet, 1)
        async with js_in_the_open(internet, relay, announces=True) as (js, _):
            node = await at_home(swarm, home, [relay])
            await node.wait_event(lambda event: event.get("event") == "relays_changed")
            peer = (await node.wait_ready()).peer
            seen = await js.do("dial", f"{relay}/p2p-circuit/p2p/{peer}")
            assert "/libp2p/dcutr" in seen["protocols"]
            await direct_with(js, peer)
