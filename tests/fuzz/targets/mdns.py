"""Hostile packets of multicast DNS. Any packet is read as a question, or as a few addresses of peers, or as nothing."""

import random
from ipaddress import ip_address

from mycelia.node.network.identity import Identity
from mycelia.node.network.mdns.records import MAX_ADDRESSES, MAX_READ, Question, Records
from mycelia.node.peer_id import is_ed25519, peer_text
from tests.fuzz.mutate import splice, spoil_bytes

_PEERS = [peer_text(Identity(bytes([number]) * 32).peer_id) for number in range(8)]
_TOLD = [f"/ip4/10.0.0.{number}/tcp/7117/p2p/{peer}" for number, peer in enumerate(_PEERS)]
_ODD = ["/dns4/x/tcp/1", "/ip4/8.8.8.8/udp/1/quic-v1", "/p2p-circuit", "/ip4/10.0.0.1/tcp/1", ""]
_KEY = bytes(32)


def _corpus() -> list[bytes]:
    open_to_all, keyed = Records(b"", random.Random(1)), Records(_KEY, random.Random(1))
    many = [f"/ip4/10.0.0.1/tcp/{port}/p2p/{_PEERS[0]}" for port in range(1, 9)]
    packets = [one.question() for one in (open_to_all, keyed)] + [open_to_all.answer_for_all()]
    packets += [open_to_all.answer(told, ip_address("10.0.0.1"), 1) for told in (_TOLD, _ODD, many, [])]
    packets += [open_to_all.answer(_TOLD, ip_address("fd00::1"), 1, ttl_s=0)]
    # (what is sealed has random bytes in it, and an input must always be the same)
    return [*packets, keyed.answer([], ip_address("10.0.0.1"), 1).replace(b"\x00\x00\x0a", b"\x08sealed=x\x0a")]


_CORPUS = _corpus()


class MdnsPackets:
    """What anybody in a local network sends."""

    name = "mdns"
    weight = 0.3

    def __init__(self) -> None:
        self._readers = [Records(key, random.Random(2)) for key in (b"", _KEY)]

    def make(self, rng: random.Random) -> bytes:
        packet = rng.choice(_CORPUS)
        if rng.random() < 0.3:
            packet = splice(packet, rng.choice(_CORPUS), rng)
        return spoil_bytes(packet, rng) if rng.random() < 0.9 else packet

    def check(self, item: bytes) -> bool:
        is_read = False
        for reader in self._readers:
            told = reader.read(item)
            is_read |= bool(told)
            for found in told if isinstance(told, list) else ():
                assert is_ed25519(found.peer)
                assert 0 < len(found.addresses) <= MAX_ADDRESSES
                assert all(str(address).startswith(("/ip", "/dns")) for address in found.addresses)
            assert isinstance(told, Question) or len(told) <= MAX_READ
        return is_read
