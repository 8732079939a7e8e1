"""``mycelia doctor`` behind a real router that translates addresses: network namespaces and the kernel's own NAT."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from node.swarm import COMMAND, LocalSwarm
from tests.e2e.conftest import DEADLINE_S

PUBLIC, PRIVATE = "203.0.113.7", "10.77.0.2"
PEERS = ("203.0.113.1", "203.0.113.2")


def run(*words: str, stdin: str = "") -> None:
    subprocess.run(words, input=stdin.encode(), check=True, capture_output=True)


def can_make_routers() -> bool:
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("nft")):
        return False
    try:
        run("nft", "-f", "-", stdin="table ip mycelia_probe { chain c { type nat hook postrouting priority 100; }; }")
        run("nft", "delete", "table", "ip", "mycelia_probe")
    except subprocess.CalledProcessError:
        return False
    return True


pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not can_make_routers(), reason="needs root, iproute2, nftables and a kernel that translates"),
]


class Router:
    """A home, the internet, and what is between them. Names of namespaces."""

    def __init__(self, name: str) -> None:
        self.home, self.internet, self._between = (f"{name}-{part}" for part in ("home", "net", "nat"))
        self.namespaces = (self.home, self.internet, self._between)

    def build(self) -> None:
        for namespace in self.namespaces:
            run("ip", "netns", "add", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        for side, network in ((self.home, "10.77.0.1/24"), (self.internet, f"{PUBLIC}/24")):
            port = side.rpartition("-")[2]
            run("ip", "-n", self._between, "link", "add", port, "type", "veth", "peer", "name", "up0", "netns", side)
            run("ip", "-n", self._between, "address", "add", network, "dev", port)
            run("ip", "-n", self._between, "link", "set", port, "up")
            run("ip", "-n", side, "link", "set", "up0", "up")
        for address in PEERS:
            run("ip", "-n", self.internet, "address", "add", f"{address}/24", "dev", "up0")
        run("ip", "-n", self.home, "address", "add", f"{PRIVATE}/24", "dev", "up0")
        run("ip", "-n", self.home, "route", "add", "default", "via", "10.77.0.1")
        run("ip", "netns", "exec", self._between, "sysctl", "-qw", "net.ipv4.ip_forward=1")

    def translate(self, how: str, forwarded: int = 0) -> None:
        """how: nftables' flags of masquerade. forwarded: a TCP port that leads to the home."""
        forward = f"tcp dport {forwarded} dnat to {PRIVATE}" if forwarded else ""
        rules = f"""
            flush ruleset
            table ip nat {{
                chain out {{ type nat hook postrouting priority 100; oifname "net" masquerade {how}; }}
                chain in {{ type nat hook prerouting priority -100; iifname "net" {forward or "accept"}; }}
            }}"""
        run("ip", "netns", "exec", self._between, "nft", "-f", "-", stdin=rules)

    def remove(self) -> None:
        for namespace in self.namespaces:
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


@pytest.fixture
def router() -> Iterator[Router]:
    router = Router(f"my{os.getpid()}")
    try:
        router.build()
        yield router
    finally:
        router.remove()


async def examined(router: Router, bootstrap: list[str], data_dir: Path) -> dict[str, dict[str, object]]:
    """The last line of each kind that ``mycelia doctor`` prints at home."""
    words = ["ip", "netns", "exec", router.home, *COMMAND, "doctor", "--json", "--data-dir", str(data_dir)]
    for address in bootstrap:
        words += ["--bootstrap", address]
    done = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
    return {line["what"]: line for line in json.loads(done.stdout)["outlook"]}


async def test_the_doctor_tells_which_kind_of_router_there_is(
    router: Router, swarm: LocalSwarm, tmp_path: Path
) -> None:
    with trio.fail_after(DEADLINE_S):
        bootstrap = []
        for number, host in enumerate(PEERS):
            options = ["--model", "fake", "--listen", f"/ip4/{host}/tcp/7117"]
            command = ("ip", "netns", "exec", router.internet, *COMMAND)
            peer = await swarm.start(f"peer-{number}", options=options, command=command)
            bootstrap.append(await peer.address())
        announce = f"mycelia node --announce /ip4/{PUBLIC}/tcp/7117"

        router.translate("")
        cone = await examined(router, bootstrap, tmp_path)
        assert cone["NAT"]["ok"] and str(cone["NAT"]["says"]).startswith(f"cone: 2 peers see {PUBLIC} port ")
        assert not cone["reachable"]["ok"] and announce in str(cone["reachable"]["fix"])
        one = await examined(router, bootstrap[:1], tmp_path)
        assert f"address translation to {PUBLIC}" in str(one["NAT"]["says"])

        router.translate("fully-random")
        symmetric = await examined(router, bootstrap, tmp_path)
        assert not symmetric["NAT"]["ok"] and announce in str(symmetric["NAT"]["fix"])
        assert str(symmetric["NAT"]["says"]).startswith(f"symmetric: different peers see {PUBLIC} port ")

        router.translate("fully-random", forwarded=7117)
        forwarded = await examined(router, bootstrap, tmp_path)
        assert forwarded["NAT"]["ok"] and "symmetric" in str(forwarded["NAT"]["says"])
        assert forwarded["reachable"]["ok"] and announce in str(forwarded["reachable"]["says"])
