"""Multiaddrs of users and of peers, checked before libp2p sees them: its own errors are late, wrapped or swallowed."""

import errno
import socket
from collections.abc import Iterable
from contextlib import suppress
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
"""Relays of one peer that are tried. Each costs a connection with another node."""
MAX_TOLD = 64
"""Addresses that a peer announces of one peer and that are read."""
UNREADABLE = (MultiaddrError, ValueError, TypeError, OverflowError)
"""The errors that the library raises for a stranger's bytes, either when it parses them or when they are used."""


def default_listen(port: int) -> tuple[str, ...]:
    """All addresses of this machine, in each family that it has."""
    return (f"/ip4/0.0.0.0/tcp/{port}", *([f"/ip6/::/tcp/{port}"] if _has_ipv6() else []))


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def parse(text: str) -> Multiaddr:
    """A TCP multiaddr of a host. Raises LocalError for anything else."""
    try:
        address = Multiaddr(text)
        names = [protocol.name for protocol in address.protocols()]
    except UNREADABLE as exc:
        raise LocalError(f"{text!r} is not a multiaddr; an example is {LISTEN_EXAMPLE}") from exc
    if names[:2] not in _PLAIN or names[2:] not in ([], ["p2p"]):
        raise LocalError(f"{text!r} is not a plain TCP multiaddr; an example is {LISTEN_EXAMPLE}")
    return address


def readable(told: Iterable[bytes]) -> list[Multiaddr]:
    """The multiaddrs among the first MAX_TOLD that a stranger sent."""
    found = []
    for raw in islice(told, MAX_TOLD):
        with suppress(*UNREADABLE):
            found.append(Multiaddr(raw))
    return found


def parse_peer(text: str) -> tuple[bytes, Multiaddr]:
    """The peer id of a full multiaddr (``.../p2p/ID``) and the part before it, which may be a circuit. Raises
    LocalError."""
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


def parse_bootstrap(text: str) -> tuple[bytes, Multiaddr]:
    """The peer id and the address of a node to join through. For a list of nodes, ``/dnsaddr/NAME``, the peer id is
    empty; it stays in the address if there is one. Raises LocalError."""
    if not text.startswith("/dnsaddr/"):
        return parse_peer(text)
    try:
        address = Multiaddr(text)
        names = [protocol.name for protocol in address.protocols()]
    except UNREADABLE as exc:
        raise LocalError(f"{text!r} is not a multiaddr; an example is /dnsaddr/bootstrap.example.org") from exc
    if names not in (["dnsaddr"], ["dnsaddr", "p2p"]):
        raise LocalError(f"{text!r} has too many parts; an example is /dnsaddr/bootstrap.example.org")
    return b"", address


def parse_announce(text: str) -> Multiaddr:
    """An address for peers to dial. Raises LocalError when nobody could dial it."""
    address = parse(text)
    if "/p2p/" in text:
        raise LocalError(f"leave out /p2p/... of {text}: every node adds its own")
    if is_wildcard(address) or int(str(address.value_for_protocol("tcp"))) == 0:
        raise LocalError(f"nobody can dial {text}: give the address and the port at which others reach this node")
    return address


def parse_listen(text: str) -> Multiaddr:
    """An address to listen on. Raises LocalError when it is not one, or when it cannot be bound now."""
    address = parse(text)
    names = [protocol.name for protocol in address.protocols()]
    if names not in (["ip4", "tcp"], ["ip6", "tcp"]):
        raise LocalError(f"cannot listen on {text}: give an IP address and a port, as in {LISTEN_EXAMPLE}")
    _check_bindable(text, address, names[0])
    return address


def circuit(relay_address: Multiaddr, relay: bytes) -> Multiaddr:
    """The address of a peer that is reached through ``relay``."""
    return Multiaddr(f"{relay_address}/p2p/{peer_text(relay)}{_CIRCUIT}")


def relay_of(address: Multiaddr) -> tuple[bytes, Multiaddr] | None:
    """The peer id and transport address of a circuit's relay; None: it is no circuit, or one that nodes do not dial."""
    relay, is_circuit, _ = str(address).partition(_CIRCUIT)
    try:
        return parse_peer(relay) if is_circuit else None
    except LocalError:
        return None


def told_addresses(told: Iterable[Multiaddr], teller: str, limit: int) -> list[Multiaddr]:
    """The addresses that a peer announced, for itself or another peer, and that may be dialled, in the order of
    ``in_dial_order``. teller: the multiaddr of the connection with the announcing peer; empty: unknown.

    Private addresses are taken only from peers in a private network, and loopback addresses only from this machine.
    Otherwise a peer on the internet could make this node connect to machines of its own private network. A name may
    lead anywhere: resolve it and call ``is_tellable`` before dialling."""
    usable = in_dial_order(islice(told, MAX_TOLD), MAX_TOLD)
    return [address for address in usable if is_tellable(address, teller)][:limit]


def is_tellable(address: Multiaddr, teller: str = "") -> bool:
    """Whether an address in dialable form that ``teller`` announced may be dialled, as above. True for names."""
    _, kind, host, *_ = str(address).split("/")
    by = "" if _CIRCUIT in teller else host_of(teller)
    return kind.startswith("dns") or may_tell(_ip(by) if by else None, _ip(host))


def is_name(address: Multiaddr) -> bool:
    """Whether the address, or the relay's address in a circuit, is a name to resolve first."""
    return str(address).startswith("/dns")


def by_family(candidates: Iterable[Multiaddr]) -> list[Multiaddr]:
    """The same addresses, with a name of both families (``/dns``) as one of each: either may fail by itself."""
    texts = [str(address) for address in candidates]
    split = [
        [f"/{kind}/{text[5:]}" for kind in ("dns4", "dns6")] if text.startswith("/dns/") else [text] for text in texts
    ]
    return [Multiaddr(one) for ones in split for one in ones]


def place_of(address: Multiaddr) -> str:
    """The address in words for users, such as "203.0.113.1 port 7117" or "node.example.org"."""
    relay, is_circuit, _ = str(address).partition(_CIRCUIT)
    _, _, host, *_ = [*relay.split("/"), ""]
    place = host if is_name(address) else f"{host} port {port_of(relay)}"
    return f"the relay {place}" if is_circuit else place


def host_of(address: str) -> str:
    """The IP address of a multiaddr, which may come from a stranger; empty: it has none."""
    _, _, host, *_ = [*address.split("/"), "", "", ""]
    try:
        return str(ip_address(host))
    except ValueError:
        return ""


def family_of(host: str) -> str:
    """The family of an IP address as multiaddrs name it: "ip4" or "ip6"."""
    return "ip6" if ":" in host else "ip4"


def is_public_host(host: str) -> bool:
    """Whether an IP address may mean the same machine everywhere."""
    return is_public(_ip(host))


def is_global(address: Multiaddr) -> bool:
    """Whether the address may lead to the same machine from everywhere. True for names."""
    _, kind, host, *_ = str(address).split("/")
    return kind.startswith("dns") or is_public(_ip(host))


def is_plain_public(address: Multiaddr) -> bool:
    """Whether it is a public IP address, no name and no circuit."""
    return not is_name(address) and relay_of(address) is None and is_global(address)


def _ip(host: str) -> IPv4Address | IPv6Address:
    """The IP address that a host's text means, without its zone."""
    return unwrapped(ip_address(host.partition("%")[0]))


def is_loopback(address: Multiaddr) -> bool:
    text = str(address)
    return text.startswith(("/ip4/127.", "/ip6/::1/"))


def with_next_port(text: str) -> str:
    """A listen address of the same host, with the port after the next (7119 after 7117, as the API has the next one). A
    port that is chosen by the system stays so."""
    head, _, port = text.rpartition("/")
    return f"{head}/{(int(port) + 2) % 65_536 if int(port) else 0}"


def is_wildcard(address: Multiaddr) -> bool:
    return str(address).startswith(("/ip4/0.0.0.0/", "/ip6/::/"))


def in_dial_order(addresses: Iterable[Multiaddr], limit: int) -> list[Multiaddr]:
    """At most ``limit`` distinct addresses that can be dialled, through at most MAX_RELAYS relays.

    Public addresses come first, then those at relays, which lead to the peer from everywhere. Private addresses come
    after them: in another network they are another machine's. Loopback comes last: from another machine's view it leads
    to this node itself."""
    usable: dict[str, Multiaddr] = {}
    relays: set[bytes] = set()
    for address in addresses:
        try:
            names = [protocol.name for protocol in address.protocols()]
            text = str(address)
        except UNREADABLE:
            continue  # a peer sent it, and libp2p passes a peer's bytes on unread
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
        if str(address).endswith(_CIRCUIT):
            return 1
        return 3 if is_loopback(address) else 2 * (not is_global(address))

    return sorted(usable.values(), key=rank)[:limit]


def _check_bindable(text: str, address: Multiaddr, family: str) -> None:
    """Raises LocalError when the address cannot be bound. libp2p listens with SO_REUSEPORT: it would silently share a
    port with the program that uses it."""
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
    """The TCP port of a multiaddr, which may come from a stranger; 0: it has none."""
    _, _, _, kind, port, *_ = [*address.split("/"), "", "", "", "", ""]
    return int(port) if kind == "tcp" and port.isascii() and port.isdecimal() and len(port) <= 5 else 0
