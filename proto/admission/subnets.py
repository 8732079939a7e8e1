"""Who counts as one: keys are free, addresses are not.

A *subnet* is the network that an address belongs to, of an IPv6 address that leads to an IPv4 address the latter's:
of public addresses the IPv4 /24 or the IPv6 /48, which one customer of a provider can own and hardly more than one pays
for; of private and loopback ones the single address (IPv6: the /64), since whole swarms live in one such network; of a
peer that comes through a relay, that relay's, apart from those that come directly.

``Places`` gives places of one kind to subnets by the dynamic threshold of Choudhury and Hahne (IEEE/ACM Transactions
on Networking 6(2), 1998): a subnet may take one more while it holds less than its share of what is *free*.

    num_held(subnet) < SHARE * (num_places - num_taken)

With k greedy subnets each holds num_places / (k + 1 / SHARE), and something stays free for the next one, without
anybody's limit being configured.
"""

from collections import Counter
from ipaddress import IPv6Address, ip_address, ip_network

from mycelia.proto.admission.address_ranges import is_public, unwrapped

PUBLIC_SHARE = 0.25
"""One subnet alone gets a fifth of all places, one of twelve greedy ones a sixteenth."""
LOCAL_SHARE = 3.0
"""One address of a private network gets three quarters: a swarm on one machine."""
LOCAL = "local "
VIA = "via "


def subnet_of(address: str) -> str:
    """The subnet of a multiaddr, which may be a stranger's word; empty: it names no IP address. Those of private
    networks begin with LOCAL, those behind a relay with VIA."""
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
    """What a client of this node's own API, known by its key, counts as beside others: as much as a machine."""
    return LOCAL + client.hex()


def is_local(subnet: str) -> bool:
    """Whether it is in a private network of this node's own, or on its machine."""
    return subnet.startswith(LOCAL)


class Places:
    """Places of one kind, each held by a key of a subnet. Invariant: per_key and num_places are never exceeded."""

    def __init__(self, num_places: int, per_key: int, num_kept: int = 0) -> None:
        """num_kept: places that only known and proven keys may take; see ``take``."""
        self._num_places = num_places
        self._per_key = per_key
        self._num_kept = num_kept
        self._of_key: Counter[bytes] = Counter()
        self._of_subnet: Counter[str] = Counter()
        self.num_taken = 0

    def take(self, key: bytes, subnet: str, is_known: bool = False, is_proven: bool = False) -> bool:
        """Whether ``key`` got a place; give it back with ``free``. is_known: it has earned one, and no share bounds its
        subnet. is_proven: it may take the places that are kept too, within its subnet's share. Mutates."""
        if self.is_at_limit(key) or not self.has_room(subnet, is_known, is_proven):
            return False
        self._of_key[key] += 1
        self._of_subnet[subnet] += 1
        self.num_taken += 1
        return True

    def has_room(self, subnet: str, is_known: bool = False, is_proven: bool = False) -> bool:
        """Whether a key that holds nothing yet would get a place. Does not mutate."""
        num_free = self._num_places - self.num_taken
        if is_known or num_free <= 0:
            return num_free > 0
        share = LOCAL_SHARE if is_local(subnet) else PUBLIC_SHARE
        is_free = is_proven or num_free > self._num_kept
        return is_free and self._of_subnet[subnet] < share * num_free

    def free(self, key: bytes, subnet: str) -> None:
        """What ``take`` gave. Mutates."""
        self._of_key[key] -= 1
        self._of_subnet[subnet] -= 1
        if not self._of_key[key]:
            del self._of_key[key]
        if not self._of_subnet[subnet]:
            del self._of_subnet[subnet]
        self.num_taken -= 1

    @property
    def is_full(self) -> bool:
        """Whether what is free is kept for those that are known or proven."""
        return self._num_places - self.num_taken <= self._num_kept

    def is_at_limit(self, key: bytes) -> bool:
        """Whether ``key`` holds as many places as one key may."""
        return self._of_key[key] >= self._per_key

    def num_of(self, subnet: str) -> int:
        """Places that ``subnet`` holds."""
        return self._of_subnet[subnet]

    def check_invariants(self) -> None:
        """Raises AssertionError when the books do not fit each other."""
        assert self._of_key.total() == self._of_subnet.total() == self.num_taken <= self._num_places
        assert all(0 < held <= self._per_key for held in self._of_key.values())
        assert all(held > 0 for held in self._of_subnet.values())
