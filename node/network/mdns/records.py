"""The packets of libp2p's multicast DNS (https://github.com/libp2p/specs/blob/master/discovery/mdns.md), as go-libp2p
and js-libp2p read and write them.

A node answers the question ``_p2p._udp.local PTR`` with its name, drawn at random at each start, and the TXT record of
that name lists its addresses: ``dnsaddr=/ip4/192.168.1.2/tcp/7117/p2p/ID``.

In a private swarm both the question and the addresses would tell strangers who is in it. There the service's name is
derived from the swarm's key, and each address is encrypted with another key derived from it: ``sealed=...``. A stranger
learns that this machine is in some swarm, and nothing that names it, its members or its models.
"""

import random
import string
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from blake3 import blake3
from multiaddr import Multiaddr
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from mycelia.node.network import addresses
from mycelia.proto.wire.errors import LocalError

TTL_S = 120
MAX_PACKET_BYTES = 9_000
MAX_ADDRESSES, MAX_READ = 8, 32
"""Addresses that a node tells, and texts of one packet that are looked at."""
MAX_TEXT_BYTES = 255
HEADER_BYTES, MAX_RECORDS = 12, 32
_CLASS_MASK = 0x7FFF
"""Without the bit that asks for an answer to this machine alone, or says that a record replaces all others."""
_ALL_SERVICES = dns.name.from_text("_services._dns-sd._udp.local.")
_DNSADDR, _SEALED = b"dnsaddr=", b"sealed="
_ERRORS = (dns.exception.DNSException, ValueError, IndexError)


def service_of(swarm_key: bytes) -> str:
    """The name of the service that nodes of one swarm ask for."""
    if not swarm_key:
        return "_p2p._udp.local."
    mark = blake3(swarm_key, derive_key_context="mycelia 2026 mdns service v1").digest(16)
    return f"_p2p-{mark.hex()}._udp.local."


@dataclass(frozen=True)
class Question:
    """Somebody asks which nodes there are, or which services (``is_for_all``)."""

    is_for_all: bool = False


@dataclass(frozen=True)
class Found:
    """Addresses of one peer, not yet checked."""

    peer: bytes
    addresses: tuple[Multiaddr, ...]


class Records:
    """Writes and reads the packets of one node. ``rng`` draws its name."""

    def __init__(self, swarm_key: bytes, rng: random.Random) -> None:
        self._service = dns.name.from_text(service_of(swarm_key))
        letters = string.ascii_lowercase + string.digits
        label = "".join(rng.choice(letters) for _ in range(rng.randint(32, 63)))
        self._name = dns.name.from_text(label, self._service)
        self._host = dns.name.from_text(f"{label}.local.")
        self._box: SecretBox | None = None
        if swarm_key:
            self._box = SecretBox(blake3(swarm_key, derive_key_context="mycelia 2026 mdns box v1").digest())
        first, *_ = self._service.labels
        self._marks = (bytes([len(first)]) + first, b"\x09_services")

    def question(self) -> bytes:
        message = dns.message.Message(id=0)
        message.question.append(dns.rrset.RRset(self._service, dns.rdataclass.IN, dns.rdatatype.PTR))
        return message.to_wire()

    def answer(self, told: Sequence[str], ip: IPv4Address | IPv6Address, port: int, ttl_s: int = TTL_S) -> bytes:
        """told: full multiaddrs. ip, port: for programs that read no TXT records. ttl_s: 0 takes the answer back."""
        texts = [text for one in told if len(text := self._text(one)) <= MAX_TEXT_BYTES][:MAX_ADDRESSES]
        message = self._response()
        message.answer.append(dns.rrset.from_text(self._service, ttl_s, "IN", "PTR", self._name.to_text()))
        record = dns.rrset.from_rdata(self._name, ttl_s, _txt(texts))
        srv = dns.rrset.from_text(self._name, ttl_s, "IN", "SRV", f"0 0 {port} {self._host}")
        host = dns.rrset.from_text(self._host, ttl_s, "IN", "A" if ip.version == 4 else "AAAA", str(ip))
        message.additional.extend([record, srv, host])
        return message.to_wire()

    def answer_for_all(self) -> bytes:
        """The answer to the question which services there are."""
        message = self._response()
        message.answer.append(dns.rrset.from_text(_ALL_SERVICES, TTL_S, "IN", "PTR", self._service.to_text()))
        return message.to_wire()

    def _response(self) -> dns.message.Message:
        message = dns.message.Message(id=0)
        message.flags = dns.flags.QR | dns.flags.AA
        return message

    def _text(self, address: str) -> bytes:
        if self._box is None:
            return _DNSADDR + address.encode()
        return _SEALED + bytes(self._box.encrypt(address.encode()))

    def is_relevant(self, packet: bytes) -> bool:
        """Whether ``read`` may find something: cheap, for all that other programs send. Packets that would take long to
        read are left out: each record may repeat a name of 127 parts in two bytes."""
        num_records = sum(struct.unpack_from(">4H", packet, 4)) if len(packet) >= HEADER_BYTES else MAX_RECORDS + 1
        if num_records > MAX_RECORDS or len(packet) > MAX_PACKET_BYTES:
            return False
        lower = packet.lower()
        return any(mark in lower for mark in self._marks)

    def read(self, packet: bytes) -> Question | list[Found]:
        """What a stranger's packet asks or tells; nothing of this node itself. Never raises."""
        try:
            message = dns.message.from_wire(packet, ignore_trailing=True)
            return self._found(message) if message.flags & dns.flags.QR else self._asked(message) or []
        except _ERRORS:
            return []

    def _asked(self, message: dns.message.Message) -> Question | None:
        if any(self._is_mine(one) for one in message.answer):
            return None  # (who asks knows this node already)
        for question in message.question:
            if question.rdtype in (dns.rdatatype.PTR, dns.rdatatype.ANY) and question.name == self._service:
                return Question()
            if self._box is None and question.rdtype == dns.rdatatype.PTR and question.name == _ALL_SERVICES:
                return Question(is_for_all=True)
            if question.name == self._name:
                return Question()
        return None

    def _is_mine(self, record: dns.rrset.RRset) -> bool:
        return record.rdtype == dns.rdatatype.PTR and any(one.target == self._name for one in record)

    def _found(self, message: dns.message.Message) -> list[Found]:
        texts = [
            text
            for record in (*message.answer, *message.additional)
            if record.rdtype == dns.rdatatype.TXT
            and record.name != self._name
            and record.name.is_subdomain(self._service)
            for one in (record if record.ttl else ())
            for text in one.strings
        ]
        found: dict[bytes, list[Multiaddr]] = {}
        for text in texts[:MAX_READ]:
            try:
                peer, address = addresses.parse_peer(self._opened(text))
            except (LocalError, CryptoError, UnicodeDecodeError):
                continue
            if len(of_peer := found.setdefault(peer, [])) < MAX_ADDRESSES:
                of_peer.append(address)
        return [Found(peer, tuple(some)) for peer, some in found.items()]

    def _opened(self, text: bytes) -> str:
        """Raises LocalError, CryptoError or UnicodeDecodeError."""
        if self._box is None:
            return text.removeprefix(_DNSADDR).decode() if text.startswith(_DNSADDR) else ""
        return self._box.decrypt(text.removeprefix(_SEALED)).decode() if text.startswith(_SEALED) else ""


def _txt(texts: Sequence[bytes]) -> dns.rdata.Rdata:
    wire = b"".join(bytes([len(text)]) + text for text in texts or [b""])
    return dns.rdata.from_wire(dns.rdataclass.IN, dns.rdatatype.TXT, wire, 0, len(wire))
