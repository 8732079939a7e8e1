"""``mycelia doctor`` behind a real router that translates addresses: network namespaces and the kernel's own NAT."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from mycelia.node.local_swarm.processes import COMMAND, LocalNode, LocalSwarm
from tests.e2e.conftest import DEADLINE_S, parse_answer

PEERS = ("203.0.113.1", "203.0.113.2")
PRIVATE = "10.77.0.2"


def run(*words: str, stdin: str = "") -> None:
    subprocess.run(words, input=stdin.encode(), check=True, capture_output=True)


def can_make_routers() -> bool:
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("nft")):
        return False
    table = f"mycelia_probe_{os.getpid()}"
    try:
        run("nft", "add", "table", "ip", table)
        run("nft", "add", "chain", "ip", table, "out", "{ type nat hook postrouting priority 100; }")
        run("nft", "delete", "table", "ip", table)
        run("ip", "netns", "list")
    except subprocess.CalledProcessError:
        return False
    return True


pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not can_make_routers(), reason="needs root, iproute2, nftables and a kernel that translates"),
]


class Internet:
    """A namespace with PEERS' addresses. ``home`` adds a namespace behind a router."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.namespace = self._new("net")
        self._namespaces = [self.namespace]
        self._switch()

    def _new(self, part: str) -> str:
        namespace = f"{self._name}-{part}"
        run("ip", "netns", "add", namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        return namespace

    def _switch(self) -> None:
        run("ip", "-n", self.namespace, "link", "add", "switch", "type", "bridge")
        run("ip", "-n", self.namespace, "link", "set", "switch", "up")
        for address in PEERS:
            run("ip", "-n", self.namespace, "address", "add", f"{address}/24", "dev", "switch")

    def home(self, public: str) -> "Home":
        number = public.rpartition(".")[2]
        home, router = self._new(f"home{number}"), self._new(f"nat{number}")
        self._namespaces += [home, router]
        for side, name, network in ((home, "lan", "10.77.0.1/24"), (self.namespace, "wan", f"{public}/24")):
            end = f"to{number}"
            run("ip", "-n", router, "link", "add", name, "type", "veth", "peer", "name", end, "netns", side)
            run("ip", "-n", router, "address", "add", network, "dev", name)
            run("ip", "-n", router, "link", "set", name, "up")
            run("ip", "-n", side, "link", "set", end, "up")
        run("ip", "-n", self.namespace, "link", "set", f"to{number}", "master", "switch")
        run("ip", "-n", home, "address", "add", f"{PRIVATE}/24", "dev", f"to{number}")
        run("ip", "-n", home, "route", "add", "default", "via", "10.77.0.1")
        run("ip", "netns", "exec", router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        return Home(home, router, public)

    def remove(self) -> None:
        for namespace in self._namespaces:
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


class Home:
    """A machine behind a router that translates addresses."""

    def __init__(self, namespace: str, router: str, public: str) -> None:
        self.namespace, self._router, self.public = namespace, router, public
        self.translate()

    def translate(self, how: str = "", forwarded: int = 0) -> None:
        """how: nftables' flags of masquerade. forwarded: a TCP port that leads to the machine."""
        forward = f"tcp dport {forwarded} dnat to {PRIVATE}" if forwarded else "accept"
        closed = "" if forwarded else 'iifname "wan" ct state new drop;'
        rules = f"""
            flush ruleset
            table ip nat {{
                chain out {{ type nat hook postrouting priority 100; oifname "wan" masquerade {how}; }}
                chain in {{ type nat hook prerouting priority -100; iifname "wan" {forward}; }}
                chain through {{ type filter hook forward priority 0; {closed} }}
            }}"""
        run("ip", "netns", "exec", self._router, "nft", "-f", "-", stdin=rules)


def inside(namespace: str) -> tuple[str, ...]:
    """The command prefix that runs ``mycelia`` in a namespace."""
    return ("ip", "netns", "exec", namespace, *COMMAND)


@pytest.fixture
def internet() -> Iterator[Internet]:
    internet = Internet(f"my{os.getpid()}")
    try:
        yield internet
    finally:
        internet.remove()


async def public_peers(swarm: LocalSwarm, internet: Internet, count: int) -> list[str]:
    addresses = []
    for number, host in enumerate(PEERS[:count]):
        options = ["--model", "fake", "--listen", f"/ip4/{host}/tcp/7117"]
        peer = await swarm.start(f"peer-{number}", options=options, command=inside(internet.namespace))
        addresses.append(await peer.address())
    return addresses


async def examined(home: Home, bootstrap: list[str], data_dir: Path) -> dict[str, dict[str, object]]:
    """The last line of each kind that ``mycelia doctor`` prints in the home."""
    words = [*inside(home.namespace), "doctor", "--json", "--data-dir", str(data_dir)]
    for address in bootstrap:
        words += ["--bootstrap", address]
    done = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
    return {line["what"]: line for line in json.loads(done.stdout)["outlook"]}


async def test_the_doctor_tells_which_kind_of_router_there_is(
    internet: Internet, swarm: LocalSwarm, tmp_path: Path
) -> None:
    home = internet.home("203.0.113.7")
    announce = "mycelia node --announce /ip4/203.0.113.7/tcp/7117"
    with trio.fail_after(DEADLINE_S):
        bootstrap = await public_peers(swarm, internet, 2)

        cone = await examined(home, bootstrap, tmp_path)
        assert cone["NAT"]["ok"] and str(cone["NAT"]["says"]).startswith("cone: 2 peers see 203.0.113.7 port ")
        assert not cone["reachable"]["ok"] and announce in str(cone["reachable"]["fix"])
        one = await examined(home, bootstrap[:1], tmp_path)
        assert "address translation to 203.0.113.7" in str(one["NAT"]["says"])

        home.translate("fully-random")
        symmetric = await examined(home, bootstrap, tmp_path)
        assert not symmetric["NAT"]["ok"] and announce in str(symmetric["NAT"]["fix"])
        assert str(symmetric["NAT"]["says"]).startswith("symmetric: different peers see 203.0.113.7 port ")

        home.translate("fully-random", forwarded=7117)
        forwarded = await examined(home, bootstrap, tmp_path)
        assert forwarded["NAT"]["ok"] and "symmetric" in str(forwarded["NAT"]["says"])
        assert forwarded["reachable"]["ok"] and announce in str(forwarded["reachable"]["says"])


async def test_two_nodes_behind_routers_find_and_ask_each_other_through_a_relay(
    internet: Internet, swarm: LocalSwarm
) -> None:
    homes = [internet.home("203.0.113.7"), internet.home("203.0.113.8")]
    with trio.fail_after(DEADLINE_S):
        bootstrap = await public_peers(swarm, internet, 1)
        options = ["--model", "fake", "--listen", "/ip4/0.0.0.0/tcp/7117"]
        one, two = [
            await swarm.start(f"home-{number}", bootstrap, options, inside(home.namespace))
            for number, home in enumerate(homes)
        ]
        for node in (one, two):
            await node.wait_event(lambda event: event.get("event") == "relays_changed")
            await node.wait_peers(2)
        found = await examined(homes[0], bootstrap, one.data_dir)
        assert found["relay"]["ok"] and "peers reach this node through 12D" in str(found["relay"]["says"])
        assert found["reachable"]["ok"] and "through the relay" in str(found["reachable"]["says"])

        async def at(home: Home, node: LocalNode, command: str, *words: str) -> bytes:
            options = [command, "--json", "--data-dir", str(node.data_dir), *words]
            return (await trio.run_process([*inside(home.namespace), *options], capture_stdout=True)).stdout

        peer = (await two.wait_ready()).peer
        prompt = "What has been computed at the other home is asked for here. " * 40
        await at(homes[1], two, "ask", "--cache-salt", "public", prompt)
        row: dict[str, object] = {}
        while not row.get("digest_blocks"):
            row = {row["peer"]: row for row in json.loads(await at(homes[0], one, "peers"))}[peer]
        assert "/p2p-circuit" in str(row["address"])
        answer = parse_answer((await at(homes[0], one, "ask", "--cache-salt", "public", prompt)).decode())
        assert answer.answered.served_by == peer and answer.answered.cached_tokens > 1_000
