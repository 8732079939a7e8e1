"""Multiaddrs as users write them, checked before libp2p sees them: its own errors are late, wrapped or swallowed."""

import errno
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import islice

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from mycelia.node.peer_id import peer_from_text, peer_text
from mycelia.proto.admission.address_ranges import is_public, may_tell, unwrapped
from mycelia.proto.wire.errors import LocalError

LISTEN_EXAMPLE = "/ip4/0.0.0.0/tcp/7117"
_PLAIN = [[host, "tcp"] for host in ("ip4", "ip6", "dns", "dns4", "dns6")]
_CIRCUIT = "/p2p-circuit"
MAX_RELAYS = 2
"""Of one peer that are tried: each is a connection with somebody else."""
MAX_TOLD = 64
"""Addresses of one peer that are looked at."""
UNREADABLE = (MultiaddrError, ValueError, TypeError, OverflowError)
"""What the library raises about a stranger's bytes, when they are made an address or only when that is looked at."""


def parse(text: str) -> Multiaddr:
    """Raises LocalError for anything but a TCP multiaddr of a host."""
    try:
        address = Multiaddr(text)
        names = [protocol.name for protocol in address.protocols()]
    except UNREADABLE as exc:
        raise LocalError(f"{text!r} is not a multiaddr; an example is {LISTEN_EXAMPLE}") from exc
    if names[:2] not in _PLAIN or names[2:] not in ([], ["p2p"]):
        raise LocalError(f"{text!r} is not a plain TCP multiaddr; an example is {LISTEN_EXAMPLE}")
    return address


def parse_peer(text: str) -> tuple[bytes, Multiaddr]:
    """Peer id of a full multiaddr (``.../p2p/ID``) and what is before it, which may be a circuit. Raises LocalError."""
    relay, circuit, rest = text.partition(_CIRCUIT)
    if circuit:
        parse_peer(relay)
        peer = rest.removeprefix("/p2p/") if rest.startswith("/p2p/") else ""
        head = f"{relay}{circuit}"
    else:
        head, _, peer = str(parse(text)).partition("/p2p/")
    if not peer:
        raise LocalError(f"{text!r} does not say whose address it is: it must end in /p2p/PEER_ID")
    return peer_from_text(peer), Multiaddr(head)


def parse_announce(text: str) -> Multiaddr:
    """An address that peers are to dial; raises LocalError when they cannot."""
    address = parse(text)
    if "/p2p/" in text:
        raise LocalError(f"leave out /p2p/... of {text}: every node adds its own")
    if is_wildcard(address) or int(str(address.value_for_protocol("tcp"))) == 0:
        raise LocalError(f"nobody can dial {text}: give the address and the port at which others reach this node")
    return address


def parse_listen(text: str) -> Multiaddr:
    """An address to listen on; raises LocalError when it is none, or when it cannot be bound right now."""
    address = parse(text)
    names = [protocol.name for protocol in address.protocols()]
    if names not in (["ip4", "tcp"], ["ip6", "tcp"]):
        raise LocalError(f"cannot listen on {text}: give an IP address and a port, as in {LISTEN_EXAMPLE}")
    _check_bindable(text, address, names[0])
    return address


def circuit(relay_address: Multiaddr, relay: bytes) -> Multiaddr:
    """The address of whoever can be reached through ``relay``."""
    return Multiaddr(f"{relay_address}/p2p/{peer_text(relay)}{_CIRCUIT}")


def relay_of(address: Multiaddr) -> tuple[bytes, Multiaddr] | None:
    """Peer id and transport address of the relay of a circuit; None: it is none, or not of the form that we dial."""
    relay, is_circuit, _ = str(address).partition(_CIRCUIT)
    try:
        return parse_peer(relay) if is_circuit else None
    except LocalError:
        return None


def told_addresses(told: Iterable[Multiaddr], teller: str, limit: int) -> list[Multiaddr]:
    """Those of the addresses that a peer told, its own or another's, which may be dialled on its word, in the order of
    ``in_dial_order``. teller: the multiaddr of the connection with that peer, empty: unknown.

    A peer of the open internet could else have this node knock at the doors of its own network. Private addresses are
    taken from peers of a private network alone, and loopback ones from the same machine. Names may stand for anything:
    resolve one and ask ``is_tellable`` before dialling."""
    usable = in_dial_order(islice(told, MAX_TOLD), MAX_TOLD)
    return [address for address in usable if is_tellable(address, teller)][:limit]


def is_tellable(address: Multiaddr, teller: str = "") -> bool:
    """Whether an address that can be dialled may be dialled on the word of ``teller``, likewise. Names may."""
    _, kind, host, *_ = str(address).split("/")
    by = "" if _CIRCUIT in teller else host_of(teller)
    return kind.startswith("dns") or may_tell(_ip(by) if by else None, _ip(host))


def is_name(address: Multiaddr) -> bool:
    """Whether it has to be resolved first, the relay's of a circuit included."""
    return str(address).startswith("/dns")


def host_of(address: str) -> str:
    """The IP address of a multiaddr, which may be a stranger's word; empty: it has none."""
    _, _, host, *_ = [*address.split("/"), "", "", ""]
    try:
        return str(ip_address(host))
    except ValueError:
        return ""


def is_global(address: Multiaddr) -> bool:
    """Whether it may mean the same machine everywhere; of names that is assumed."""
    _, kind, host, *_ = str(address).split("/")
    return kind.startswith("dns") or is_public(_ip(host))


def _ip(host: str) -> IPv4Address | IPv6Address:
    """The address that a host's text leads to, without its zone."""
    return unwrapped(ip_address(host.partition("%")[0]))


def is_loopback(address: Multiaddr) -> bool:
    text = str(address)
    return text.startswith(("/ip4/127.", "/ip6/::1/"))


def is_wildcard(address: Multiaddr) -> bool:
    return str(address).startswith(("/ip4/0.0.0.0/", "/ip6/::/"))


def in_dial_order(addresses: Iterable[Multiaddr], limit: int) -> list[Multiaddr]:
    """At most ``limit`` distinct ones that can be dialled, of at most MAX_RELAYS relays. Loopback comes last, since on
    another machine it is us. Who tells of a relay cannot be reached directly from everywhere: there private addresses
    come after it, which elsewhere are somebody else's and may take long to say so."""
    usable: dict[str, Multiaddr] = {}
    relays: set[bytes] = set()
    for address in addresses:
        try:
            names = [protocol.name for protocol in address.protocols()]
            text = str(address)
        except UNREADABLE:
            continue  # what a peer sent as one: libp2p passes its bytes on unread
        if names[:2] not in _PLAIN or is_wildcard(address):
            continue
        if names[2:] in ([], ["p2p"]):
            head = text.partition("/p2p/")[0]
            usable.setdefault(head, Multiaddr(head))
        elif names[2:] in (["p2p", "p2p-circuit"], ["p2p", "p2p-circuit", "p2p"]) and (relay := relay_of(address)):
            if relay[0] not in relays and len(relays) >= MAX_RELAYS:
                continue
            relays.add(relay[0])
            head = text.partition(_CIRCUIT)[0] + _CIRCUIT
            usable.setdefault(head, Multiaddr(head))

    def rank(address: Multiaddr) -> int:
        if relay_of(address) is not None:
            return 1
        return 3 if is_loopback(address) else 2 * (bool(relays) and not is_global(address))

    return sorted(usable.values(), key=rank)[:limit]


def _check_bindable(text: str, address: Multiaddr, family: str) -> None:
    """libp2p listens with SO_REUSEPORT, so a port in use would be shared in silence with whoever has it."""
    host, port = str(address.value_for_protocol(family)), int(str(address.value_for_protocol("tcp")))
    try:
        with socket.socket(socket.AF_INET6 if family == "ip6" else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port left in TIME_WAIT is free
            probe.bind((host, port))
            probe.listen(1)
    except OSError as exc:
        why = {
            errno.EADDRINUSE: "the port is in use; choose another with --listen",
            errno.EADDRNOTAVAIL: "this machine has no such address; choose another with --listen",
            errno.EACCES: "this port needs more rights; choose one above 1023 with --listen",
        }.get(exc.errno or 0, exc.strerror or str(exc))
        raise LocalError(f"cannot listen on {text}: {why}") from exc


def is_circuit(address: str) -> bool:
    """Whether a multiaddr leads through a relay."""
    return "/p2p-circuit" in address


def port_of(address: str) -> int:
    """The TCP port of a multiaddr, likewise; 0: it has none."""
    _, _, _, kind, port, *_ = [*address.split("/"), "", "", "", "", ""]
    return int(port) if kind == "tcp" and port.isascii() and port.isdecimal() and len(port) <= 5 else 0
