"""Kademlia's messages as libp2p writes them (https://github.com/libp2p/specs/tree/master/kad-dht), within bounds: a
stranger's message is cut before it is used, and answers are small.

Signed peer records are neither sent nor read. A peer's own addresses are known from its connection; those of other
peers are hints that a dial has to prove.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice

from libp2p.kad_dht.pb.kademlia_pb2 import Message
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.libp2p.frames import parsed
from mycelia.node.network.libp2p.outbound import MAX_DIAL_ADDRESSES
from mycelia.node.peer_id import is_ed25519
from mycelia.proto.kademlia.provider_records import Contact
from mycelia.proto.wire.errors import RemoteError

KAD_PROTOCOL = "/mycelia/kad/1.0.0"
MAX_REQUEST_BYTES = 16 * 1_024
"""A node's own record with 16 addresses takes 1 to 2 kB."""
MAX_ANSWER_BYTES = 64 * 1_024
"""libp2p's has up to 40 peers, each with a signed record of all its addresses: some 20 kB."""
MAX_KEY_BYTES = 128
MAX_CONTACTS = 20
"""Bound of the peers in one answer, and of its providers."""
MAX_OWN_ADDRESSES = 16
"""Addresses that a provider may announce of itself; MAX_DIAL_ADDRESSES of them are kept."""
MAX_ADDRESSES = 8
"""Addresses of another peer that are kept. They are parsed only before a dial, since parsing takes up to 0.5 ms."""
MAX_ADDRESS_BYTES = 256


class Kind(IntEnum):
    """The kinds of requests."""

    ADD_PROVIDER = Message.ADD_PROVIDER
    GET_PROVIDERS = Message.GET_PROVIDERS
    FIND_NODE = Message.FIND_NODE
    PING = Message.PING


@dataclass(frozen=True)
class Request:
    """A peer's request. providers: only in ADD_PROVIDER."""

    kind: Kind
    key: bytes
    providers: tuple[Contact, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A peer's answer: providers of the key, and peers that are nearer to it."""

    kind: Kind
    key: bytes
    providers: tuple[Contact, ...] = ()
    closer: tuple[Contact, ...] = ()


def parse_request(data: bytes) -> Request:
    """The request in a stranger's bytes. Raises RemoteError."""
    message = parsed(Message(), data, MAX_REQUEST_BYTES)
    try:
        kind = Kind(message.type)
    except ValueError as exc:
        raise RemoteError(f"asks for what is not offered: {message.type}") from exc
    if len(message.key) > MAX_KEY_BYTES or not (message.key or kind is Kind.PING):
        raise RemoteError(f"a key of {len(message.key)} bytes")
    providers = _contacts(message.providerPeers, MAX_OWN_ADDRESSES) if kind is Kind.ADD_PROVIDER else ()
    return Request(kind, message.key, providers)


def parse_answer(data: bytes, kind: Kind) -> Answer:
    """The answer to a request of ``kind`` in a stranger's bytes. Raises RemoteError."""
    message = parsed(Message(), data, MAX_ANSWER_BYTES)
    if int(message.type) != kind:
        raise RemoteError(f"answers {message.type} to {kind}")
    providers, closer = (_contacts(peers, MAX_ADDRESSES) for peers in (message.providerPeers, message.closerPeers))
    return Answer(kind, message.key[:MAX_KEY_BYTES], providers, closer)


def encode_request(request: Request) -> bytes:
    return _encode(request.kind, request.key, request.providers, ())


def encode_answer(answer: Answer, is_connected: Iterable[bytes] = ()) -> bytes:
    """is_connected: peers that the answering node is connected with."""
    return _encode(answer.kind, answer.key, answer.providers, answer.closer, frozenset(is_connected))


def dialable(told: Iterable[bytes], teller: str) -> list[Multiaddr]:
    """The addresses of a peer that another peer sent and that may be dialled. teller: the multiaddr of the connection
    with that other peer."""
    return addresses.told_addresses(map(Multiaddr, told), teller, MAX_DIAL_ADDRESSES)


def _contacts(peers: Iterable[Message.Peer], max_addresses: int) -> tuple[Contact, ...]:
    """The first MAX_CONTACTS peers, each once."""
    found: dict[bytes, Contact] = {}
    for peer in islice(peers, MAX_CONTACTS):
        if is_ed25519(peer.id) and peer.id not in found:
            told = (one for one in islice(peer.addrs, max_addresses) if len(one) <= MAX_ADDRESS_BYTES)
            found[peer.id] = Contact(peer.id, tuple(told))
    return tuple(found.values())


def _encode(
    kind: Kind,
    key: bytes,
    providers: Iterable[Contact],
    closer: Iterable[Contact],
    connected: frozenset[bytes] = frozenset(),
) -> bytes:
    message = Message(type=Message.MessageType.Name(kind), key=key)
    for contacts, field in ((providers, message.providerPeers), (closer, message.closerPeers)):
        for contact in islice(contacts, MAX_CONTACTS):
            is_connected = contact.peer in connected
            connection = Message.CONNECTED if is_connected else Message.CAN_CONNECT
            field.add(id=contact.peer, addrs=contact.addresses, connection=connection)
    return message.SerializeToString()
