"""A node behind a real router program that forwards ports on request: dialled directly without any option, the mapping
renewed while the node runs, and gone after its end."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from mycelia.node.local_swarm.processes import LocalNode, LocalSwarm
from mycelia.node.network.addresses import default_listen
from mycelia.node.network.mapping.pcp import PcpRouter
from mycelia.node.network.mapping.router import Mapping, MappingError, Router
from mycelia.node.network.mapping.upnp import UpnpRouter
from tests.e2e.conftest import DEADLINE_S
from tests.e2e.internet import (
    PEERS,
    PORT,
    Home,
    Internet,
    Kind,
    can_make_routers,
    inside,
    public_address,
    public_address_v6,
    run_inside,
)
from tests.e2e.miniupnpd import ALL_PORTS, ALL_PROTOCOLS, is_installed
from tests.e2e.nat_matrix import peers_at

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not can_make_routers(), reason="needs root, iproute2, nftables and a kernel that translates"),
    pytest.mark.skipif(not is_installed(), reason="needs miniupnpd (Debian: miniupnpd-nftables)"),
]
SHORT_LEASES = ("min_lifetime=10", "max_lifetime=12")
LISTEN = [word for address in default_listen(PORT) for word in ("--listen", address)]


@pytest.fixture
def internet() -> Iterator[Internet]:
    internet = Internet(f"pm{os.getpid()}")
    try:
        yield internet
    finally:
        internet.remove()


async def until(holds: Callable[[], object]) -> None:
    """Polls for what a router does."""
    while not holds():  # noqa: ASYNC110
        await trio.sleep(0.1)


async def peer_in_the_open(swarm: LocalSwarm, internet: Internet) -> str:
    options = ["--model", "fake", "--listen", f"/ip4/{public_address(PEERS[0])}/tcp/{PORT}"]
    return await (await swarm.start("peer", options=options, command=inside(internet.namespace))).address()


async def at_home(swarm: LocalSwarm, home: Home, bootstrap: str, *options: str) -> LocalNode:
    return await swarm.start(
        f"home-{home.number}", [bootstrap], ["--model", "fake", *LISTEN, *options], inside(home.namespace)
    )


async def test_a_home_is_dialled_directly_and_its_mapping_ends_with_it(internet: Internet, swarm: LocalSwarm) -> None:
    home, other = internet.home(), internet.home()
    router = internet.serve_mappings(home)
    with trio.fail_after(DEADLINE_S):
        bootstrap = await peer_in_the_open(swarm, internet)
        node = await at_home(swarm, home, bootstrap)
        mapped = await node.wait_event(lambda event: event.get("event") == "port_mapped")
        assert mapped["by"] == "PCP" and mapped["external"] == f"{home.public}:{PORT}"
        await until(router.leases)

        visitor = await at_home(swarm, other, bootstrap)
        await visitor.wait_peers(2)
        me = (await node.wait_ready()).peer
        assert (await peers_at(visitor, other.namespace))[me] == f"/ip4/{home.public}/tcp/{PORT}"

        await node.stop()
        assert router.leases() == {}


@pytest.mark.lab
async def test_a_firewall_for_ipv6_is_opened_and_closed_with_the_node(internet: Internet, swarm: LocalSwarm) -> None:
    home, other = internet.home(Kind.IPV6), internet.home(Kind.IPV6)
    internet.add_ipv4(home)
    internet.serve_mappings(home)
    with trio.fail_after(DEADLINE_S):
        options = ["--model", "fake", "--listen", f"/ip6/{public_address_v6(PEERS[0])}/tcp/{PORT}"]
        peer = await swarm.start("peer", options=options, command=inside(internet.namespace))
        bootstrap = await peer.address()
        node = await at_home(swarm, home, bootstrap)
        mapped = await node.wait_event(lambda event: event.get("event") == "port_mapped")
        assert mapped["by"] == "PCP" and mapped["external"] == f"[{home.public}]:{PORT}"

        visitor = await at_home(swarm, other, bootstrap)
        await visitor.wait_peers(2)
        me = (await node.wait_ready()).peer
        assert (await peers_at(visitor, other.namespace))[me] == f"/ip6/{home.public}/tcp/{PORT}"
        assert f"dport {PORT}" in await rules(home)
        await node.stop()
        assert f"dport {PORT}" not in await rules(home)


async def rules(home: Home) -> str:
    command = ["ip", "netns", "exec", home.router, "nft", "list", "chain", "inet", "filter", "miniupnpd"]
    return (await trio.run_process(command, capture_stdout=True)).stdout.decode()


@pytest.mark.lab
async def test_a_mapping_is_renewed_and_ends_soon_after_a_node_that_was_killed(
    internet: Internet, swarm: LocalSwarm
) -> None:
    home = internet.home()
    router = internet.serve_mappings(home, (*ALL_PROTOCOLS, *ALL_PORTS, *SHORT_LEASES))
    with trio.fail_after(DEADLINE_S):
        node = await at_home(swarm, home, await peer_in_the_open(swarm, internet))
        await node.wait_event(lambda event: event.get("event") == "port_mapped")
        await until(router.leases)
        ends_at = router.leases()[PORT]
        await until(lambda: router.leases()[PORT] > ends_at)
        node.kill()
        await until(lambda: not router.leases())


@pytest.mark.lab
@pytest.mark.parametrize("protocol", ["NAT-PMP", "UPnP"])
async def test_the_doctor_tells_what_the_router_would_do(
    internet: Internet, swarm: LocalSwarm, tmp_path: Path, protocol: str
) -> None:
    home = internet.home()
    only = {"NAT-PMP": ALL_PROTOCOLS, "UPnP": ALL_PROTOCOLS[:1]}[protocol]
    router = internet.serve_mappings(home, (*only, *ALL_PORTS))
    with trio.fail_after(DEADLINE_S):
        bootstrap = await peer_in_the_open(swarm, internet)
        words = [*inside(home.namespace), "doctor", "--json", "--data-dir", str(tmp_path / "none")]
        done = await trio.run_process([*words, "--bootstrap", bootstrap], capture_stdout=True, check=False)
        found = {line["what"]: line for line in json.loads(done.stdout)["outlook"]}
        assert f"{home.gateway} forwards ports on request, by {protocol}" in found["port mapping"]["says"]
        assert f"its own address is {home.public}" in found["port mapping"]["says"]
        assert found["reachable"]["ok"] and "asks the router" in found["reachable"]["says"]
        assert router.leases() == {}


@pytest.mark.lab
async def test_a_node_that_must_not_ask_stays_behind_its_relay(internet: Internet, swarm: LocalSwarm) -> None:
    home = internet.home()
    router = internet.serve_mappings(home)
    with trio.fail_after(DEADLINE_S):
        node = await at_home(swarm, home, await peer_in_the_open(swarm, internet), "--no-port-mapping")
        await node.wait_event(lambda event: event.get("event") == "relays_changed")
        assert router.leases() == {} and "port_mapped" not in node.counts


@pytest.mark.lab
async def test_a_router_that_gives_another_port_and_one_that_lies(internet: Internet, swarm: LocalSwarm) -> None:
    """Only what peers find open is announced: the mapped port at the address that they see, and nothing of a router
    that claims another address, behind a second one."""
    home, double = internet.home(), internet.home(Kind.DOUBLE)
    internet.serve_mappings(home, ("ext_ip=45.99.0.1", *ALL_PROTOCOLS, *ALL_PORTS))
    lies = internet.serve_mappings(double, ("ext_ip=45.99.0.1", *ALL_PROTOCOLS, *ALL_PORTS))
    run_inside(home.namespace, lambda: taken(PcpRouter(home.gateway), 9_999, PORT))
    with trio.fail_after(DEADLINE_S):
        bootstrap = await peer_in_the_open(swarm, internet)
        node = await at_home(swarm, home, bootstrap)
        mapped = await node.wait_event(lambda event: event.get("event") == "port_mapped")
        host, port = str(mapped["external"]).split(":")
        assert host == "45.99.0.1" and int(port) != PORT

        hidden = await at_home(swarm, double, bootstrap, "--debug")
        await hidden.wait_event(lambda event: event.get("event") == "mapped_port_is_closed")
        await hidden.wait_event(lambda event: event.get("event") == "relays_changed")
        await until(lambda: not lies.leases())
        await hidden.wait_peers(2)
        me = (await node.wait_ready()).peer
        assert (await peers_at(hidden, double.namespace))[me] == f"/ip4/{home.public}/tcp/{port}"


async def taken(router: Router, port: int, external_port: int) -> Mapping:
    """The mapping that the router gives."""
    for _ in range(100):  # (the router program has just been started)
        try:
            return await router.map(port, external_port)
        except (MappingError, OSError):
            await trio.sleep(0.1)
    raise AssertionError("the router gives nothing")


@pytest.mark.lab
@pytest.mark.parametrize("make", [PcpRouter, UpnpRouter])
def test_a_mapping_in_each_protocol(internet: Internet, make: Callable[[str], Router]) -> None:
    home = internet.home()
    program = internet.serve_mappings(home)

    async def use() -> None:
        router = make(home.gateway)
        first = await taken(router, PORT, PORT)
        assert (first.external_host, first.external_port, first.lease_s) == (home.public, PORT, 3_600)
        assert (await router.external())[1] == home.public
        assert await router.map(PORT, PORT) == first and list(program.leases()) == [PORT]
        await router.unmap(first)
        assert program.leases() == {}

    run_inside(home.namespace, use)
