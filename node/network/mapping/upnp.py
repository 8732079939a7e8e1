"""UPnP IGD, the client's side: finds a router's service that forwards ports, and asks it.

The library miniupnpc is not used for it: it fetches whatever URL any machine of the local network names, on this
machine too, with no limit of size, and cannot be cancelled. Here only the gateway itself is listened to and asked, and
all that it sends is bounded.
"""

import re
import socket
from collections.abc import Awaitable, Callable
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass
from random import randint
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import h11
import trio

from mycelia.node.network.mapping.router import LEASE_S, Mapping, MappingError, lease_of

SEARCH_HOST, SEARCH_PORT = "239.255.255.250", 1900
SEARCH_PAUSES_S = (0.5, 1.5)
"""Times to wait for answers after each sending. Devices answer within the second that MX names."""
MAX_PACKETS, MAX_PACKET_BYTES = 32, 2_048
MAX_HEAD_BYTES, MAX_XML_BYTES = 16 * 1_024, 128 * 1_024
STEP_DEADLINE_S = 3.0
"""Time for one HTTP request."""
MAX_SERVICES = 3
"""Services of one router that are asked: it has one for each line."""
NUM_PORTS = 4
"""External ports that are asked for, one after the other, where others have them already."""
OTHER_PORTS = 20_000, 60_000

_DEVICE = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
_SERVICE = re.compile(r"urn:schemas-upnp-org:service:WAN(?:IP|PPP)Connection:[12]")
_SEARCH = (
    "M-SEARCH * HTTP/1.1\r\n"
    f"HOST: {SEARCH_HOST}:{SEARCH_PORT}\r\n"
    'MAN: "ssdp:discover"\r\n'
    "MX: 1\r\n"
    f"ST: {_DEVICE}\r\n\r\n"
).encode()
_ENVELOPE = (
    '<?xml version="1.0"?>\r\n'
    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
    ' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">'
    '<s:Body><u:{action} xmlns:u="{kind}">{arguments}</u:{action}></s:Body></s:Envelope>'
)
_CONFLICTS = {"718", "729"}
_ONLY_PERMANENT = "725"
_REFUSALS = {
    "501": "failed",
    "606": "does not allow it",
    "714": "has no such mapping",
    "724": "gives no external port other than the internal one",
    _ONLY_PERMANENT: "forwards ports only for ever, also after this program was killed",
    "728": "has no room for a further mapping",
}


@dataclass(frozen=True)
class Service:
    """A router's service that forwards ports of one line."""

    url: str
    kind: str
    """Its type, which its requests name."""


class UpnpRouter:
    """A gateway that is asked by UPnP."""

    name = "UPnP"

    def __init__(self, gateway: str, search: Callable[[str], Awaitable[str]] | None = None) -> None:
        """search: returns the URL of the gateway's description."""
        self._gateway = gateway
        self._search = search or searched
        self._found: tuple[Service, str] | None = None
        """The service that worked, and the external address that it told."""

    async def map(self, port: int, external_port: int) -> Mapping:
        service, host = await self._usable()
        me = _own_host(self._gateway)
        candidates = [external_port, *(randint(*OTHER_PORTS) for _ in range(NUM_PORTS - 1))]  # noqa: S311  no secret
        for candidate in candidates:
            if await self._is_taken(service, candidate, me):
                continue
            try:
                await self._call(
                    service,
                    "AddPortMapping",
                    NewRemoteHost="",
                    NewExternalPort=candidate,
                    NewProtocol="TCP",
                    NewInternalPort=port,
                    NewInternalClient=me,
                    NewEnabled=1,
                    NewPortMappingDescription="mycelia",
                    NewLeaseDuration=LEASE_S,
                )
            except _Refused as refused:
                if refused.code not in _CONFLICTS:
                    raise
            else:
                return Mapping("UPnP", self._gateway, port, host, candidate, lease_of(LEASE_S))
        raise MappingError("the router has given the ports that were tried to others")

    async def unmap(self, mapping: Mapping) -> None:
        service, _ = await self._usable()
        await self._call(
            service, "DeletePortMapping", NewRemoteHost="", NewExternalPort=mapping.external_port, NewProtocol="TCP"
        )

    async def external(self) -> tuple[str, str]:
        _, host = await self._usable()
        return "UPnP", host

    async def _is_taken(self, service: Service, port: int, me: str) -> bool:
        """Whether the router forwards the port to another machine. Some routers would let this one take it over."""
        try:
            entry = await self._call(
                service, "GetSpecificPortMappingEntry", NewRemoteHost="", NewExternalPort=port, NewProtocol="TCP"
            )
        except _Refused:
            return False
        return entry.get("NewInternalClient", me) != me

    async def _usable(self) -> tuple[Service, str]:
        """The first service that is connected, and its external address. Searched anew if the last one is gone."""
        if self._found is not None:
            service, _ = self._found
            try:
                self._found = service, await self._external_host(service)
                return self._found
            except (MappingError, OSError):
                self._found = None
        url = await self._search(self._gateway)
        problem = MappingError("the router has no service that forwards ports")
        for service in services_in(await _fetched("GET", url), url):
            try:
                self._found = service, await self._external_host(service)
                return self._found
            except MappingError as exc:
                problem = exc
        raise problem

    async def _external_host(self, service: Service) -> str:
        fields = await self._call(service, "GetExternalIPAddress")
        host = fields.get("NewExternalIPAddress", "")
        if not host:
            raise MappingError("the router is not connected")
        return host

    async def _call(self, service: Service, action: str, **arguments: str | int) -> dict[str, str]:
        """The fields of the answer. Raises MappingError."""
        told = "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in arguments.items())
        body = _ENVELOPE.format(action=action, kind=service.kind, arguments=told).encode()
        headers = {"Content-Type": 'text/xml; charset="utf-8"', "SOAPAction": f'"{service.kind}#{action}"'}
        fields = fields_in(await _fetched("POST", service.url, body, headers))
        if code := fields.get("errorCode"):
            raise _Refused(code)
        return fields


class _Refused(MappingError):
    """The router answered with an error."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(f"the router {_REFUSALS.get(code, f'refuses (error {code[:8]!r})')}")


async def searched(gateway: str) -> str:
    """The URL of the gateway's description. Raises MappingError."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        me = _own_host(gateway)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(me))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
        await sock.bind((me, 0))
        for pause_s in SEARCH_PAUSES_S:
            for host in (SEARCH_HOST, gateway):
                await sock.sendto(_SEARCH, (host, SEARCH_PORT))
            with trio.move_on_after(pause_s):
                for _ in range(MAX_PACKETS):
                    data, (sender, *_) = await sock.recvfrom(MAX_PACKET_BYTES)
                    if sender == gateway and (url := location_in(data, gateway)):
                        return url
                await trio.sleep(pause_s)
    raise MappingError("no answer")


def location_in(data: bytes, gateway: str) -> str:
    """The URL in an answer to a search; empty: it has none, or one that leads elsewhere than to ``gateway``."""
    status, *lines = data.decode(errors="replace").split("\r\n")
    if not status.startswith("HTTP/1.1 200"):
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "location":
            return value.strip() if _leads_to(value.strip(), gateway) else ""
    return ""


def services_in(description: bytes, url: str) -> list[Service]:
    """The services in a router's description that forward ports and are at the router itself. url: where the
    description is. Raises MappingError for no XML."""
    gateway = urlsplit(url).hostname or ""
    root = _parsed(description)
    base = next((text for one in root.iter() if _name(one) == "URLBase" and (text := _text(one))), url)
    found = []
    for element in root.iter():
        if _name(element) == "service":
            told = {_name(child): _text(child) for child in element}
            kind = told.get("serviceType", "")
            if not _SERVICE.fullmatch(kind):
                continue
            try:
                control = urljoin(base, told.get("controlURL", ""))
            except ValueError:
                continue
            if _leads_to(control, gateway):
                found.append(Service(control, kind))
    return found[:MAX_SERVICES]


def fields_in(answer: bytes) -> dict[str, str]:
    """The leaves of a SOAP answer, by name. Raises MappingError for no XML."""
    return {_name(element): _text(element) for element in _parsed(answer).iter() if not len(element)}


def _parsed(data: bytes) -> ET.Element:
    """Raises MappingError. A document type may define entities that grow without end, and routers need none."""
    text = data.decode(errors="replace")
    if "<!DOCTYPE" in text:
        raise MappingError("the router's answer has a document type")
    try:
        return ET.fromstring(text.lstrip("\ufeff \r\n\t"))  # noqa: S314  no entities, see above
    except (ET.ParseError, ValueError) as exc:
        raise MappingError("the router's answer is no XML") from exc


def _name(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _text(element: ET.Element) -> str:
    return (element.text or "").strip()


def _leads_to(url: str, gateway: str) -> bool:
    """Whether it is an HTTP URL of the gateway itself, in printable ASCII."""
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError:
        return False
    is_plain = url.isascii() and url.isprintable() and " " not in url and "@" not in parts.netloc
    return is_plain and parts.scheme == "http" and parts.hostname == gateway and port > 0


async def _fetched(method: str, url: str, body: bytes = b"", headers: AnyMapping[str, str] | None = None) -> bytes:
    """The body of the answer, whatever its status. Raises MappingError and OSError."""
    parts = urlsplit(url)
    connection = h11.Connection(h11.CLIENT, MAX_HEAD_BYTES)
    told = {"Host": parts.netloc, "Connection": "close", "Content-Length": str(len(body)), **(headers or {})}
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        request = connection.send(h11.Request(method=method, target=target, headers=list(told.items()))) or b""
        request += (connection.send(h11.Data(body)) or b"") + (connection.send(h11.EndOfMessage()) or b"")
        with trio.fail_after(STEP_DEADLINE_S):
            async with await trio.open_tcp_stream(parts.hostname or "", parts.port or 80) as stream:
                await stream.send_all(request)
                return await _body(connection, stream)
    except (h11.ProtocolError, trio.BrokenResourceError) as exc:
        raise MappingError(f"the router's page cannot be read: {exc}"[:200]) from exc
    except trio.TooSlowError as exc:
        raise MappingError("the router answers too slowly") from exc


async def _body(connection: h11.Connection, stream: trio.SocketStream) -> bytes:
    data = bytearray()
    while len(data) <= MAX_XML_BYTES:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(MAX_HEAD_BYTES))
        elif isinstance(event, h11.Data):
            data += event.data
        elif isinstance(event, h11.EndOfMessage):
            return bytes(data)
        elif isinstance(event, h11.ConnectionClosed):
            raise MappingError("the router's page cannot be read: it is empty")
    raise MappingError(f"the router's answer has more than {MAX_XML_BYTES} bytes")


def _own_host(gateway: str) -> str:
    """This machine's address in the gateway's network. Sends nothing. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((gateway, SEARCH_PORT))
        return str(sock.getsockname()[0])
