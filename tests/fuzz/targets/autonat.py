"""Hostile questions of AutoNAT: an answer or the end of the stream, and no dial elsewhere than to the asking peer."""

import random
from types import SimpleNamespace
from typing import Any

import trio
from libp2p.connection_types import ConnectionType
from libp2p.host.autonat.pb.autonat_pb2 import Message
from libp2p.peer.id import ID
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from mycelia.node.network.addresses import host_of
from mycelia.node.network.libp2p.autonat import AUTONAT_PROTOCOL, MAX_DIALS, MAX_MESSAGE_BYTES, AutoNat, dialable
from mycelia.node.network.libp2p.frames import parsed
from mycelia.node.network.network import NetworkError
from mycelia.proto.wire.errors import RemoteError
from tests.fuzz.mutate import splice, spoil_bytes

_PEER = bytes.fromhex("002408011220") + b"\1" * 32
_SEEN = ("/ip4/45.1.2.3/tcp/9", "/ip6/2a10::1/tcp/9", "/ip4/127.0.0.1/tcp/9", "")
_TOLD = [
    Multiaddr(text).to_bytes()
    for text in (
        "/ip4/45.1.2.3/tcp/4001",
        "/ip6/2a10::1/tcp/4001",
        "/ip4/127.0.0.1/tcp/6379",
        "/ip4/45.1.2.3/udp/1/quic-v1",
        "/dns4/internal.example/tcp/1",
        "/ip4/45.1.2.3/tcp/1/p2p/12D3KooWAfZBCCDd6BbP7yJHgFv6FAzLRyDjVYDd9K7PhFBgnQ3L/p2p-circuit",
    )
]


class _Stream:
    """A stream through a relay, which brings the given bytes and then ends."""

    def __init__(self, incoming: bytes) -> None:
        self._incoming = incoming
        self.written = b""
        self.muxed_stream = self
        self.muxed_conn = SimpleNamespace(peer_id=ID(_PEER), get_connection_type=lambda: ConnectionType.RELAYED)

    async def read(self, num_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        data, self._incoming = self._incoming[:num_bytes], self._incoming[num_bytes:]
        return data

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.written += data

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()


class AutoNatQuestions:
    """One question, and where the connection comes from that it may be on."""

    name = "autonat"
    weight = 0.2

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {}
        host = SimpleNamespace(
            swarm=SimpleNamespace(upgrader=None),
            keys=None,
            serve=self._handlers.__setitem__,
        )
        AutoNat(host)  # type: ignore[arg-type]

    def make(self, rng: random.Random) -> tuple[bytes, str]:
        told = [rng.choice(_TOLD) for _ in range(rng.choice((0, 1, 4, 90)))]
        told = [spoil_bytes(one, rng) if rng.random() < 0.3 else one for one in told]
        peer = Message.PeerInfo(id=rng.choice((_PEER, _PEER, b"", rng.randbytes(38))), addrs=told)
        kind = rng.choice((Message.DIAL, Message.DIAL, Message.DIAL_RESPONSE))
        data = Message(type=kind, dial=Message.Dial(peer=peer)).SerializeToString()
        if rng.random() < 0.5:
            data = spoil_bytes(data, rng)
        if rng.random() < 0.1:
            data = splice(data, data, rng)
        return data, rng.choice(_SEEN)

    def check(self, item: tuple[bytes, str]) -> bool:
        data, seen_at = item
        try:
            request = parsed(Message(), data, MAX_MESSAGE_BYTES)
        except RemoteError:
            return False
        found = dialable(request.dial.peer.addrs, seen_at)
        assert len(found) <= MAX_DIALS and all(host_of(str(one)) == host_of(seen_at) != "" for one in found)
        stream = _Stream(encode_varint_prefixed(data))
        try:
            trio.run(self._handlers[AUTONAT_PROTOCOL], stream)
        except (RemoteError, NetworkError):
            return False
        assert stream.written
        return True
