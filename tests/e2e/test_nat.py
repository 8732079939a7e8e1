"""Nodes behind real routers (network namespaces and the kernel's own NAT), on an internet that drops in silence."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from mycelia.node.local_swarm.processes import LocalNode, LocalSwarm
from tests.e2e.conftest import DEADLINE_S, Answer, parse_answer
from tests.e2e.internet import PORT, Home, Internet, Kind, can_make_routers, inside, public_address, public_address_v6

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not can_make_routers(), reason="needs root, iproute2, nftables and a kernel that translates"),
]
LISTEN = [word for host in ("/ip4/0.0.0.0", "/ip6/::") for word in ("--listen", f"{host}/tcp/{PORT}")]


@pytest.fixture
def internet() -> Iterator[Internet]:
    internet = Internet(f"my{os.getpid()}")
    try:
        yield internet
    finally:
        internet.remove()


async def public_peers(swarm: LocalSwarm, internet: Internet, count: int, *more: str) -> list[str]:
    """The bootstrap addresses of nodes in the open, each with an address in both families. more: their options."""
    bootstrap = []
    for number in range(1, count + 1):
        hosts = [f"/ip4/{public_address(number)}/tcp/{PORT}", f"/ip6/{public_address_v6(number)}/tcp/{PORT}"]
        options = ["--model", "fake", *(word for host in hosts for word in ("--listen", host)), *more]
        node = await swarm.start(f"peer-{number}", options=options, command=inside(internet.namespace))
        peer = (await node.wait_ready()).peer
        bootstrap += [f"{host}/p2p/{peer}" for host in hosts]
    return bootstrap


async def at_home(swarm: LocalSwarm, home: Home, bootstrap: list[str]) -> LocalNode:
    command = inside(home.namespace)
    node = await swarm.start(f"home-{home.number}", bootstrap, ["--model", "fake", *LISTEN], command)
    await node.wait_ready()
    return node


async def told(home: Home, node: LocalNode, command: str, *words: str) -> bytes:
    """What a command prints at the home."""
    options = [command, "--json", "--data-dir", str(node.data_dir), *words]
    return (await trio.run_process([*inside(home.namespace), *options], capture_stdout=True)).stdout


async def row_of(home: Home, node: LocalNode, peer: str) -> dict[str, object]:
    rows: list[dict[str, object]] = json.loads(await told(home, node, "peers"))
    return {str(row["peer"]): row for row in rows}.get(peer, {})


async def asked_of_each_other(homes: list[Home], nodes: list[LocalNode]) -> Answer:
    """The answer at the first home to what has been computed at the second one."""
    peer = (await nodes[1].wait_ready()).peer
    prompt = "What has been computed at the other home is asked for here. " * 40
    await told(homes[1], nodes[1], "ask", "--cache-salt", "public", prompt)
    while not (await row_of(homes[0], nodes[0], peer)).get("digest_blocks"):
        await nodes[0].wait_peers(2)
    answer = parse_answer((await told(homes[0], nodes[0], "ask", "--cache-salt", "public", prompt)).decode())
    assert answer.answered.served_by == peer and answer.answered.cached_tokens > 1_000
    return answer


async def examined(home: Home, bootstrap: list[str], data_dir: Path) -> dict[str, dict[str, object]]:
    """The last line of each kind that ``mycelia doctor`` prints there."""
    words = [*inside(home.namespace), "doctor", "--json", "--data-dir", str(data_dir)]
    for address in bootstrap:
        words += ["--bootstrap", address]
    done = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
    return {line["what"]: line for line in json.loads(done.stdout)["outlook"]}


@pytest.mark.lab
async def test_the_doctor_tells_which_kind_of_router_there_is(
    internet: Internet, swarm: LocalSwarm, tmp_path: Path
) -> None:
    home = internet.home(Kind.RESTRICTED)
    with trio.fail_after(DEADLINE_S):
        bootstrap = [one for one in await public_peers(swarm, internet, 2) if one.startswith("/ip4/")]

        cone = await examined(home, bootstrap, tmp_path)
        assert cone["NAT"]["ok"] and str(cone["NAT"]["says"]).startswith(f"cone: 2 peers see {home.public} port ")
        assert not cone["reachable"]["ok"] and f"let TCP port {PORT} through" in str(cone["reachable"]["fix"])
        one = await examined(home, bootstrap[:1], tmp_path)
        assert f"address translation to {home.public}" in str(one["NAT"]["says"])

        home.translate(Kind.SYMMETRIC)
        symmetric = await examined(home, bootstrap, tmp_path)
        assert not symmetric["NAT"]["ok"] and f"let TCP port {PORT} through" in str(symmetric["NAT"]["fix"])
        assert str(symmetric["NAT"]["says"]).startswith(f"symmetric: different peers see {home.public} port ")

        home.translate(Kind.FORWARDED)
        forwarded = await examined(home, bootstrap, tmp_path)
        assert forwarded["NAT"]["ok"] and forwarded["reachable"]["ok"]


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(0, id="different private networks"),
        pytest.param(1, id="the same private addresses", marks=pytest.mark.lab),
    ],
)
async def test_two_homes_find_and_ask_each_other_through_a_relay(
    internet: Internet, swarm: LocalSwarm, network: int
) -> None:
    """Packets to the private addresses that they announce vanish, or come back to the home itself."""
    homes = [internet.home(Kind.SYMMETRIC, network) for _ in range(2)]
    with trio.fail_after(DEADLINE_S):
        bootstrap = await public_peers(swarm, internet, 1)
        nodes = [await at_home(swarm, home, bootstrap) for home in homes]
        for node in nodes:
            await node.wait_event(lambda event: event.get("event") == "relays_changed")
            await node.wait_peers(2)
        found = await examined(homes[0], bootstrap, nodes[0].data_dir)
        assert found["relay"]["ok"] and "peers reach this node through 12D" in str(found["relay"]["says"])
        assert found["reachable"]["ok"] and "through the relay" in str(found["reachable"]["says"])
        await asked_of_each_other(homes, nodes)
        peer = (await nodes[1].wait_ready()).peer
        assert "/p2p-circuit" in str((await row_of(homes[0], nodes[0], peer))["address"])


async def test_two_homes_open_each_others_routers(internet: Internet, swarm: LocalSwarm) -> None:
    """They meet through the relay, dial each other at the same moment, and leave the relay."""
    homes = [internet.home(Kind.RESTRICTED), internet.home(Kind.DOUBLE)]
    with trio.fail_after(DEADLINE_S):
        bootstrap = await public_peers(swarm, internet, 1)
        nodes = [await at_home(swarm, home, bootstrap) for home in homes]
        peers = [(await node.wait_ready()).peer for node in nodes]
        for node, peer in zip(nodes, reversed(peers), strict=True):
            await node.wait_event(lambda event, peer=peer: event.get("event") == "direct" and event["peer"] == peer)  # type: ignore[misc]
        await asked_of_each_other(homes, nodes)
        for home, node, other in zip(homes, nodes, (1, 0), strict=True):
            row = await row_of(home, node, peers[other])
            assert (row["path"], row["address"]) == ("punched", f"/ip4/{homes[other].public}/tcp/{PORT}")


async def test_a_forwarded_port_is_found_and_announced_without_an_option(internet: Internet, swarm: LocalSwarm) -> None:
    homes = [internet.home(Kind.FORWARDED), internet.home(Kind.SYMMETRIC)]
    with trio.fail_after(DEADLINE_S):
        bootstrap = await public_peers(swarm, internet, 1)
        nodes = [await at_home(swarm, home, bootstrap) for home in homes]
        await nodes[1].wait_peers(2)
        await nodes[0].wait_peers(2)
        peer = (await nodes[0].wait_ready()).peer
        assert (await row_of(homes[1], nodes[1], peer))["address"] == f"/ip4/{homes[0].public}/tcp/{PORT}"


@pytest.mark.lab
async def test_homes_with_only_ipv6_and_only_ipv4_meet(internet: Internet, swarm: LocalSwarm) -> None:
    homes = [internet.home(Kind.IPV6), internet.home(Kind.FORWARDED), internet.home(Kind.IPV6)]
    with trio.fail_after(DEADLINE_S):
        bootstrap = await public_peers(swarm, internet, 1)
        nodes = [await at_home(swarm, home, bootstrap) for home in homes]
        for node in nodes:
            await node.wait_peers(3)
        await asked_of_each_other(homes, nodes)


@pytest.mark.lab
async def test_a_home_with_another_public_address_is_back(internet: Internet, swarm: LocalSwarm) -> None:
    """Its connections are gone without a word, as are those of its peers with it."""
    home = internet.home(Kind.RESTRICTED)
    with trio.fail_after(DEADLINE_S):
        bootstrap = await public_peers(swarm, internet, 1)
        node = await at_home(swarm, home, bootstrap)
        await node.wait_peers(1)
        peer, public = (await node.wait_ready()).peer, swarm.nodes[0]
        home.move()
        while await host_at(internet, public, peer) != home.moved:
            pass  # (each look takes a while; the address itself is no event)


async def host_at(internet: Internet, public: LocalNode, peer: str) -> str:
    """The IP address from which ``peer`` is connected with a node in the open; empty: it is not."""
    words = [*inside(internet.namespace), "peers", "--json", "--data-dir", str(public.data_dir)]
    rows = json.loads((await trio.run_process(words, capture_stdout=True)).stdout)
    return next((row["address"].split("/")[2] for row in rows if row["peer"] == peer), "")
