"""Packets of multicast DNS: as other implementations read and write them, and what they tell strangers."""

import random
from ipaddress import ip_address

import dns.message
import pytest
from multiaddr import Multiaddr
from zeroconf import DNSIncoming, DNSPointer, DNSService, DNSText  # type: ignore[attr-defined]  # (untyped exports)

from mycelia.node.network.identity import new_identity
from mycelia.node.network.mdns.records import MAX_ADDRESSES, MAX_TEXT_BYTES, Found, Question, Records, service_of
from mycelia.node.peer_id import peer_text

PEER = new_identity().peer_id
TOLD = [f"/ip4/192.168.1.2/tcp/{port}/p2p/{peer_text(PEER)}" for port in (7117, 7118)]
HOST = ip_address("192.168.1.2")
KEY = bytes(range(32))
SERVICE = "_p2p._udp.local."


def records(key: bytes = b"", seed: int = 1) -> Records:
    return Records(key, random.Random(seed))


def other() -> Records:
    return records(seed=2)


def found_in(packet: bytes) -> Found:
    told = other().read(packet)
    assert isinstance(told, list) and len(told) == 1
    return told[0]


def test_nodes_read_each_other() -> None:
    for key in (b"", KEY):
        one, two = records(key), records(key, seed=2)
        assert two.read(one.question()) == one.read(one.question()) == Question()
        packet = one.answer(TOLD, HOST, 7117)
        assert two.is_relevant(packet) and two.is_relevant(one.question())
        found = Found(PEER, tuple(Multiaddr(text.partition("/p2p/")[0]) for text in TOLD))
        assert two.read(packet) == [found]
        assert one.read(packet) == [], "it is its own"
        assert two.read(one.answer(TOLD, HOST, 7117, ttl_s=0)) == [], "it was taken back"


def test_zeroconf_reads_an_answer() -> None:
    """It is the strictest implementation and wants a pointer, a service, an address and a text of one name."""
    told = DNSIncoming(records().answer(TOLD, HOST, 7117)).answers()
    (pointer,) = [one for one in told if isinstance(one, DNSPointer)]
    assert pointer.name == SERVICE and pointer.alias.endswith(f".{SERVICE}") and pointer.ttl == 120
    assert 32 <= len(pointer.alias.partition(".")[0]) <= 63
    (service,) = [one for one in told if isinstance(one, DNSService)]
    (text,) = [one for one in told if isinstance(one, DNSText)]
    assert service.name == text.name == pointer.alias and service.port == 7117
    assert text.text == b"".join(bytes([len(one) + 8]) + b"dnsaddr=" + one.encode() for one in TOLD)
    (services,) = DNSIncoming(records().answer_for_all()).answers()
    assert isinstance(services, DNSPointer) and services.alias == SERVICE


def answer_of_js(*texts: str, name: str = "abc") -> bytes:
    """A packet of js-libp2p: all in the answer section, and a TXT record for each address."""
    lines = [f"{SERVICE} 120 IN PTR {name}.{SERVICE}"]
    lines += [f'{name}.{SERVICE} 120 IN TXT "{text}"' for text in texts]
    return dns.message.from_text("id 0\nflags QR AA\n;ANSWER\n" + "\n".join(lines)).to_wire()


def test_an_answer_of_js_libp2p_is_read() -> None:
    packet = answer_of_js(*(f"dnsaddr={one}" for one in TOLD), "v=1", "dnsaddr=/ip4/1.2.3.4/tcp/1", "dnsaddr=x")
    found = found_in(packet)
    assert found.peer == PEER
    assert {str(one) for one in found.addresses} == {text.partition("/p2p/")[0] for text in TOLD}


def test_of_a_long_answer_little_is_read() -> None:
    texts = [f"dnsaddr=/ip4/192.168.1.2/tcp/{port}/p2p/{peer_text(PEER)}" for port in range(1, 30)]
    found = found_in(answer_of_js(*texts))
    assert len(found.addresses) == MAX_ADDRESSES


def test_packets_that_would_take_long_to_read_are_left_out() -> None:
    texts = [f"dnsaddr=/ip4/192.168.1.2/tcp/{port}/p2p/{peer_text(PEER)}" for port in range(1, 90)]
    assert other().is_relevant(answer_of_js(*texts[:20]))
    assert not other().is_relevant(answer_of_js(*texts))
    for short in (b"", b"\x04_p2p\x04_udp", bytes(11)):
        assert not other().is_relevant(short)


def test_addresses_that_fit_no_text_are_left_out() -> None:
    long = f"/dns4/{'a' * 60}.{'b' * 60}.{'c' * 60}.example/tcp/1/p2p/{peer_text(PEER)}"
    assert len(long) > MAX_TEXT_BYTES - 8
    found = found_in(records().answer([long, TOLD[0]], HOST, 7117))
    assert len(found.addresses) == 1


def test_who_names_this_node_in_a_question_gets_no_answer() -> None:
    one = records()
    answer = dns.message.from_wire(one.answer(TOLD, HOST, 7117))
    question = dns.message.from_wire(one.question())
    question.answer.extend(answer.answer)
    assert one.read(question.to_wire()) == []
    assert other().read(question.to_wire()) == Question()


@pytest.mark.parametrize("stranger", [b"", bytes(32)])
def test_a_private_swarm_tells_strangers_nothing(stranger: bytes) -> None:
    member = records(KEY)
    packets = [member.question(), member.answer(TOLD, HOST, 7117), member.answer(TOLD, HOST, 7117, ttl_s=0)]
    for packet in packets:
        assert records(stranger, seed=2).read(packet) == []
        assert peer_text(PEER).encode() not in packet and PEER not in packet and KEY not in packet
        assert b"7117/" not in packet and b"mycelia" not in packet
    assert service_of(KEY) not in (service_of(b""), service_of(bytes(32)))
    assert member.read(records().answer(TOLD, HOST, 7117)) == [], "a member does not hear strangers"
    assert member.read(other().question()) == []
    forged = member.answer(TOLD, HOST, 7117).replace(b"sealed=", b"sealee=")
    assert records(KEY, seed=2).read(forged) == []
