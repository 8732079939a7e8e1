"""Messages of hostile peers to Kademlia and gossip, in addition to those of ``bench/attacks/messages.py``."""

import secrets
from contextlib import suppress

import trio
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.envelope import seal_record
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from mycelia.bench.attacks.messages import KAD_PROTOCOL, say
from mycelia.node.network.libp2p.network import Libp2pNetwork
from mycelia.node.network.network import NetworkError

MAX_ANSWER_BYTES = 1 << 24


async def idle_streams(
    network: Libp2pNetwork, victim: bytes, count: int, protocol: str, first: bytes = b"\x80"
) -> list[INetStream]:
    """Opens streams and sends only ``first``, half of a length, on each. Leaves out those that take over a second."""
    opened: list[INetStream] = []
    for _ in range(count):
        with trio.move_on_after(1), suppress(NetworkError):
            stream = await network.host.outbound.open(victim, protocol)
            opened.append(stream)
            if first:
                await stream.write(first)
    return opened


async def ask(network: Libp2pNetwork, victim: bytes, data: bytes) -> bytes:
    """The answer of the victim's Kademlia to ``data``. Raises the stream's errors."""
    stream = await say(network, victim, KAD_PROTOCOL, [data])
    answer = await read_varint_prefixed_bytes_limited(stream, MAX_ANSWER_BYTES)
    await stream.close()
    return answer


def get_providers(key: bytes) -> bytes:
    return Message(type=Message.GET_PROVIDERS, key=key).SerializeToString()


def prune_with_peers(topic: str, addresses: list[str]) -> bytes:
    """A PRUNE that names a peer with a signed record for each address."""
    prune = rpc_pb2.ControlPrune(topicID=topic)
    for address in addresses:
        pair = create_new_key_pair(secrets.token_bytes(32))
        peer = ID.from_pubkey(pair.public_key)
        record = seal_record(PeerRecord(peer, [Multiaddr(address)], 1), pair.private_key)
        prune.peers.add(peerID=peer.to_bytes(), signedPeerRecord=record.marshal_envelope())
    return rpc_pb2.RPC(control=rpc_pb2.ControlMessage(prune=[prune])).SerializeToString()


def wrongly_signed(topic: str, count: int) -> bytes:
    """Messages of authors that do not exist, with invalid signatures."""
    rpc = rpc_pb2.RPC()
    for number in range(count):
        author = create_new_key_pair(secrets.token_bytes(32)).public_key
        rpc.publish.add(
            from_id=ID.from_pubkey(author).to_bytes(),
            data=bytes(20),
            seqno=number.to_bytes(8, "big"),
            topicIDs=[topic],
            signature=secrets.token_bytes(64),
        )
    return rpc.SerializeToString()
