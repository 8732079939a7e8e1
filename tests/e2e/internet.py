"""An internet of network namespaces: peers in the open, and homes behind routers of every kind (the kernel's own NAT).

As on the real internet, packets to addresses that lead nowhere vanish: no router answers "unreachable", and no firewall
answers for a closed port. Addresses come from ranges that nodes take for public ones.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import trio

from mycelia.node.local_swarm.processes import COMMAND
from tests.e2e.miniupnpd import Miniupnpd

PORT = 7117
PEERS = (1, 2)
"""Numbers of the hosts in the open: 45.10.1.1 and 45.10.2.1, 2a10:1::1 and 2a10:2::1."""
FIRST_HOME = 11
_NEW_NETWORK = 0x40000000
"""The kernel's CLONE_NEWNET."""

T = TypeVar("T")


class Kind(StrEnum):
    """What lies between a home and the internet. Each router drops what it was not asked for, unless said."""

    FORWARDED = "forwarded"
    """One port leads to the home."""
    UPNP = "upnp"
    """The home may ask the router to forward ports (miniupnpd)."""
    CONE = "cone"
    """Every port leads to the home."""
    RESTRICTED = "restricted"
    """Ports stay what they are when addresses are translated; only peers that were dialled get in."""
    SYMMETRIC = "symmetric"
    """A random port for each connection."""
    DOUBLE = "double"
    """A restricted router behind a carrier's."""
    ONLY_443 = "443"
    """Nothing but TCP port 443 leads out."""
    IPV6 = "ipv6"
    """No IPv4; a firewall instead of a router."""


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


def inside(namespace: str) -> tuple[str, ...]:
    """What runs ``mycelia`` there."""
    return ("ip", "netns", "exec", namespace, *COMMAND)


def run_inside(namespace: str, work: Callable[[], Awaitable[T]]) -> T:
    """Runs ``work`` in a thread of its own whose sockets are those of the namespace."""

    def enter_and_work() -> T:
        with open(f"/run/netns/{namespace}") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        return trio.run(work)

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(enter_and_work).result()


def public_address(number: int) -> str:
    """The IPv4 address of a host in the open, or of a home's outermost router."""
    return f"45.10.{number}.1"


def public_address_v6(number: int) -> str:
    return f"2a10:{number}::1"


class Internet:
    """A namespace with the addresses of PEERS, on a switch to which the routers of homes are connected."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._namespaces: list[str] = []
        self._programs: list[Miniupnpd] = []
        self.namespace = self.new("net")
        run("ip", "-n", self.namespace, "link", "add", "switch", "type", "bridge")
        run("ip", "-n", self.namespace, "link", "set", "switch", "up")
        for number in PEERS:
            self._address(self.namespace, "switch", f"{public_address(number)}/8")
            self._address(self.namespace, "switch", f"{public_address_v6(number)}/128")
        self._address(self.namespace, "switch", "2a10:ffff::1/32")
        self.swallow(self.namespace)
        self._num_homes = 0

    def new(self, part: str) -> str:
        """A namespace of this internet."""
        namespace = f"{self._name}-{part}"
        run("ip", "netns", "add", namespace)
        self._namespaces.append(namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        for setting in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            run("ip", "netns", "exec", namespace, "sysctl", "-qw", f"net.{setting}=1")
        return namespace

    def swallow(self, namespace: str) -> None:
        """Has packets to anywhere else vanish."""
        self.cable(namespace, "void", namespace, "sink")
        run("ip", "-n", namespace, "link", "set", "void", "arp", "off")  # (what arrives is then for nobody)
        for family in ("-4", "-6"):
            run("ip", family, "-n", namespace, "route", "add", "default", "dev", "void")

    def home(self, kind: Kind = Kind.RESTRICTED, network: int = 0) -> "Home":
        """network: the third byte of its private addresses, 192.168.N; 0: one of its own."""
        number = FIRST_HOME + self._num_homes
        self._num_homes += 1
        home, router = self.new(f"home{number}"), self.new(f"router{number}")
        self.cable(router, "lan", home, "lan")
        outermost = router
        if kind is Kind.DOUBLE:
            outermost = self.new(f"carrier{number}")
            self.cable(outermost, "lan", router, "wan")
            self._address(outermost, "lan", "100.64.0.1/24")
            self._address(router, "wan", "100.64.0.2/24")
            run("ip", "-n", router, "route", "add", "default", "via", "100.64.0.1")
        self.cable(outermost, "wan", self.namespace, f"to{number}")
        run("ip", "-n", self.namespace, "link", "set", f"to{number}", "master", "switch")
        self.swallow(outermost)
        if kind is Kind.IPV6:
            self._address(outermost, "wan", f"2a10:ffff:{number}::1/32")
            self._address(router, "lan", f"2a10:{number}::f/64")
            self._address(home, "lan", f"{public_address_v6(number)}/64")
            run("ip", "-6", "-n", home, "route", "add", "default", "via", f"2a10:{number}::f")
            run("ip", "-n", outermost, "route", "add", "2a10::/16", "via", "2a10:ffff::1")
            run("ip", "-n", self.namespace, "route", "add", f"2a10:{number}::/32", "via", f"2a10:ffff:{number}::1")
        else:
            lan = f"192.168.{network or number}"
            self._address(outermost, "wan", f"{public_address(number)}/8")
            self._address(router, "lan", f"{lan}.1/24")
            self._address(home, "lan", f"{lan}.2/24")
            run("ip", "-n", home, "route", "add", "default", "via", f"{lan}.1")
        made = Home(kind, number, home, router, outermost, f"192.168.{network or number}.2")
        made.translate(kind)
        if kind is Kind.UPNP:
            self.serve_mappings(made)
        return made

    def serve_mappings(self, home: "Home", settings: Sequence[str] = ()) -> Miniupnpd:
        """Has the router of a home forward ports on request. settings: as for Miniupnpd."""
        program = Miniupnpd(home.router, settings)
        self._programs.append(program)
        return program

    def add_ipv4(self, home: "Home") -> None:
        """Gives the router of an IPv6-only home IPv4 addresses of its own, which the program that opens ports needs."""
        self._address(home.router, "lan", f"192.168.{home.number}.1/24")
        self._address(home.router, "wan", f"{public_address(home.number)}/8")

    def cable(self, one: str, one_end: str, other: str, other_end: str) -> None:
        """Connects two namespaces."""
        run("ip", "-n", one, "link", "add", one_end, "type", "veth", "peer", "name", other_end, "netns", other)
        run("ip", "-n", one, "link", "set", one_end, "up")
        run("ip", "-n", other, "link", "set", other_end, "up")

    def _address(self, namespace: str, interface: str, address: str) -> None:
        nodad = ("nodad",) if ":" in address else ()  # (else it can be used only a second later)
        run("ip", "-n", namespace, "address", "add", address, "dev", interface, *nodad)

    def remove(self) -> None:
        for program in self._programs:
            program.stop()
        for namespace in self._namespaces:
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


@dataclass(frozen=True)
class Home:
    """A machine behind a router."""

    kind: Kind
    number: int
    namespace: str
    router: str
    outermost: str
    """The router with the public address: ``router``, or the carrier's."""
    private: str

    @property
    def public(self) -> str:
        return public_address_v6(self.number) if self.kind is Kind.IPV6 else public_address(self.number)

    @property
    def gateway(self) -> str:
        """Its router's address in its own network."""
        return f"{self.private.rpartition('.')[0]}.1"

    def translate(self, kind: Kind) -> None:
        """Has the router behave as ``kind`` from now on."""
        if kind is Kind.IPV6:
            self._load(self.router, _FIREWALL)
            return
        how = "fully-random" if kind is Kind.SYMMETRIC else ""
        into = {Kind.FORWARDED: f"tcp dport {PORT} dnat to {self.private}", Kind.CONE: f"dnat to {self.private}"}
        out = "tcp dport != 443 drop" if kind is Kind.ONLY_443 else "accept"
        is_open = kind in into
        rules = _ROUTER.format(how=how, into=into.get(kind, "accept"), out=out, new="accept" if is_open else "drop")
        self._load(self.router, rules)
        if self.outermost != self.router:
            self._load(self.outermost, _ROUTER.format(how="", into="accept", out="accept", new="drop"))

    @property
    def moved(self) -> str:
        """The public address after ``move``."""
        return public_address(self.number + 100)

    def move(self) -> None:
        """Gives the router another public address. What it translated before is forgotten."""
        wan = ("ip", "-n", self.outermost, "address")
        run(*wan, "delete", f"{self.public}/8", "dev", "wan")
        run(*wan, "add", f"{self.moved}/8", "dev", "wan")
        run("ip", "netns", "exec", self.outermost, "nft", "flush", "ruleset")
        self.translate(self.kind)

    def _load(self, router: str, rules: str) -> None:
        run("ip", "netns", "exec", router, "nft", "-f", "-", stdin="flush ruleset\n" + rules)


_ROUTER = """
table ip nat {{
    chain out {{ type nat hook postrouting priority 100; oifname "wan" masquerade {how}; }}
    chain in {{ type nat hook prerouting priority -100; iifname "wan" {into}; }}
}}
table inet filter {{
    chain miniupnpd {{ }}
    chain prerouting_miniupnpd {{ }}
    chain postrouting_miniupnpd {{ }}
    chain asked {{ type nat hook prerouting priority -101; jump prerouting_miniupnpd; }}
    chain through {{
        type filter hook forward priority 0;
        jump miniupnpd;
        iifname "wan" ct state new {new};
        iifname "lan" ct state new meta l4proto tcp {out};
    }}
    chain here {{ type filter hook input priority 0; iifname "wan" ct state new drop; }}
}}"""
_FIREWALL = """
table ip nat {
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
}
table inet filter {
    chain miniupnpd { }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
    chain through { type filter hook forward priority 0; jump miniupnpd; iifname "wan" ct state new drop; }
    chain here { type filter hook input priority 0; iifname "wan" ct state new meta l4proto tcp drop; }
}"""
