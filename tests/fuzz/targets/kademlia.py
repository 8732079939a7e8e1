"""Hostile bytes for the Kademlia table: as a request, which is refused, or answered within bounds from what all earlier
requests left; as an answer to a lookup; and as the addresses of a peer."""

import random
from contextlib import suppress
from types import SimpleNamespace
from typing import cast

from libp2p.kad_dht.pb.kademlia_pb2 import Message
from multiaddr import Multiaddr

from mycelia.node.network.libp2p.frames import length_of
from mycelia.node.network.libp2p.host import Host
from mycelia.node.network.libp2p.kademlia.messages import (
    MAX_ANSWER_BYTES,
    MAX_CONTACTS,
    Kind,
    Request,
    dialable,
    encode_request,
    parse_answer,
    parse_request,
)
from mycelia.node.network.libp2p.kademlia.server import KademliaServer
from mycelia.node.network.libp2p.outbound import MAX_DIAL_ADDRESSES
from mycelia.node.peer_id import ED25519_PREFIX, peer_text
from mycelia.proto.admission.subnets import subnet_of
from mycelia.proto.kademlia.keys import model_key, prefix_key
from mycelia.proto.kademlia.peer_buckets import PeerBuckets
from mycelia.proto.kademlia.provider_records import Contact
from mycelia.proto.wire.errors import RemoteError
from tests.fuzz.mutate import splice, spoil_bytes

INVARIANTS_EVERY = 512


def _peer(number: int) -> bytes:
    return ED25519_PREFIX + number.to_bytes(32, "big")


_PLAIN = Multiaddr("/ip4/127.0.0.1/tcp/4001").to_bytes()
_ADDRESSES = (
    _PLAIN,
    Multiaddr("/ip6/::1/tcp/4001").to_bytes(),
    Multiaddr("/dns4/example.org/tcp/1").to_bytes(),
    Multiaddr(f"/ip4/8.8.8.8/tcp/1/p2p/{peer_text(_peer(9))}/p2p-circuit").to_bytes(),
    b"\x36\x03x/y\x06\x00\x01",
)
_CONTACTS = tuple(Contact(_peer(number), _ADDRESSES[: number + 1]) for number in range(4))
_CORPUS = [
    *(encode_request(Request(kind, key)) for kind in Kind for key in (model_key(b"n"), b"/elsewhere", _peer(1))),
    *(
        encode_request(Request(Kind.ADD_PROVIDER, prefix_key(bytes((number,)) * 16), (_CONTACTS[number],)))
        for number in range(4)
    ),
    Message(
        type=Message.GET_PROVIDERS,
        key=model_key(b"n"),
        providerPeers=[
            Message.Peer(id=one.peer, addrs=one.addresses, connection=Message.CONNECTED) for one in _CONTACTS
        ],
        closerPeers=[Message.Peer(id=one.peer, addrs=one.addresses, signedRecord=b"x") for one in _CONTACTS] * 8,
        senderRecord=bytes(200),
        clusterLevelRaw=1,
    ).SerializeToString(),
]


class _Table(set[bytes]):
    """Connected peers, each from a network of its own."""

    def remote_address(self, peer: bytes) -> str:
        return f"/ip4/8.8.{peer[-1]}.8/tcp/1"

    def teller_address(self, peer: bytes) -> str:
        return self.remote_address(peer)

    def subnet(self, peer: bytes) -> str:
        return subnet_of(self.remote_address(peer))

    def peers(self) -> list[bytes]:
        return list(self)


class Target:
    name = "kademlia"
    weight = 2.0

    def __init__(self) -> None:
        self._num_checked = 0
        store = SimpleNamespace(get_protocols=lambda peer: [])
        host = SimpleNamespace(
            settings=SimpleNamespace(identity=SimpleNamespace(peer_id=_peer(0))),
            table=_Table(_peer(number) for number in range(3)),
            addresses_of=lambda peer: [Multiaddr(_PLAIN)],
            raw=SimpleNamespace(get_addrs=lambda: [Multiaddr(_PLAIN)] * 40, get_peerstore=lambda: store),
        )
        self._server = KademliaServer(
            cast(Host, host), PeerBuckets(_peer(0)), random.Random(1), lambda: float(self._num_checked)
        )

    def make(self, rng: random.Random) -> tuple[int, bytes]:
        """The number of the sending peer, and the bytes."""
        data = rng.choice(_CORPUS)
        way = rng.randrange(10)
        if way < 7:
            data = spoil_bytes(data, rng)
        elif way < 8:
            data = splice(data, rng.choice(_CORPUS), rng)
        elif way < 9:
            data = rng.randbytes(rng.randrange(100))
        return rng.randrange(4), data

    def check(self, item: tuple[int, bytes]) -> bool:
        number, data = item
        self._num_checked += 1
        if self._num_checked % INVARIANTS_EVERY == 0:
            self._server.check_invariants()
        _ends_well(data)
        try:
            request = parse_request(data)
        except RemoteError:
            return False
        answer = self._server.answer(request, _peer(number))
        assert len(answer) <= MAX_ANSWER_BYTES
        told = parse_answer(answer, request.kind)
        assert len(told.providers) <= MAX_CONTACTS and len(told.closer) <= MAX_CONTACTS
        return True


def _ends_well(data: bytes) -> None:
    """Reads the bytes as a frame's length, as an answer of each kind, and as the addresses to dial after it."""
    with suppress(RemoteError):
        length_of(data)
    for kind in Kind:
        try:
            answer = parse_answer(data, kind)
        except RemoteError:
            continue
        assert len(answer.providers) <= MAX_CONTACTS and len(answer.closer) <= MAX_CONTACTS
        for contact in (*answer.providers[:1], *answer.closer[:1]):
            assert len(dialable(contact.addresses, "/ip4/127.0.0.1/tcp/1")) <= MAX_DIAL_ADDRESSES
            assert all("127.0.0.1" not in str(one) for one in dialable(contact.addresses, "/ip4/8.8.8.8/tcp/1"))
