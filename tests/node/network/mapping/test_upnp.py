"""UPnP against routers that answer rightly, refuse, or send what nobody should read."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from mycelia.node.network.mapping import upnp
from mycelia.node.network.mapping.router import LEASE_S, Mapping, MappingError
from mycelia.node.network.mapping.upnp import UpnpRouter, fields_in, location_in, services_in

GATEWAY, URL = "192.168.1.1", "http://192.168.1.1:5000/root.xml"
KIND = "urn:schemas-upnp-org:service:WANIPConnection:1"
PORT = 7_117
ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"


def description(control: str = "/ctl", kind: str = KIND, base: str = "") -> bytes:
    service = f"<service><serviceType>{kind}</serviceType><controlURL>{control}</controlURL></service>"
    return f'<root xmlns="urn:x">{base}<device><serviceList>{service}</serviceList></device></root>'.encode()


def soap(**fields: str) -> bytes:
    told = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    body = f'<s:Body><u:Answer xmlns:u="urn:u">{told}</u:Answer></s:Body>'
    return f'<s:Envelope xmlns:s="urn:s">{body}</s:Envelope>'.encode()


def answer(location: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nST: x\r\nLocation: {location}\r\n\r\n".encode()


@pytest.mark.parametrize(
    "location",
    [
        "http://192.168.1.2/x",
        "http://127.0.0.1:8080/x",
        "https://192.168.1.1/x",
        "http://192.168.1.1@evil.example/x",
        "http://192.168.1.1:99999/x",
        "http://[192.168.1.1/x",
        "ftp://192.168.1.1/x",
        "http://192.168.1.1/a b",
        "",
    ],
)
def test_only_the_gateways_own_pages_are_read(location: str) -> None:
    assert location_in(answer(location), GATEWAY) == ""
    if location:
        assert services_in(description(location.replace("&", "&amp;")), URL) == []


def test_answers_to_a_search() -> None:
    assert location_in(answer(URL), GATEWAY) == URL
    for data in (b"", b"\xff" * 99, b"NOTIFY * HTTP/1.1\r\nLOCATION: " + URL.encode(), b"HTTP/1.1 200 OK\r\n\r\n"):
        assert location_in(data, GATEWAY) == ""


def test_descriptions() -> None:
    (service,) = services_in(description(), URL)
    assert (service.url, service.kind) == ("http://192.168.1.1:5000/ctl", KIND)
    (service,) = services_in(description(base="<URLBase>http://192.168.1.1:99/</URLBase>"), URL)
    assert service.url == "http://192.168.1.1:99/ctl"
    assert services_in(description(kind="urn:schemas-upnp-org:service:WANIPConnection:1&lt;x"), URL) == []
    assert services_in(description(kind="urn:schemas-upnp-org:service:Printer:1"), URL) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no xml",
        b"<a><b></a>",
        b"\xff\xfe<\0a\0/\0>\0",
        b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        b"<a>" * 9_000,
    ],
)
def test_what_is_no_xml_or_defines_entities_is_refused(data: bytes) -> None:
    for read in (fields_in, partial(services_in, url=URL)):
        with pytest.raises(MappingError):
            read(data)


@asynccontextmanager
async def router(answers: Callable[[str, bytes], bytes]) -> AsyncIterator[UpnpRouter]:
    """A router at 127.0.0.1. answers: (action, request) -> the page; GET is the action of the description."""

    async def serve(stream: trio.SocketStream) -> None:
        request = b""
        async with stream:
            while True:
                request += await stream.receive_some()
                head, end, body = request.partition(b"\r\n\r\n")
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                if end and len(body) >= int(length[1] if length else 0):
                    break
            action = re.search(rb'soapaction: ".*#(\w+)"', head, re.IGNORECASE)
            page = answers(action[1].decode() if action else "GET", body)
            try:
                await stream.send_all(page if page.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\n\r\n" + page)
                if ENDLESS in page:
                    await stream.receive_some()
            except trio.BrokenResourceError:
                return

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]

        async def search(gateway: str) -> str:
            await trio.lowlevel.checkpoint()
            return f"http://{gateway}:{port}/root.xml"

        yield UpnpRouter("127.0.0.1", search)
        nursery.cancel_scope.cancel()


def usual(action: str, body: bytes) -> bytes:
    pages = {"GET": description(), "GetExternalIPAddress": soap(NewExternalIPAddress="45.1.2.3")}
    return pages.get(action, soap())


def field(body: bytes, name: str) -> str:
    return fields_in(body)[name]


async def test_a_mapping_is_asked_for_and_given_back() -> None:
    asked: list[tuple[str, bytes]] = []

    def answers(action: str, body: bytes) -> bytes:
        asked.append((action, body))
        return usual(action, body)

    async with router(answers) as one:
        assert await one.external() == ("UPnP", "45.1.2.3")
        mapping = await one.map(PORT, PORT)
        assert mapping == Mapping("UPnP", "127.0.0.1", PORT, "45.1.2.3", PORT, LEASE_S)
        await one.unmap(mapping)
    added = next(body for action, body in asked if action == "AddPortMapping")
    assert field(added, "NewLeaseDuration") == str(LEASE_S) and field(added, "NewInternalClient") == "127.0.0.1"
    assert field(added, "NewInternalPort") == field(added, "NewExternalPort") == str(PORT)
    assert asked[-1][0] == "DeletePortMapping" and [action for action, _ in asked].count("GET") == 1


async def test_ports_of_others_are_left_alone() -> None:
    tried: list[str] = []

    def answers(action: str, body: bytes) -> bytes:
        if action == "AddPortMapping":
            tried.append(field(body, "NewExternalPort"))
            return soap(errorCode="718") if len(tried) < 3 else soap()
        return usual(action, body)

    async with router(answers) as one:
        mapping = await one.map(PORT, PORT)
        assert str(mapping.external_port) == tried[2] and tried[0] == str(PORT) and len(set(tried)) == 3


async def test_a_router_that_would_take_a_port_from_another_machine() -> None:
    added: list[str] = []

    def answers(action: str, body: bytes) -> bytes:
        if action == "GetSpecificPortMappingEntry" and field(body, "NewExternalPort") == str(PORT):
            return soap(NewInternalClient="192.168.1.77", NewInternalPort=str(PORT))
        if action == "AddPortMapping":
            added.append(field(body, "NewExternalPort"))
        return usual(action, body)

    async with router(answers) as one:
        mapping = await one.map(PORT, PORT)
        assert added == [str(mapping.external_port)] and mapping.external_port != PORT


@pytest.mark.parametrize(
    ("action", "page", "why"),
    [
        ("AddPortMapping", soap(errorCode="725"), "only for ever"),
        ("AddPortMapping", soap(errorCode="718"), "to others"),
        ("AddPortMapping", soap(errorCode="606"), "does not allow"),
        ("AddPortMapping", soap(errorCode="\x07" * 99), "no XML"),
        ("AddPortMapping", soap(errorCode="x" * 999), "refuses"),
        ("GetExternalIPAddress", soap(), "not connected"),
        ("GetExternalIPAddress", b"", "no XML"),
        ("GET", b"<root/>", "no service"),
        ("GET", description("http://10.0.0.1/ctl"), "no service"),
        ("GET", b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\n\r\n", "no XML"),
        ("GET", b"x" * (upnp.MAX_XML_BYTES + 1), "more than"),
        ("GET", b"HTTP nonsense", "cannot be read"),
    ],
)
async def test_a_router_that_refuses_or_sends_garbage(action: str, page: bytes, why: str) -> None:
    async with router(lambda asked, body: page if asked == action else usual(asked, body)) as one:
        with pytest.raises(MappingError, match=why):
            await one.map(PORT, PORT)


async def test_a_page_that_never_ends_takes_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upnp, "STEP_DEADLINE_S", 0.2)
    async with router(lambda action, body: ENDLESS) as one:
        with pytest.raises(MappingError, match="slowly"):
            await one.external()
