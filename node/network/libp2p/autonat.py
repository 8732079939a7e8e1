"""AutoNAT for other implementations of libp2p: tells a peer whether it can be dialled. Mycelia's own nodes ask by
``queries/reach.py``.

The protocol is version 1 of https://github.com/libp2p/specs/blob/master/autonat/autonat-v1.md. A dial goes only to the
address that the question came from, at a port that the peer names, so nobody can direct it at others. It ends after the
handshake, which proves that the peer itself answers there. Dials are as rare as those of a ``reach-query``.
"""

from collections.abc import Iterable

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.connection_types import ConnectionType
from libp2p.host.autonat.pb.autonat_pb2 import Message
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.libp2p.frames import Frames, parsed
from mycelia.node.network.libp2p.host import Host
from mycelia.node.network.libp2p.peers import remote_address
from mycelia.proto.admission.limits import Limits, TokenBucket
from mycelia.proto.admission.subnets import subnet_of
from mycelia.proto.wire.errors import RemoteError

log = structlog.get_logger()

AUTONAT_PROTOCOL = "/libp2p/autonat/1.0.0"
MAX_MESSAGE_BYTES = 8_192
MAX_DIALS = 2
"""Addresses of one question that are dialled."""
DIAL_DEADLINE_S = 3.0
RATE, BURST = 0.2, 10.0
"""Questions per second for which this node dials, for all peers together."""
SUBNET_RATE, SUBNET_BURST = 1 / 60, 4.0
"""The same for one subnet."""


class AutoNat:
    """Answers the questions of peers. The constructor begins to serve."""

    def __init__(self, host: Host) -> None:
        self._upgrader = host.swarm.upgrader
        self._keys = host.keys
        self._bucket = TokenBucket(RATE, BURST, 0.0)
        self._limits = Limits[str](SUBNET_RATE, SUBNET_BURST)
        host.serve(AUTONAT_PROTOCOL, self.serve_stream)

    async def serve_stream(self, stream: INetStream) -> None:
        """Answers one question. Raises NetworkError, and RemoteError for bytes that are no question."""
        frames = Frames(stream, MAX_MESSAGE_BYTES)
        data = await frames.read()
        if data is None:
            raise RemoteError("no question")
        request, muxed = parsed(Message(), data, MAX_MESSAGE_BYTES), stream.muxed_conn
        is_direct = muxed.get_connection_type() == ConnectionType.DIRECT
        told = await self._answer(request, muxed.peer_id, remote_address(muxed) if is_direct else "")
        await frames.write(Message(type=Message.DIAL_RESPONSE, dialResponse=told).SerializeToString())
        await frames.close()

    async def _answer(self, request: Message, peer: ID, seen_at: str) -> Message.DialResponse:
        """seen_at: the multiaddr of the peer's end of the connection; empty: it is at a relay."""
        if request.type != Message.DIAL or request.dial.peer.id != peer.to_bytes():
            return _refusal(Message.E_BAD_REQUEST, "this is no question of a peer for itself")
        candidates = dialable(request.dial.peer.addrs, seen_at)
        if not candidates:
            return _refusal(Message.E_DIAL_REFUSED, "none of the addresses is the one that this connection comes from")
        now = trio.current_time()
        if not (self._limits.take(subnet_of(seen_at), now) and self._bucket.take(now)):
            return _refusal(Message.E_DIAL_REFUSED, "asked too often")
        for address in candidates:
            if await self._is_reached(peer, address):
                return Message.DialResponse(status=Message.OK, addr=address.to_bytes())
        return _refusal(Message.E_DIAL_ERROR, "nothing answers there, or another node")

    async def _is_reached(self, peer: ID, address: Multiaddr) -> bool:
        with trio.move_on_after(DIAL_DEADLINE_S):
            try:
                host, port = addresses.host_of(str(address)), addresses.port_of(str(address))
                async with await trio.open_tcp_stream(host, port) as socket:
                    raw = self._keys.dialled(RawConnection(TrioTCPStream(socket), True))
                    await self._upgrader.upgrade_security(raw, True, peer)
                    return True
            except Exception as exc:  # noqa: BLE001  supervisor of a dial: the other end may cause any error
                log.debug("autonat_dial_failed", address=str(address), error=repr(exc))
        return False


def dialable(told: Iterable[bytes], seen_at: str) -> list[Multiaddr]:
    """The addresses in a question that may be dialled: those at the IP address of ``seen_at``."""
    host = addresses.host_of(seen_at)
    usable = addresses.in_dial_order(addresses.readable(told), addresses.MAX_TOLD)
    own = [one for one in usable if addresses.host_of(str(one)) == host and not addresses.is_circuit(str(one))]
    return own[:MAX_DIALS] if host else []


def _refusal(status: Message.ResponseStatus.ValueType, why: str) -> Message.DialResponse:
    return Message.DialResponse(status=status, statusText=why)
