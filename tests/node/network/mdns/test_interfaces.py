"""In which networks of a machine a node speaks multicast DNS."""

import socket
from types import SimpleNamespace
from typing import Any

from multiaddr import Multiaddr

from mycelia.node.network.mdns.interfaces import MAX_INTERFACES, LocalNetwork, is_in, local_networks

UP = "up,broadcast,running,multicast"


def row(address: str, netmask: str = "255.255.255.0") -> Any:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return SimpleNamespace(family=family, address=address, netmask=netmask)


def networks(interfaces: dict[str, list[Any]], flags: str = UP, isup: bool = True) -> list[LocalNetwork]:
    states = {name: SimpleNamespace(isup=isup, flags=flags) for name in interfaces}
    return local_networks(interfaces, states)


def shown(found: list[LocalNetwork]) -> list[str]:
    return [f"{one.interface} {one.ip} {one.network}" for one in found]


def test_private_networks_only() -> None:
    home = [row("192.168.1.2"), row("fe80::1%eth0", "ffff:ffff:ffff:ffff::"), row("2a10::5", "ffff:ffff:ffff:ffff::")]
    assert shown(networks({"eth0": home})) == ["eth0 192.168.1.2 192.168.1.0/24"]
    ula = [row("fd00:1::2", "ffff:ffff:ffff:ffff::")]
    assert shown(networks({"eth0": ula})) == ["eth0 fd00:1::2 fd00:1::/64"]
    for public in ("203.0.113.7", "45.10.1.1", "100.64.0.2", "169.254.1.1", "127.0.0.1"):
        assert networks({"eth0": [row(public)]}) == []
    assert networks({"eth0": [row("10.0.0.2"), row("45.10.1.1")]}) == [], "the interface leads to the public"


def test_interfaces_that_cannot_multicast_are_left_out() -> None:
    home = [row("192.168.1.2")]
    assert networks({"eth0": home}, isup=False) == []
    for flags in ("up,loopback,running,multicast", "up,pointopoint,running,multicast", "up,running", ""):
        assert networks({"tun0": home}, flags) == []
    assert local_networks({"eth0": home}, {}) == []
    many = {f"eth{number}": [row(f"192.168.{number}.2")] for number in range(50)}
    assert len(networks(many)) == MAX_INTERFACES


def test_only_addresses_of_the_network_itself_count() -> None:
    (network,) = networks({"eth0": [row("192.168.1.2")]})
    for near in ("/ip4/192.168.1.7/tcp/7117", "/ip4/192.168.1.2/tcp/7127"):
        assert is_in(Multiaddr(near), network)
    relay = "12D3KooWAfZBCCDd6BbP7yJHgFv6FAzLRyDjVYDd9K7PhFBgnQ3L"
    for far in (
        "/ip4/192.168.2.7/tcp/7117",
        "/ip4/127.0.0.1/tcp/6379",
        "/ip4/45.10.1.1/tcp/7117",
        "/ip6/::1/tcp/7117",
        "/ip6/::ffff:192.168.1.7/tcp/7117",
        "/dns4/router.lan/tcp/80",
        f"/ip4/192.168.1.7/tcp/1/p2p/{relay}/p2p-circuit",
    ):
        assert not is_in(Multiaddr(far), network)
