"""Nodes of one local network find each other with nothing given to them: namespaces on one bridge."""

import os
from collections.abc import Iterator
from datetime import datetime

import pytest
import trio

from mycelia.node.local_swarm.processes import LocalNode, LocalSwarm
from tests.e2e.conftest import DEADLINE_S
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


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
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
