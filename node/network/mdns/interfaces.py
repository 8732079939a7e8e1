"""The private networks of this machine, and a socket for multicast DNS in each."""

import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network
from typing import Any

import psutil
import trio
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.proto.admission.address_ranges import is_public

PORT = 5353
GROUPS = {4: "224.0.0.251", 6: "ff02::fb"}
MAX_INTERFACES = 8
_PRIVATE = [ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]
_MULTICAST_ALL = {4: 49, 6: 29}
"""Linux' options IP_MULTICAST_ALL and IPV6_MULTICAST_ALL, which Python does not name."""


@dataclass(frozen=True)
class LocalNetwork:
    """A private address of this machine, and the network that it is in."""

    interface: str
    index: int
    ip: IPv4Address | IPv6Address
    network: IPv4Network | IPv6Network

    def __contains__(self, host: str) -> bool:
        """Whether an IP address, without a zone, is a machine of this network."""
        ip = ip_address(host)
        return ip.version == self.ip.version and ip in self.network


def local_networks(
    hosts: Mapping[str, Sequence[Any]] | None = None, states: Mapping[str, Any] | None = None
) -> list[LocalNetwork]:
    """One for each family of each interface that is up, can multicast and has no public IPv4 address. hosts, states:
    psutil's report of the interfaces."""
    hosts = psutil.net_if_addrs() if hosts is None else hosts
    states = psutil.net_if_stats() if states is None else states
    found: list[LocalNetwork] = []
    for name, rows in sorted(hosts.items()):
        flags = states[name].flags.split(",") if name in states and states[name].isup else []
        if "multicast" not in flags or {"loopback", "pointopoint"} & set(flags):
            continue
        mine = [_interface(row) for row in rows if row.family in (socket.AF_INET, socket.AF_INET6) and row.netmask]
        if any(one.version == 4 and is_public(one.ip) for one in mine):
            continue
        for version in (4, 6):
            private = [one for one in mine if one.version == version and any(one.ip in net for net in _PRIVATE)]
            found += [LocalNetwork(name, _index(name), one.ip, one.network) for one in private[:1]]
    return found[:MAX_INTERFACES]


def is_in(address: Multiaddr, network: LocalNetwork) -> bool:
    """Whether an address leads directly to a machine of the network, this one included."""
    host = addresses.host_of(str(address))
    return bool(host) and not addresses.is_circuit(str(address)) and host in network


def _interface(row: Any) -> Any:
    address = row.address.partition("%")[0]
    if row.family == socket.AF_INET:
        return ip_interface(f"{address}/{row.netmask}")
    return ip_interface(f"{address}/{bin(int(IPv6Address(row.netmask))).count('1')}")


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def open_socket(network: LocalNetwork) -> trio.socket.SocketType:
    """A socket that sends to the group in this network and receives nothing else. Raises OSError."""
    version = network.ip.version
    is_4 = version == 4
    level = socket.IPPROTO_IP if is_4 else socket.IPPROTO_IPV6
    raw = socket.socket(socket.AF_INET if is_4 else socket.AF_INET6, socket.SOCK_DGRAM)
    try:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # (other programs of this machine listen there, too)
        if hasattr(socket, "SO_REUSEPORT"):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sys.platform == "linux":  # (otherwise every socket gets what any socket of the machine has joined)
            raw.setsockopt(level, _MULTICAST_ALL[version], 0)
        if is_4:
            group = socket.inet_aton(GROUPS[4])
            raw.bind((GROUPS[4], PORT))
            raw.setsockopt(level, socket.IP_ADD_MEMBERSHIP, group + network.ip.packed)
            raw.setsockopt(level, socket.IP_MULTICAST_IF, network.ip.packed)
            raw.setsockopt(level, socket.IP_MULTICAST_TTL, 255)
            raw.setsockopt(level, socket.IP_MULTICAST_LOOP, 1)
        else:
            group = socket.inet_pton(socket.AF_INET6, GROUPS[6])
            raw.setsockopt(level, socket.IPV6_V6ONLY, 1)
            raw.bind((GROUPS[6], PORT, 0, network.index))
            raw.setsockopt(level, socket.IPV6_JOIN_GROUP, group + struct.pack("@I", network.index))
            raw.setsockopt(level, socket.IPV6_MULTICAST_IF, network.index)
            raw.setsockopt(level, socket.IPV6_MULTICAST_HOPS, 255)
            raw.setsockopt(level, socket.IPV6_MULTICAST_LOOP, 1)
        raw.setblocking(False)
        return trio.socket.from_stdlib_socket(raw)
    except BaseException:
        raw.close()
        raise


def target(network: LocalNetwork) -> tuple[Any, ...]:
    """The address to send to."""
    return (GROUPS[4], PORT) if network.ip.version == 4 else (GROUPS[6], PORT, 0, network.index)
