"""Hostile answers of routers: packets of PCP and NAT-PMP, answers to searches, and pages of UPnP."""

import random
import struct
from collections.abc import Callable
from urllib.parse import urlsplit

from mycelia.node.network.mapping.pcp import Reply, address_reply, map_reply, port_reply
from mycelia.node.network.mapping.router import MappingError, is_useful
from mycelia.node.network.mapping.upnp import MAX_SERVICES, fields_in, location_in, services_in
from tests.fuzz.mutate import splice, spoil_bytes

_NONCE, _PORT = b"n" * 12, 7_117
_GATEWAY, _URL = "192.168.1.1", "http://192.168.1.1:5000/root.xml"
_PACKETS = [
    struct.pack(">BBxBI16x12sBxxxHH10x2s4s", 2, 0x81, 0, 600, _NONCE, 6, _PORT, 40_000, b"\xff\xff", b"\x2d\1\2\3"),
    struct.pack(">BBxBI16x", 2, 0x81, 8, 0),
    struct.pack(">BBH4x", 0, 0x81, 1),
    struct.pack(">BBH4x4s", 0, 0x80, 0, b"\x2d\1\2\3"),
    struct.pack(">BBH4xHHI", 0, 0x82, 0, _PORT, 40_000, 600),
]
_FOUND = f"HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nLOCATION: {_URL}\r\n\r\n".encode()
_PAGES = [
    (
        b'<?xml version="1.0"?><root xmlns="urn:x"><URLBase>http://192.168.1.1:5000/</URLBase><device><serviceList><service>'
        b"<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>/ctl</controlURL></service>"
        b"</serviceList></device></root>"
    ),
    (
        b'<s:Envelope xmlns:s="urn:s"><s:Body><u:R xmlns:u="urn:u"><NewExternalIPAddress>45.1.2.3'
        b"</NewExternalIPAddress></u:R></s:Body></s:Envelope>"
    ),
    b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
]


def _packet(data: bytes) -> bool:
    replies: list[Reply | None] = [map_reply(data, _NONCE, _PORT), port_reply(data, _PORT), address_reply(data)]
    for reply in replies:
        assert reply is None or 0 <= reply.port < 65_536
        assert reply is None or is_useful(reply.host) in (True, False)
    return any(replies)


def _search(data: bytes) -> bool:
    url = location_in(data, _GATEWAY)
    assert url == "" or urlsplit(url).hostname == _GATEWAY
    return bool(url)


def _page(data: bytes) -> bool:
    try:
        services = services_in(data, _URL)
        fields_in(data)
    except MappingError:
        return False
    assert len(services) <= MAX_SERVICES
    for service in services:
        assert urlsplit(service.url).hostname == _GATEWAY and service.url.isprintable() and "<" not in service.kind
    return True


_READERS: dict[str, tuple[Callable[[bytes], bool], list[bytes]]] = {
    "packet": (_packet, _PACKETS),
    "search": (_search, [_FOUND]),
    "page": (_page, _PAGES),
}


class RouterAnswers:
    """The kind of answer, and its bytes."""

    name = "mapping"
    weight = 0.3

    def make(self, rng: random.Random) -> tuple[str, bytes]:
        kind = rng.choice(list(_READERS))
        _, corpus = _READERS[kind]
        data = rng.choice(corpus)
        if rng.random() < 0.2:
            data = splice(data, rng.choice(corpus), rng)
        return kind, spoil_bytes(data, rng) if rng.random() < 0.7 else data

    def check(self, item: tuple[str, bytes]) -> bool:
        kind, data = item
        return _READERS[kind][0](data)
