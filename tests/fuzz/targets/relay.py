"""Hostile messages of the relay protocol, to the relay and to the node behind it: a status, or the stream ends."""

import random
from types import SimpleNamespace
from typing import Any

import trio
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, Reservation, Status, StopMessage
from libp2p.utils.varint import encode_varint_prefixed

from mycelia.node.network.libp2p.circuits import HOP_PROTOCOL, STOP_PROTOCOL
from mycelia.node.network.libp2p.closing import BROKEN
from mycelia.node.network.libp2p.relay_server import RelayServer
from mycelia.node.network.libp2p.relaying import Relaying
from mycelia.node.network.network import NetworkError
from mycelia.proto.admission.subnets import subnet_of
from tests.fuzz.mutate import splice, spoil_bytes

_PEER, _OTHER = (bytes.fromhex("002408011220") + bytes([number]) * 32 for number in (1, 2))
_CORPUS = [
    message.SerializeToString()
    for message in (
        HopMessage(type=HopMessage.RESERVE),
        HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=_OTHER)),
        HopMessage(type=HopMessage.CONNECT, peer=PeerId(id=_PEER, addrs=[b"\x04\x08\x08\x08\x08\x06\x00\x01"])),
        HopMessage(type=HopMessage.CONNECT),
        HopMessage(type=HopMessage.STATUS, status=Status.OK, reservation=Reservation(expire=2**63)),
        StopMessage(type=StopMessage.CONNECT, peer=PeerId(id=_OTHER)),
        StopMessage(type=StopMessage.STATUS, status=Status.OK),
    )
]


class _Stream:
    """A stream with the given pieces, and then the end."""

    def __init__(self, incoming: bytes) -> None:
        self._incoming = incoming
        self.written = b""
        connection = SimpleNamespace(peer_id=ID(_PEER), get_connection_type=lambda: ConnectionType.DIRECT)
        self.muxed_conn = connection

    async def read(self, num_bytes: int) -> bytes:
        data, self._incoming = self._incoming[:num_bytes], self._incoming[num_bytes:]
        return data

    async def write(self, data: bytes) -> None:
        self.written += data

    async def close(self) -> None: ...


class RelayMessages:
    """One message, and which of the two receives it."""

    name = "relay"

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {}

        async def unreachable(*_: object, **__: object) -> None:
            raise NetworkError("nobody is there")

        host = SimpleNamespace(
            inbound=SimpleNamespace(busy=[], serve_circuit=unreachable),
            outbound=SimpleNamespace(open=unreachable),
            serve=self._handlers.__setitem__,
        )
        table = _Table()
        self._server = RelayServer(host, table, True)  # type: ignore[arg-type]
        Relaying(host, table, random.Random(1), lambda: None)  # type: ignore[arg-type]

    def make(self, rng: random.Random) -> tuple[bytes, str]:
        data = rng.choice(_CORPUS)
        if rng.random() < 0.6:
            data = spoil_bytes(data, rng)
        if rng.random() < 0.2:
            data = splice(data, rng.choice(_CORPUS), rng)
        way = rng.random()
        framed = encode_varint_prefixed(data)
        if way < 0.1:
            framed = spoil_bytes(framed, rng)
        elif way < 0.2:
            framed = framed[: rng.randrange(len(framed) + 1)]
        return framed, rng.choice((HOP_PROTOCOL, STOP_PROTOCOL))

    def check(self, item: tuple[bytes, str]) -> bool:
        data, protocol = item
        stream = _Stream(data)

        async def served() -> int:
            await self._handlers[protocol](stream)
            return self._server.relayed().circuits

        try:
            num_circuits = trio.run(served)
        except (*BROKEN, trio.TooSlowError):
            return False
        except Exception as exc:
            if type(exc).__name__ == "DecodeError":
                return False
            raise
        assert stream.written and not num_circuits
        return True


class _Table:
    """Two connected peers."""

    def __contains__(self, peer: object) -> bool:
        return peer in (_PEER, _OTHER)

    def subnet(self, peer: bytes) -> str:
        return subnet_of("/ip4/8.8.8.8/tcp/1")
