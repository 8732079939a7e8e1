"""Subnets, by which clients are counted: keys are free, addresses are not.

A *subnet* is the network that an address belongs to. Of a public address it is the IPv4 /24 or the IPv6 /48, which one
customer of a provider can own, and few customers pay for more than one. Of a private or loopback address it is the
single address (IPv6: the /64), since whole swarms live in one such network. Of a peer behind a relay it is the relay's
subnet, separate from peers that connect directly. An IPv6 address that leads to an IPv4 address counts as the latter.

``Places`` gives places of one kind to subnets by the dynamic threshold of Choudhury and Hahne (IEEE/ACM Transactions on
Networking 6(2), 1998): a subnet may take one more while it holds less than its share of what is *free*.

    num_held(subnet) < SHARE * (num_places - num_taken)

Each of k greedy subnets holds num_places / (k + 1 / SHARE), and some stay free for the next one.
"""

from ipaddress import IPv6Address, ip_address, ip_network
from typing import TypeVar

from mycelia.proto.admission.address_ranges import is_public, unwrapped

PUBLIC_SHARE = 0.25
"""One subnet alone gets a fifth of all places, one of twelve greedy ones a sixteenth."""
LOCAL_SHARE = 3.0
"""One address of a private network gets three quarters: a swarm on one machine."""
LOCAL = "local "
VIA = "via "
MEMBER = "member "

_Key = TypeVar("_Key")


def subnet_of(address: str) -> str:
    """The subnet of a multiaddr, which may come from a stranger; empty: it has no IP address. A subnet of a private
    network begins with LOCAL, one behind a relay with VIA."""
    _, _, host, *_ = [*address.split("/"), "", "", ""]
    try:
        ip = unwrapped(ip_address(host))
    except ValueError:
        return ""
    is_six = isinstance(ip, IPv6Address)
    if is_public(ip):
        name = str(ip_network((int(ip), 48) if is_six else (f"{ip}/24"), strict=False))
    else:
        name = LOCAL + (str(ip_network((int(ip), 64), strict=False)) if is_six else str(ip))
    return VIA + name if "/p2p-circuit" in address else name


def of_client(client: bytes) -> str:
    """The subnet of a client of this node's own API, known by its key: it counts like a machine."""
    return LOCAL + client.hex()


def is_local(subnet: str) -> bool:
    """Whether the subnet is in a private network of this node, or on its machine."""
    return subnet.removeprefix(MEMBER).startswith(LOCAL)


def counted_as(subnet: str, peer: bytes) -> str:
    """The name under which a peer's share counts: the subnet, or in a private network the peer alone."""
    return subnet if subnet and not is_local(subnet) else peer.hex()


def of_member(client: bytes, subnet: str) -> str:
    """The subnet of a member of this node's private swarm, where strangers are served as well. Never empty."""
    return MEMBER + (subnet or client.hex())


def is_member(subnet: str) -> bool:
    return subnet.startswith(MEMBER)


class Places:
    """Places of one kind, each held by a key of a subnet. Invariant: per_key and num_places are never exceeded."""

    def __init__(self, num_places: int, per_key: int, num_kept: int = 0) -> None:
        """num_kept: places that only known and proven keys may take; see ``take``."""
        self._num_places = num_places
        self._per_key = per_key
        self._num_kept = num_kept
        self._of_key: dict[bytes, int] = {}
        self._of_subnet: dict[str, int] = {}
        self.num_taken = 0

    def take(self, key: bytes, subnet: str, is_known: bool = False, is_proven: bool = False) -> bool:
        """Whether ``key`` got a place; give it back with ``free``. is_known: it has earned one, and its subnet's share
        does not count. is_proven: it may also take the kept places, within its subnet's share. Mutates."""
        if self.is_at_limit(key) or not self.has_room(subnet, is_known, is_proven):
            return False
        self._of_key[key] = self._of_key.get(key, 0) + 1
        self._of_subnet[subnet] = self._of_subnet.get(subnet, 0) + 1
        self.num_taken += 1
        return True

    def has_room(self, subnet: str, is_known: bool = False, is_proven: bool = False) -> bool:
        """Whether a key that holds nothing yet would get a place. Does not mutate."""
        num_free = self._num_places - self.num_taken
        if is_known or num_free <= 0:
            return num_free > 0
        share = LOCAL_SHARE if is_local(subnet) else PUBLIC_SHARE
        is_free = is_proven or num_free > self._num_kept
        return is_free and self._of_subnet.get(subnet, 0) < share * num_free

    def free(self, key: bytes, subnet: str) -> None:
        _count_down(self._of_key, key)
        _count_down(self._of_subnet, subnet)
        self.num_taken -= 1

    @property
    def is_full(self) -> bool:
        """Whether only places for known or proven keys are free."""
        return self._num_places - self.num_taken <= self._num_kept

    def is_at_limit(self, key: bytes) -> bool:
        return self._of_key.get(key, 0) >= self._per_key

    def num_of(self, subnet: str) -> int:
        return self._of_subnet.get(subnet, 0)

    def check_invariants(self) -> None:
        assert sum(self._of_key.values()) == sum(self._of_subnet.values()) == self.num_taken <= self._num_places
        assert all(0 < held <= self._per_key for held in self._of_key.values())
        assert all(held > 0 for held in self._of_subnet.values())


def _count_down(counts: dict[_Key, int], key: _Key) -> None:
    """(A ``Counter`` counts in Python. Every connection and request is counted here.)"""
    count = counts.pop(key, 0) - 1
    if count:
        counts[key] = count
