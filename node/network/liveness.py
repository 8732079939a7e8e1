"""Pings every connection, all at once: measures round trips and ends connections whose other end is silent.

A stopped process or a dropped cable closes no socket. Without this, its peers would believe in it for ever.
"""

import os
import time

import structlog
import trio
from libp2p.abc import INetConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.protocol_muxer.exceptions import ProtocolNotSupportedError
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

from node.network.deadlines import shielded
from node.network.peers import PeerTable, peer_of
from node.peer_id import peer_text

log = structlog.get_logger()

PING_PROTOCOL = TProtocol("/ipfs/ping/1.0.0")
PING_BYTES = 32
PING_INTERVAL_S = 4.0
"""Below the 10 s after which libp2p's responder ends an idle ping stream. With the deadline, a silent peer is dropped
after 5 to 9 s."""
PING_DEADLINE_S = 5.0

_ERRORS = (BaseLibp2pError, OSError, ValueError, trio.BrokenResourceError, trio.ClosedResourceError)


async def watch(connection: INetConn, table: PeerTable) -> None:
    """Runs as long as ``connection`` lives; closes it when it no longer answers."""
    peer = peer_of(connection)
    stream: INetStream | None = None
    while not connection.is_closed:
        started = trio.current_time()
        try:
            with trio.fail_after(PING_DEADLINE_S):
                if stream is None:
                    stream = await _open(connection)
                await _ping(stream, peer, table)
        except ProtocolNotSupportedError:
            return  # it did answer, and there is nothing to ping
        except trio.TooSlowError:
            # Were we the ones who slept (a stopped process, a suspended laptop)? Then the answer may lie unread.
            if trio.current_time() - started < 2 * PING_DEADLINE_S:
                log.info("peer is silent", peer=peer_text(peer))
                break
            stream = None
            continue
        except _ERRORS as exc:
            # Refused (a responder takes two ping streams a peer) or ended, so somebody is there; and if it is the
            # connection that broke, libp2p notices by itself.
            log.debug("ping failed", peer=peer_text(peer), error=repr(exc))
            stream = None
        await trio.sleep(PING_INTERVAL_S)
    try:
        await connection.close()
    except _ERRORS as exc:
        log.debug("closing a silent connection failed", peer=peer_text(peer), error=repr(exc))


async def _open(connection: INetConn) -> INetStream:
    """On this very connection: host.new_stream would choose one of the peer's."""
    stream = await connection.new_stream()
    try:
        await MultiselectClient().select_one_of([PING_PROTOCOL], MultiselectCommunicator(stream), int(PING_DEADLINE_S))
    except BaseException:
        with shielded(1):
            await stream.reset()
        raise
    return stream


async def _ping(stream: INetStream, peer: bytes, table: PeerTable) -> None:
    """One round trip. Raises ValueError for a wrong answer."""
    sent_at = time.perf_counter()
    payload = os.urandom(PING_BYTES)
    await stream.write(payload)
    answer = b""
    while len(answer) < PING_BYTES:
        answer += await stream.read(PING_BYTES - len(answer))
    if answer != payload:
        raise ValueError("the answer to a ping differs from the ping")
    table.record_round_trip(peer, time.perf_counter() - sent_at)
