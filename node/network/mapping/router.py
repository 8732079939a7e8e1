"""What all protocols have in common by which a router is asked for a port."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Protocol

from mycelia.node.network.addresses import is_public_host

LEASE_S = 3_600
"""Time for which a port is asked for. After it the router closes the port, also when the node was killed."""


class MappingError(Exception):
    """The router forwards no port. The text says why."""


@dataclass(frozen=True)
class Mapping:
    """A port that a router forwards."""

    protocol: str
    """PCP, NAT-PMP or UPnP."""
    gateway: str
    """The router's address in this network."""
    port: int
    """The TCP port of this machine."""
    external_host: str
    """The router's own address on the internet, as it says."""
    external_port: int
    lease_s: float
    """Time from the request or its renewal to the end of the mapping."""


class Router(Protocol):
    """A router, asked in one protocol."""

    name: str
    """The protocol as users know it."""

    async def map(self, port: int, external_port: int) -> Mapping:
        """Asks for TCP ``external_port``, or any other one, or renews it. Raises MappingError and OSError."""
        ...

    async def unmap(self, mapping: Mapping) -> None:
        """Gives a port back. Raises MappingError and OSError."""
        ...

    async def external(self) -> tuple[str, str]:
        """The protocol that the router speaks, and its external address, empty if it does not tell it. Changes nothing.
        Raises as above."""
        ...


MakeRouter = Callable[[str], Router]


def is_useful(host: str) -> bool:
    """Whether a router's external address may lead to it from everywhere. If not, another router is in front of it."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return is_public_host(host)


def lease_of(seconds: int) -> float:
    """The time that a granted lease counts for: a longer one than was asked for is renewed as the asked one."""
    return float(min(seconds, LEASE_S))
