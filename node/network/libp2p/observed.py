"""This node's public addresses as its peers see them, and whether its router keeps ports.

A peer reports (identify's ``observedAddr``) the address from which this node's connection came. If the port is the one
that the connection has on this machine, the router keeps ports: a dial that leaves from the listening port will seem to
come from the same port. Peers can then dial that address at the same moment, and the two packets open both routers
(``punching.py``). A router that gives each connection another port cannot be opened in this way.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping

from multiaddr import Multiaddr

from mycelia.node.network.addresses import family_of, is_public_host

MAX_REPORTS = 64


class Observed:
    """The newest report of each subnet and family. Peers may lie, so what most subnets report counts."""

    def __init__(self) -> None:
        self.reports: OrderedDict[tuple[str, str], tuple[str, bool]] = OrderedDict()
        """(subnet of the observer, family) -> (the address that it sees, whether the port is kept)."""

    def note(self, observer: str, host: str, port: int, local_port: int) -> None:
        """A peer of the subnet ``observer`` sees a connection that this node made, from ``local_port``, as coming from
        ``host`` and ``port``. Mutates."""
        if host and is_public_host(host):
            key = (observer, family_of(host))
            self.reports[key] = (host, port == local_port)
            self.reports.move_to_end(key)
            if len(self.reports) > MAX_REPORTS:
                self.reports.popitem(last=False)

    def share(self, other: "Observed") -> None:
        """Makes both one: each counts all reports. For two hosts on one machine. Mutates."""
        self.reports = other.reports

    def clear(self) -> None:
        """Forgets all reports: this machine has other addresses now. Mutates."""
        self.reports.clear()

    def host(self, family: str) -> str:
        """The address from which this node's connections come; empty: unknown."""
        hosts = Counter(host for (_, seen_in), (host, _) in self.reports.items() if seen_in == family)
        return max(hosts, key=lambda host: hosts[host], default="")

    def punchable(self, ports: Mapping[str, int]) -> list[Multiaddr]:
        """The addresses from which dials will seem to come that leave from the listening ports. ports: family -> port
        that this node listens on."""
        found = []
        for family, port in ports.items():
            host = self.host(family)
            kept = Counter(is_kept for seen, is_kept in self.reports.values() if seen == host)
            if host and kept[True] > kept[False]:
                found.append(Multiaddr(f"/{family}/{host}/tcp/{port}"))
        return found
