"""A node and a js-libp2p peer find each other by multicast DNS."""

from collections.abc import Iterator

import pytest
import trio

from mycelia.node.local_swarm.processes import LocalSwarm
from tests.e2e.conftest import DEADLINE_S
from tests.e2e.internet import can_make_routers, inside, run
from tests.e2e.test_local_network import OPTIONS, Bridge
from tests.interop.js_peer import js_peer, missing

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(not can_make_routers(), reason="needs root and iproute2"),
]


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    made = Bridge()
    try:
        yield made
    finally:
        made.remove()


async def test_they_find_each_other(bridge: Bridge, swarm: LocalSwarm) -> None:
    hosts = [bridge.host(f"192.168.77.{number}/24") for number in (1, 2)]
    # (js-libp2p leaves the interface to the kernel)
    run("ip", "-n", hosts[1], "route", "add", "224.0.0.0/4", "dev", "lan")
    with trio.fail_after(DEADLINE_S):
        node = await swarm.start("node", options=OPTIONS, command=inside(hosts[0]))
        peer = (await node.wait_ready()).peer
        async with js_peer(namespace=hosts[1], listen=["/ip4/192.168.77.2/tcp/7117"], onLan=True) as js:
            found = await js.until("discovered", lambda found: peer in found)
            assert "/ip4/192.168.77.1/tcp/7117" in {address.partition("/p2p/")[0] for address in found[peer]}
            await js.until("connections", lambda ones: peer in {one["peer"] for one in ones})
