"""PCP (RFC 6887) and its forerunner NAT-PMP (RFC 6886), the client's side: one UDP packet asks a router for a port, one
packet answers. A router that knows only NAT-PMP says so when it is asked in PCP. A router that is asked over IPv6 (PCP
only) opens its firewall for a port and translates nothing.

No Python client of either is maintained, and libraries for both are in C. The packets have 2 to 60 bytes.
"""

import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeVar

import trio

from mycelia.node.network.mapping.router import LEASE_S, Mapping, MappingError, lease_of

PORT = 5351
MAX_PACKET_BYTES = 1_100
SEND_PAUSES_S = (0.25, 0.5, 1.0)
"""Times to wait for an answer after each sending, as in RFC 6886, which goes on for a minute."""
MAX_PACKETS = 16
"""Packets that are read after each sending: others than the answer are dropped."""

_PCP, _NAT_PMP = 2, 0
_MAP, _TCP = 1, 6
_REPLY = 0x80
_HEADER = struct.Struct(">BBxxI16s")
"""Version, opcode, lifetime, the client's address."""
_REPLY_HEADER = struct.Struct(">BBxBI4x12x")
"""Version, opcode, result, lifetime, then the router's clock."""
_MAPPING = struct.Struct(">12sBxxxHH16s")
"""Nonce, protocol, internal port, external port and address."""
_EXTERNAL_ADDRESS, _MAP_TCP = 0, 2
_REQUEST = struct.Struct(">BBxxHHI")
"""NAT-PMP: version, opcode, internal port, external port, lifetime."""
_ADDRESS_REPLY = struct.Struct(">BBH4x4s")
"""NAT-PMP: version, opcode, result, the router's clock, external address."""
_PORT_REPLY = struct.Struct(">BBH4xHHI")
"""NAT-PMP: version, opcode, result, the router's clock, internal port, external port, lifetime."""

_SOMEWHERE = "2000::1"
"""An address of the internet, to which nothing is sent."""

_WRONG_VERSION = 1
_RESULTS = {
    2: "does not allow it",
    3: "takes the request for malformed",
    4: "does not know the request",
    5: "does not know the options",
    7: "has a failure of its network",
    8: "has no port left",
    9: "does not map TCP",
    10: "has given this machine all ports that it may have",
    11: "cannot give this port",
    12: "sees another address of this machine: a second router is in between",
    13: "has too many peers of this port",
}
_NAT_PMP_RESULTS = {
    2: _RESULTS[2],
    3: "is not connected, or has no public address",
    4: "has no port left",
    5: _RESULTS[4],
}

T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """A router's answer. host, port: the external ones."""

    version: int
    result: int
    lease_s: int = 0
    host: str = ""
    port: int = 0


class PcpRouter:
    """A gateway that is asked in PCP and, if it does not know that, in NAT-PMP."""

    name = "PCP and NAT-PMP"

    def __init__(self, gateway: str, port: int = PORT) -> None:
        self._gateway = gateway
        self._port = port
        self._nonce = os.urandom(12)
        """It is the right to change the mapping, so it is secret and the same for all requests of one mapping."""

    async def map(self, port: int, external_port: int) -> Mapping:
        async with self._connected() as sock:
            return await self._mapped(sock, port, external_port, LEASE_S)

    async def unmap(self, mapping: Mapping) -> None:
        async with self._connected() as sock:
            if mapping.protocol == "PCP":
                await self._mapped(sock, mapping.port, mapping.external_port, 0)
            else:
                request = port_request(mapping.port, 0, 0)
                _check(await _answer(sock, request, lambda data: port_reply(data, mapping.port)))

    async def external(self) -> tuple[str, str]:
        async with self._connected() as sock:
            reply = await _answer(sock, bytes((_NAT_PMP, _EXTERNAL_ADDRESS)), address_reply)
        if reply.version != _NAT_PMP:
            return "PCP", ""
        _check(reply)
        return "NAT-PMP", reply.host

    async def _mapped(self, sock: trio.socket.SocketType, port: int, external_port: int, lease_s: int) -> Mapping:
        me = str(sock.getsockname()[0])
        is_six = sock.family == socket.AF_INET6
        request = map_request(me, self._nonce, port, external_port, lease_s)
        reply = await _answer(sock, request, lambda data: map_reply(data, self._nonce, port))
        name = "PCP"
        if reply.result == _WRONG_VERSION and not is_six:
            name = "NAT-PMP"
            outside = await _answer(sock, bytes((_NAT_PMP, _EXTERNAL_ADDRESS)), address_reply)
            _check(outside)
            request = port_request(port, external_port, lease_s)
            reply = await _answer(sock, request, lambda data: port_reply(data, port))
            reply = Reply(reply.version, reply.result, reply.lease_s, outside.host, reply.port)
        _check(reply)
        if lease_s and not reply.lease_s:
            raise MappingError("the router gives the port for no time")
        return Mapping(name, self._gateway, port, reply.host, reply.port, lease_of(reply.lease_s))

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[trio.socket.SocketType]:
        """A socket on which only packets from the gateway arrive."""
        is_six = ":" in self._gateway
        with trio.socket.socket(socket.AF_INET6 if is_six else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            if is_six:  # (the source says for which address the router is to open its firewall)
                await sock.bind((_global_host(), 0))
            await sock.connect(_numeric(self._gateway, self._port))
            yield sock


async def _answer(sock: trio.socket.SocketType, request: bytes, parse: Callable[[bytes], T | None]) -> T:
    """The first packet that ``parse`` takes. Raises MappingError, and OSError when the gateway refuses packets."""
    for pause_s in SEND_PAUSES_S:
        await sock.send(request)
        with trio.move_on_after(pause_s):
            for _ in range(MAX_PACKETS):
                found = parse(await sock.recv(MAX_PACKET_BYTES))
                if found is not None:
                    return found
            await trio.sleep(pause_s)
    raise MappingError("no answer")


def _check(reply: Reply) -> None:
    """Raises MappingError when the router refuses."""
    if reply.result:
        meanings = _NAT_PMP_RESULTS if reply.version == _NAT_PMP else _RESULTS
        raise MappingError(f"the router {meanings.get(reply.result, f'refuses (result {reply.result})')}")


def map_request(client: str, nonce: bytes, port: int, external_port: int, lease_s: int) -> bytes:
    """PCP: asks for a mapping of ``client``'s TCP ``port``, to an external address of the same family. lease_s: 0 ends
    it."""
    return _HEADER.pack(_PCP, _MAP, lease_s, _packed(client)) + _MAPPING.pack(
        nonce,
        _TCP,
        port,
        external_port,
        _packed("::" if ":" in client else "0.0.0.0"),  # noqa: S104  any
    )


def map_reply(data: bytes, nonce: bytes, port: int) -> Reply | None:
    """The answer to ``map_request``; None: the packet is no answer to it."""
    if (reply := _wrong_version(data)) is not None:
        return reply
    if len(data) < _REPLY_HEADER.size or len(data) > MAX_PACKET_BYTES:
        return None
    version, opcode, result, lease_s = _REPLY_HEADER.unpack_from(data)
    if (version, opcode) != (_PCP, _REPLY | _MAP):
        return None
    if len(data) < _REPLY_HEADER.size + _MAPPING.size:
        return Reply(version, result) if result else None
    its_nonce, protocol, its_port, external_port, host = _MAPPING.unpack_from(data, _REPLY_HEADER.size)
    if (its_nonce, protocol, its_port) != (nonce, _TCP, port) or not (external_port or result or not lease_s):
        return None
    inside = IPv6Address(host)
    return Reply(version, result, lease_s, str(inside.ipv4_mapped or inside), external_port)


def port_request(port: int, external_port: int, lease_s: int) -> bytes:
    """NAT-PMP: asks for a mapping of this machine's TCP ``port``. lease_s: 0 ends it."""
    return _REQUEST.pack(_NAT_PMP, _MAP_TCP, port, external_port, lease_s)


def port_reply(data: bytes, port: int) -> Reply | None:
    """The answer to ``port_request``; None: the packet is no answer to it."""
    if len(data) < _PORT_REPLY.size:
        return None
    version, opcode, result, its_port, external_port, lease_s = _PORT_REPLY.unpack_from(data)
    if (version, opcode, its_port) != (_NAT_PMP, _REPLY | _MAP_TCP, port) or not (
        external_port or result or not lease_s
    ):
        return None
    return Reply(version, result, lease_s, "", external_port)


def address_reply(data: bytes) -> Reply | None:
    """NAT-PMP: the answer to the question for the external address; None: the packet is no answer to it. A version
    other than NAT-PMP's: the router speaks only PCP."""
    if len(data) >= 4 and data[0] == _PCP and data[1] & _REPLY and data[3] == _WRONG_VERSION:
        return Reply(_PCP, _WRONG_VERSION)
    if len(data) < _ADDRESS_REPLY.size:
        return None
    version, opcode, result, host = _ADDRESS_REPLY.unpack_from(data)
    if (version, opcode) != (_NAT_PMP, _REPLY | _EXTERNAL_ADDRESS):
        return None
    return Reply(version, result, 0, str(IPv4Address(host)))


def _wrong_version(data: bytes) -> Reply | None:
    """The answer of a router that speaks only NAT-PMP to any other question."""
    if (
        len(data) >= 4
        and data[0] == _NAT_PMP
        and data[1] & _REPLY
        and int.from_bytes(data[2:4], "big") == _WRONG_VERSION
    ):
        return Reply(_NAT_PMP, _WRONG_VERSION)
    return None


def _numeric(host: str, port: int) -> tuple[Any, ...]:
    """The address of a socket; the zone of an IPv6 address becomes the number of its interface. Raises OSError."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0][4]


def _global_host() -> str:
    """The IPv6 address of this machine that connections to the internet use. Sends nothing. Raises OSError."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.connect((_SOMEWHERE, PORT))
        return str(sock.getsockname()[0])


def _packed(host: str) -> bytes:
    """An address as PCP writes it: an IPv4 address as IPv6 one."""
    ip = ip_address(host)
    return ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed
