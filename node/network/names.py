"""The addresses behind names: ``/dns4`` and ``/dns6`` (records A and AAAA), and ``/dnsaddr``, whose TXT records at
``_dnsaddr.NAME`` list full addresses (https://github.com/libp2p/specs/blob/master/addressing/README.md).

The owner of a name decides what it leads to, so few records are used, at random, and a list may refer to few others.
Every lookup asks the name servers anew.
"""

import random
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import dns.asyncresolver
import dns.exception
import dns.resolver
import trio
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.peer_id import peer_text
from mycelia.proto.wire.errors import LocalError

NAME_DEADLINE_S = 5.0
MAX_HOSTS = 4
"""Addresses of one name that are used."""
MAX_ANSWERS = 16
"""Addresses that one ``/dnsaddr`` gives, those of its nested lists included."""
MAX_READ = 256
"""TXT records of one name that are looked at: some may be for other programs."""
MAX_NESTED = 4
"""Lists that a list may refer to. Those may refer to no further ones."""
MAX_RECORD_BYTES = 512
NO_FAMILY = "the name has no"
"""How a failure begins that means nothing if the name has an address of the other family."""
_PREFIX = b"dnsaddr="
_FAMILIES = {"dns4": ("A", "ip4"), "dns6": ("AAAA", "ip6")}


class NameFailure(Exception):
    """A name that leads nowhere. The text says why, in words for users."""

    def __init__(self, says: str, fix: str = "check the name") -> None:
        super().__init__(says)
        self.fix = fix


class Resolver(Protocol):
    """What asks name servers."""

    async def query(self, name: str, kind: str) -> Sequence[bytes]:
        """The data of the records of ``kind``, "A", "AAAA" or "TXT": addresses as text, or the joined strings of each
        TXT record. Raises NameFailure."""
        ...


class SystemResolver:
    """Asks the name servers of this machine, and then its file of hosts."""

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(4)

    async def query(self, name: str, kind: str) -> Sequence[bytes]:
        try:
            # (made anew: the name servers are others after a change of the network)
            answer = await dns.asyncresolver.Resolver().resolve(name, kind, lifetime=NAME_DEADLINE_S)
            return [b"".join(one.strings) if kind == "TXT" else one.address.encode() for one in answer]
        except (dns.exception.DNSException, OSError, ValueError) as exc:
            failure = _explained(exc, kind)
            no_server = isinstance(exc, dns.resolver.LifetimeTimeout)
        if kind != "TXT" and not no_server and (hosts := await self._known_here(name, kind)):
            return hosts
        raise failure

    async def _known_here(self, name: str, kind: str) -> list[bytes]:
        """What the machine's own lookup finds: its file of hosts, and names of machines in the local network."""
        family = socket.AF_INET if kind == "A" else socket.AF_INET6

        def look_up() -> list[bytes]:
            with suppress(OSError, UnicodeError):
                return [str(one[4][0]).encode() for one in socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)]
            return []

        with trio.move_on_after(NAME_DEADLINE_S):
            return await trio.to_thread.run_sync(look_up, abandon_on_cancel=True, limiter=self._threads)
        return []


def _explained(exc: Exception, kind: str) -> NameFailure:
    match exc:
        case dns.resolver.NXDOMAIN():
            return NameFailure("no such name")
        case dns.resolver.NoAnswer():
            family = {"A": "IPv4", "AAAA": "IPv6"}.get(kind)
            return NameFailure(
                f"{NO_FAMILY} {family} address" if family else "it lists no nodes: there is no TXT record"
            )
        case dns.resolver.NoNameservers():
            return NameFailure("the name server refuses to answer or fails", "try another name server")
        case dns.resolver.LifetimeTimeout() | OSError():
            return NameFailure("no name server answers", "check whether this machine is online")
        case dns.resolver.NoResolverConfiguration():
            return NameFailure("this machine has no name server", "set one, or give an IP address")
        case _:
            return NameFailure(f"it cannot be looked up: {str(exc).splitlines()[0][:100] if str(exc) else exc!r}")


class Names:
    """Looks names up. ``rng`` chooses among many records."""

    def __init__(self, resolver: Resolver, rng: random.Random) -> None:
        self._resolver = resolver
        self._rng = rng

    async def hosts(self, address: Multiaddr) -> list[Multiaddr]:
        """The at most MAX_HOSTS addresses that a ``/dns4`` or ``/dns6`` address, a circuit's too, leads to. Raises
        NameFailure."""
        _, kind, name, rest = str(address).split("/", 3)
        record, family = _FAMILIES[kind]
        found = await self._ask(name, record)
        hosts = [host for data in found[:MAX_READ] if (host := addresses.host_of(f"/{family}/{data.decode()}"))]
        usable = [Multiaddr(f"/{family}/{host}/{rest}") for host in hosts if addresses.family_of(host) == family]
        return self._rng.sample(usable, min(MAX_HOSTS, len(usable)))

    async def peers(self, address: Multiaddr) -> dict[bytes, list[Multiaddr]]:
        """Peer id -> addresses, from the TXT records of a ``/dnsaddr/NAME`` address; with ``/p2p/ID`` at its end only
        those of that peer. They may be names again. Raises NameFailure."""
        found: list[tuple[bytes, Multiaddr]] = []
        name, wanted = _list_of(str(address))
        nested = await self._read_list(name, wanted, found)

        async def read_nested(text: str) -> None:
            inner, inner_wanted = _list_of(text)
            if wanted and inner_wanted not in (wanted, ""):
                return
            with suppress(NameFailure):  # (the other lists may do)
                await self._read_list(inner, wanted or inner_wanted, found)

        async with trio.open_nursery() as nursery:
            for text in nested[:MAX_NESTED]:
                nursery.start_soon(read_nested, text)
        if not found:
            whose = " of that peer" if wanted else ""
            raise NameFailure(f"its records list no address{whose} that this node can dial", "ask the name's owner")
        peers: dict[bytes, list[Multiaddr]] = {}
        for peer, one in found[:MAX_ANSWERS]:
            peers.setdefault(peer, []).append(one)
        return peers

    async def _read_list(self, name: str, wanted: str, found: list[tuple[bytes, Multiaddr]]) -> list[str]:
        """Adds the addresses of one list to ``found``. Returns the lists that it refers to. Raises NameFailure."""
        nested: list[str] = []
        records = await self._ask(f"_dnsaddr.{name}", "TXT")
        for data in self._rng.sample(records, len(records))[:MAX_READ]:
            if not data.startswith(_PREFIX) or len(data) > MAX_RECORD_BYTES:
                continue
            text = data.removeprefix(_PREFIX).decode(errors="replace").strip()
            if text.startswith("/dnsaddr/"):
                nested.append(text)
                continue
            try:
                peer, one = addresses.parse_peer(text)
            except LocalError:
                continue  # (for another transport, or garbage)
            if len(found) < MAX_ANSWERS and wanted in ("", peer_text(peer)):
                found.append((peer, one))
        return nested

    async def _ask(self, name: str, kind: str) -> list[bytes]:
        with trio.move_on_after(2 * NAME_DEADLINE_S):
            return list(await self._resolver.query(name, kind))
        raise NameFailure("no name server answers", "check whether this machine is online")


def _list_of(address: str) -> tuple[str, str]:
    """The name in a ``/dnsaddr`` address, and the peer id at its end; empty: none."""
    name, _, peer = address.removeprefix("/dnsaddr/").partition("/p2p/")
    return name.partition("/")[0], peer
