"""Nodes of one local network find each other with nothing given to them: namespaces on one bridge."""

import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import trio

from mycelia.node.commands.checks import SWARM_KEY_LINES
from mycelia.node.local_swarm.processes import LocalNode, LocalSwarm
from mycelia.node.network.libp2p.neighbours import DIAL_BURST
from tests.e2e.conftest import DEADLINE_S, parse_answer
from tests.e2e.internet import can_make_routers, inside, run

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not can_make_routers(), reason="needs root and iproute2"),
]
PATIENCE_S = 30.0
OPTIONS = ["--model", "fake", "--listen", "/ip4/0.0.0.0/tcp/7117", "--listen", "/ip6/::/tcp/7117"]


class Bridge:
    """A network without a router, name server or way out."""

    def __init__(self) -> None:
        self._name = f"lan{os.getpid()}"
        self._namespaces: list[str] = []
        self._switch = self._new("switch")
        run("ip", "-n", self._switch, "link", "add", "switch", "type", "bridge", "mcast_snooping", "0")
        run("ip", "-n", self._switch, "link", "set", "switch", "up")

    def _new(self, part: str) -> str:
        namespace = f"{self._name}-{part}"
        run("ip", "netns", "add", namespace)
        self._namespaces.append(namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        return namespace

    def host(self, *addresses: str) -> str:
        """A namespace with these addresses."""
        number = len(self._namespaces)
        host = self._new(f"host{number}")
        ends = ("type", "veth", "peer", "name", f"to{number}", "netns", self._switch)
        run("ip", "-n", host, "link", "add", "lan", *ends)
        run("ip", "-n", self._switch, "link", "set", f"to{number}", "master", "switch", "up")
        for address in addresses:
            run("ip", "-n", host, "address", "add", address, "dev", "lan", *(["nodad"] if ":" in address else []))
        run("ip", "-n", host, "link", "set", "lan", "up")
        return host

    def remove(self) -> None:
        for namespace in self._namespaces:
            run("ip", "netns", "del", namespace)


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    made = Bridge()
    try:
        yield made
    finally:
        made.remove()


def at(node: LocalNode, name: str) -> float:
    event = next(event for event in node.events if event.get("event") == name)
    return datetime.fromisoformat(str(event["timestamp"])).timestamp()


def key_file(folder: Path, byte: str) -> list[str]:
    path = folder / f"{byte}.key"
    path.write_text("\n".join([*SWARM_KEY_LINES, byte * 64]) + "\n")
    path.chmod(0o600)
    return ["--swarm-key", str(path)]


@pytest.mark.parametrize("family", ["IPv4", pytest.param("IPv6", marks=pytest.mark.lab)])
async def test_nodes_of_one_network_meet(bridge: Bridge, swarm: LocalSwarm, family: str) -> None:
    with trio.fail_after(DEADLINE_S):
        nodes = []
        for number in (1, 2):
            host = bridge.host(f"192.168.77.{number}/24" if family == "IPv4" else f"fd77::{number}/64")
            nodes.append(await swarm.start(f"node-{number}", options=OPTIONS, command=inside(host)))
        for node in nodes:
            await node.wait_peers(1)
        took_s = max(at(node, "node_joined") for node in nodes) - max(at(node, "ready") for node in nodes)
        assert took_s < PATIENCE_S


async def test_a_command_without_a_node_asks_one_of_its_network(
    bridge: Bridge, swarm: LocalSwarm, tmp_path: Path
) -> None:
    ask = ["ask", "--json", "--data-dir", str(tmp_path / "none"), "Say hello."]
    first, second = (bridge.host(f"192.168.77.{number}/24") for number in (1, 2))
    with trio.fail_after(DEADLINE_S):
        alone = await trio.run_process([*inside(second), *ask], capture_stderr=True, check=False)
        assert alone.returncode == 1 and b"no other node answers in 192.168.77.0/24" in alone.stderr
        node = await swarm.start("node", options=OPTIONS, command=inside(first))
        served_by = (await node.wait_ready()).peer
        asked = await trio.run_process([*inside(second), *ask], capture_stdout=True)
    assert parse_answer(asked.stdout.decode()).answered.served_by == served_by


@pytest.mark.lab
async def test_members_of_a_private_swarm_meet_and_nobody_else(
    bridge: Bridge, swarm: LocalSwarm, tmp_path: Path
) -> None:
    one_key, other_key = key_file(tmp_path, "a"), key_file(tmp_path, "b")
    kinds = {"one": one_key, "two": one_key, "foreign": other_key, "open": [], "hidden": ["--no-mdns"]}
    with trio.fail_after(DEADLINE_S):
        nodes = {}
        for number, (name, options) in enumerate(kinds.items(), start=1):
            host = bridge.host(f"192.168.77.{number}/24")
            nodes[name] = await swarm.start(name, options=[*OPTIONS, *options], command=inside(host))
        peers = {name: (await node.wait_ready()).peer for name, node in nodes.items()}
        await nodes["one"].wait_peers(1)
        await nodes["two"].wait_peers(1)
        tried = {name: await found_nobody(nodes[name]) for name in ("foreign", "open", "hidden")}
    assert "no other node answers in 192.168.77.0/24" in str(tried["foreign"])
    assert "no other node answers in 192.168.77.0/24" in str(tried["open"])
    assert "mDNS" not in str(tried["hidden"])
    for name, other in (("one", "two"), ("two", "one")):
        assert {event["peer"] for event in nodes[name].events if event.get("event") == "node_joined"} == {peers[other]}


async def found_nobody(node: LocalNode) -> object:
    await node.wait_event(lambda event: event.get("event") == "found_nobody")
    return next(event["tried"] for event in node.events if event.get("event") == "found_nobody")


FLOOD = """
import random, socket, sys, time
from ipaddress import ip_address
from mycelia.node.network.identity import new_identity
from mycelia.node.network.mdns.interfaces import local_networks, target
from mycelia.node.network.mdns.records import Records
from mycelia.node.peer_id import peer_text

(network,) = local_networks()
channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
channel.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, network.ip.packed)
rng = random.Random(1)
peers = [peer_text(new_identity().peer_id) for _ in range(1000)]
packets = []
for number, peer in enumerate(peers):
    hosts = [f"192.168.77.{number % 200 + 20}", "127.0.0.1", "45.10.1.1", "192.168.78.1", str(network.ip)]
    told = [f"/ip4/{host}/tcp/{number + 1}/p2p/{peer}" for host in hosts]
    packets.append(Records(b"", rng).answer(told, ip_address(hosts[0]), 1))
while True:
    for packet in packets:
        channel.sendto(packet, target(network))
        time.sleep(0.0002)
"""


@pytest.mark.lab
async def test_a_flood_of_answers_is_bounded(bridge: Bridge, swarm: LocalSwarm) -> None:
    """A stranger in the network tells of thousands of peers, at addresses of its network and elsewhere."""
    flooder, host, other = [bridge.host(f"192.168.77.{number}/24") for number in (1, 2, 3)]
    words = ["ip", "netns", "exec", flooder, sys.executable, "-c", FLOOD]
    flood = await trio.lowlevel.open_process(words, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        with trio.fail_after(DEADLINE_S):
            node = await swarm.start("node", options=[*OPTIONS, "--debug"], command=inside(host))
            await found_nobody(node)
            second = await swarm.start(
                "second", [await node.address()], options=[*OPTIONS, "--no-mdns"], command=inside(other)
            )
            await second.wait_peers(1)
    finally:
        flood.kill()
        await flood.wait()
    dials = [str(event["reason"]) for event in node.events if event.get("event") == "provider is not reachable"]
    assert 1 <= len(dials) <= DIAL_BURST
    assert all("192.168.77." in reason for reason in dials)
