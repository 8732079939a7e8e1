"""Which IP addresses mean the same machine everywhere, by the IANA's registries of special-purpose addresses
(https://www.iana.org/assignments/iana-ipv4-special-registry, .../iana-ipv6-special-registry, of 2025).

Python's ``is_global`` has another list in each version and takes unknown ranges for public. Here IPv6 is public only
inside 2000::/3, the only part that is given out. Ranges in which single addresses are reachable, such as 192.0.0.0/24
and 2001::/23, count as not public: no node is there.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_GIVEN_OUT = ip_network("2000::/3")
_NOT_PUBLIC = [
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # between a provider and its customers
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4, deprecated
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4 (``unwrapped`` gives the address it leads to)
        "3fff::/20",  # documentation
    )
]
_NOBODY = [
    ip_network(text)
    for text in ("0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "::/128", "fe80::/10", "ff00::/8")
]
_LOOPBACK = [ip_network("127.0.0.0/8"), ip_network("::1/128")]
_SHARED = [ip_network("100.64.0.0/10")]
_TRANSLATED_HERE = [ip_network("64:ff9b:1::/48")]
_IPV4_INSIDE = [ip_network(text) for text in ("::ffff:0:0/96", "::/96", "64:ff9b::/96")]
"""IPv6 addresses that end in an IPv4 address: mapped, compatible (deprecated), IPv6-only networks' (RFC 6052)."""
_6TO4 = ip_network("2002::/16")


def unwrapped(ip: Address) -> Address:
    """The IPv4 address that an IPv6 address leads to, or ``ip`` itself."""
    if ip.version == 4 or int(ip) <= 1:
        return ip
    if ip in _6TO4:
        return IPv4Address(int(ip) >> 80 & 0xFFFFFFFF)
    return IPv4Address(int(ip) & 0xFFFFFFFF) if _is_in(ip, _IPV4_INSIDE) else ip


def is_public(ip: Address) -> bool:
    """Whether the address may mean the same machine everywhere. ``ip`` must be ``unwrapped``."""
    return (ip.version == 4 or ip in _GIVEN_OUT) and not _is_in(ip, _NOT_PUBLIC)


def may_tell(teller: Address | None, ip: Address) -> bool:
    """Whether this node may connect to ``ip`` because a peer at ``teller`` (None: unknown place) announced it. Both
    must be ``unwrapped``.

    Any peer may announce public addresses, a peer on this machine also loopback ones, one in a private network private
    ones. Customers behind one provider's NAT may announce each other only. A translated peer's place is unknown."""
    if _is_in(ip, _NOBODY):
        return False
    if is_public(ip):
        return True
    if teller is None or is_public(teller) or _is_in(teller, _TRANSLATED_HERE):
        return False
    if _is_in(teller, _SHARED):
        return _is_in(ip, _SHARED)
    return _is_in(teller, _LOOPBACK) or not _is_in(ip, _LOOPBACK)


def _is_in(ip: Address, ranges: Iterable[Network]) -> bool:
    return any(ip in one for one in ranges)
