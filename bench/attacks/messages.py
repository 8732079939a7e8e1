"""Kademlia and gossip messages of hostile peers; ``mycelia bench attacks`` measures their effect."""

from collections.abc import Iterable

from libp2p.abc import INetStream
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_uvarint

from mycelia.node.network.libp2p.kademlia.messages import KAD_PROTOCOL
from mycelia.node.network.libp2p.network import Libp2pNetwork

__all__ = ["GOSSIP_PROTOCOL", "KAD_PROTOCOL", "add_provider", "many_addresses", "prunes", "say"]

GOSSIP_PROTOCOL = str(PROTOCOL_ID_V11)


async def say(network: Libp2pNetwork, victim: bytes, protocol: str, messages: Iterable[bytes]) -> INetStream:
    """Opens a stream and sends all of ``messages``, each after its length."""
    stream = await network.host.outbound.open(victim, protocol)
    for data in messages:
        await stream.write(encode_uvarint(len(data)) + data)
    return stream


def add_provider(key: bytes, peer: bytes, addresses: list[bytes]) -> bytes:
    message = Message(type=Message.ADD_PROVIDER, key=key)
    message.providerPeers.add(id=peer, addrs=addresses)
    return message.SerializeToString()


def many_addresses(count: int) -> list[bytes]:
    """Different addresses of 8 bytes."""
    return [b"\x04" + (0x0800_0000 + number).to_bytes(4, "big") + b"\x06\x10\x00" for number in range(count)]


def prunes(topics: Iterable[str], back_off_s: int = 1 << 40) -> bytes:
    """One RPC that prunes this node from each topic."""
    control = rpc_pb2.ControlMessage(prune=[rpc_pb2.ControlPrune(topicID=one, backoff=back_off_s) for one in topics])
    return rpc_pb2.RPC(control=control).SerializeToString()
