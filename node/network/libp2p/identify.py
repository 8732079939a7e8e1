"""libp2p's identify protocol, the receiving side: the addresses and protocols that a peer announces of itself.

libp2p's own code reads a megabyte of them, keeps a thousand addresses and every protocol's name, and dials any address.
Here a message is small, only addresses that the peer may announce are kept (``addresses.told_addresses``), and signed
records are not read, since this node passes none on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.identity.identify_push.identify_push import ID_PUSH, push_identify_to_peers
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.libp2p.closing import reset_stream
from mycelia.node.network.libp2p.frames import parsed
from mycelia.node.network.libp2p.observed import Observed
from mycelia.node.network.libp2p.outbound import ADDRESS_TTL_S
from mycelia.node.network.libp2p.peers import PeerTable, is_relayed, remote_address
from mycelia.node.network.libp2p.yamux import YamuxConnection
from mycelia.node.peer_id import peer_text
from mycelia.proto.admission.subnets import subnet_of

log = structlog.get_logger()

MAX_MESSAGE_BYTES = 16_384
DEADLINE_S = 10.0
MAX_ADDRESSES, MAX_PROTOCOLS, MAX_PROTOCOL_CHARS = 16, 64, 128


@dataclass(frozen=True)
class Identified:
    """The part of a peer's message that is used."""

    protocols: tuple[str, ...]
    addresses: tuple[Multiaddr, ...]
    observed: tuple[str, int]
    """The IP address and port from which the peer sees this node's connection come; ("", 0): not told."""


def identified(
    data: bytes, remote_address: str, may_be_dialled: Callable[[Multiaddr], bool] = lambda address: False
) -> Identified:
    """The content of a stranger's message. remote_address: the multiaddr of the connection that it came on.
    may_be_dialled: addresses that this peer may announce in any case. Raises RemoteError."""
    message = parsed(Identify(), data, MAX_MESSAGE_BYTES)
    named = [name for name in message.protocols[:MAX_PROTOCOLS] if len(name) <= MAX_PROTOCOL_CHARS]
    told = addresses.readable(message.listen_addrs)
    usable = addresses.told_addresses(told, remote_address, MAX_ADDRESSES)
    more = [one for one in addresses.in_dial_order(told, MAX_ADDRESSES) if one not in usable and may_be_dialled(one)]
    seen = addresses.readable([message.observed_addr])
    return Identified(tuple(named), (*usable, *more), _host_and_port(seen[0]) if seen else ("", 0))


def _host_and_port(address: Multiaddr) -> tuple[str, int]:
    try:
        text = str(address)
    except addresses.UNREADABLE:
        return "", 0
    return addresses.host_of(text), addresses.port_of(text)


async def push_identify(host: BasicHost) -> None:
    """Tells the connected peers this node's present addresses and protocols."""
    with trio.move_on_after(DEADLINE_S):
        await push_identify_to_peers(host)


def take_over_identify(
    host: BasicHost, table: PeerTable, observed: Observed, may_be_dialled: Callable[[bytes, Multiaddr], bool]
) -> None:
    """Replaces libp2p's own identify on ``host``: the question to each new peer, and the updates that peers push. What
    peers report of this node's own address goes to ``observed``. may_be_dialled: see ``identified``, for each peer."""

    async def learn(stream: INetStream) -> None:
        peer_id = stream.muxed_conn.peer_id
        with trio.fail_after(DEADLINE_S):
            data = await read_varint_prefixed_bytes_limited(stream, MAX_MESSAGE_BYTES)
        peer = peer_id.to_bytes()
        said = identified(data, table.teller_address(peer), partial(may_be_dialled, peer))
        if peer_id.to_bytes() not in table:
            return
        store = host.get_peerstore()
        try:
            store.clear_addrs(peer_id)
            store.clear_protocol_data(peer_id)
        except PeerStoreError:
            log.debug("first_identified", peer=peer_text(peer_id.to_bytes()))
        store.add_addrs(peer_id, list(said.addresses), ADDRESS_TTL_S)
        store.add_protocols(peer_id, list(said.protocols))
        connection = stream.muxed_conn
        if isinstance(connection, YamuxConnection) and connection.is_initiator and not is_relayed(connection):
            observed.note(subnet_of(remote_address(connection)), *said.observed, connection.local_address[1])
        table.note_announced(peer_id.to_bytes())

    async def ask(peer_id: ID, *, reason: str) -> None:
        try:
            with trio.fail_after(DEADLINE_S):
                stream = await host.new_stream(peer_id, [TProtocol(IDENTIFY)])
            try:
                await learn(stream)
            finally:
                await reset_stream(stream)
        except Exception as exc:  # noqa: BLE001  supervisor: libp2p runs it in a system task, which must not fail
            log.debug("identify_failed", peer=peer_text(peer_id.to_bytes()), reason=reason, error=repr(exc))

    async def hear(stream: INetStream) -> None:
        await learn(stream)
        await stream.close()

    host._identify_peer = ask  # type: ignore[method-assign]
    host.set_stream_handler(ID_PUSH, hear)
