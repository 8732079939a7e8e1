"""Strangers for tests: cheap connections with many keys, from any address."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.security_multistream import SecurityMultistream
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX

from mycelia.node.network import addresses
from mycelia.node.network.libp2p import negotiation
from mycelia.node.network.libp2p.network import Libp2pNetwork
from mycelia.node.network.libp2p.yamux import YamuxConnection
from mycelia.node.network.libp2p.yamux_stream import YamuxStream

NEAR, ELSEWHERE = "127.0.0.1", "127.0.0.2"


async def socket_to(network: Libp2pNetwork, host: str = NEAR) -> trio.SocketStream:
    """A TCP connection from ``host`` on which nothing is sent."""
    port = int(network.addresses()[0].split("/")[4])
    raw = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_STREAM)
    await raw.bind((host, 0))
    await raw.connect((NEAR, port))
    return trio.SocketStream(raw)


class Strangers:
    """Connections of peers with fresh keys, which send only what a test sends on them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.connections: list[YamuxConnection] = []

    async def connect(self, network: Libp2pNetwork, host: str = NEAR) -> YamuxConnection:
        """Adds a connection. Raises any error."""
        peer = ID(addresses.parse_peer(network.addresses()[0])[0])
        key = create_new_key_pair()
        noise = NoiseTransport(key, noise_privkey=create_noise_key_pair().private_key)
        socket = await socket_to(network, host)
        try:
            raw = RawConnection(TrioTCPStream(socket), True)
            secured = await SecurityMultistream({NOISE: noise}).secure_outbound(raw, peer)
            muxer = await MuxerMultistream({TProtocol(YAMUX): YamuxConnection}).new_conn(secured, peer)
        except BaseException:
            await trio.aclose_forcefully(socket)
            raise
        assert isinstance(muxer, YamuxConnection)
        self._nursery.start_soon(muxer.start)
        self.connections.append(muxer)
        return muxer

    @property
    def num_alive(self) -> int:
        return sum(not connection.is_closed for connection in self.connections)


async def opened(connection: YamuxConnection, protocol: str, said: bytes = b"") -> YamuxStream:
    """A stream on which the proposal of ``protocol`` and ``said`` are sent."""
    stream = await connection.open_stream()
    await stream.write(negotiation.proposal(protocol) + said)
    return stream


@asynccontextmanager
async def strangers() -> AsyncIterator[Strangers]:
    async with trio.open_nursery() as nursery:
        yield Strangers(nursery)
        nursery.cancel_scope.cancel()


def dial_from(network: Libp2pNetwork, host: str) -> None:
    """Makes ``network`` dial from the address ``host``."""
    (transport,) = network.host.swarm.transport_manager.get_transports()
    dial = transport._dial_resolved  # type: ignore[attr-defined]  # noqa: SLF001  no other way
    transport._dial_resolved = lambda address, source=None: dial(address, (host, 0))  # type: ignore[attr-defined]  # noqa: SLF001
