"""Hostile messages of hole punching, to the node that asks and to the one that is asked: few public addresses are
dialled, whatever is named."""

import random
from types import SimpleNamespace
from typing import Any

import trio
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.libp2p.circuits import ERRORS
from mycelia.node.network.libp2p.punching import MAX_ADDRESSES, NUM_ROUNDS, Punching
from mycelia.node.network.network import NetworkError
from mycelia.proto.admission.subnets import subnet_of
from tests.fuzz.mutate import splice, spoil_bytes
from tests.fuzz.targets.identify import TOLD

_ME, _PEER = (bytes.fromhex("002408011220") + bytes([number]) * 32 for number in (1, 2))


class _Stream:
    """A stream with the given bytes, and then the end."""

    def __init__(self, incoming: bytes) -> None:
        self._incoming = incoming
        self.muxed_conn = SimpleNamespace(
            peer_id=ID(_PEER), get_connection_type=lambda: ConnectionType.RELAYED, is_initiator=True
        )

    async def read(self, num_bytes: int) -> bytes:
        data, self._incoming = self._incoming[:num_bytes], self._incoming[num_bytes:]
        return data

    async def write(self, data: bytes) -> None: ...

    async def reset(self) -> None: ...


class PunchingMessages:
    """The bytes of the peer, and whether it asks."""

    name = "punching"
    weight = 0.3

    def __init__(self) -> None:
        self._dialled: list[Multiaddr] = []
        handlers: dict[str, Any] = {}

        def take_told(address: Multiaddr) -> None:
            self._dialled.append(address)
            raise NetworkError("nobody is there")

        async def open_on(*_: object) -> _Stream:
            return self._stream

        self._host = SimpleNamespace(
            settings=SimpleNamespace(identity=SimpleNamespace(peer_id=_ME)),
            serve=handlers.__setitem__,
            observed=SimpleNamespace(punchable=lambda ports: [Multiaddr("/ip4/45.10.1.1/tcp/7117")]),
            listening_ports=lambda: {"ip4": 7117},
            inbound=SimpleNamespace(punching={}),
            outbound=SimpleNamespace(take_told=take_told, open_on=open_on),
        )
        self._handlers = handlers

    def make(self, rng: random.Random) -> tuple[bytes, bool]:
        data = b""
        for kind in (HolePunch.CONNECT, HolePunch.SYNC) * rng.choice((1, 1, 1, 4)):
            named = [rng.choice(TOLD) for _ in range(rng.choice((0, 1, 4, 40)))]
            named = [spoil_bytes(one, rng) if rng.random() < 0.3 else one for one in named]
            if rng.random() < 0.3:
                named.append(splice(rng.choice(TOLD), rng.choice(TOLD), rng))
            message = HolePunch(type=kind, ObsAddrs=named).SerializeToString()
            data += encode_varint_prefixed(spoil_bytes(message, rng) if rng.random() < 0.2 else message)
        return spoil_bytes(data, rng) if rng.random() < 0.2 else data, rng.random() < 0.5

    def check(self, item: tuple[bytes, bool]) -> bool:
        data, asks = item
        self._dialled.clear()
        self._stream = _Stream(data)
        punching = Punching(self._host, _Table())  # type: ignore[arg-type]
        (serve,) = self._handlers.values()
        try:
            if asks:
                trio.run(serve, self._stream)
            else:
                trio.run(punching.punch, SimpleNamespace(muxed_conn=self._stream.muxed_conn))  # type: ignore[arg-type]
        except (*ERRORS, trio.TooSlowError, NetworkError):
            pass
        assert all(map(addresses.is_plain_public, self._dialled))
        assert len(self._dialled) <= MAX_ADDRESSES * NUM_ROUNDS and not self._host.inbound.punching
        return bool(self._dialled)


class _Table:
    """The peer has just disconnected, so that no dial is waited for."""

    def __contains__(self, peer: object) -> bool:
        return False

    def is_direct(self, peer: bytes) -> bool:
        return False

    def subnet(self, peer: bytes) -> str:
        return subnet_of("/ip4/8.8.8.8/tcp/1")
