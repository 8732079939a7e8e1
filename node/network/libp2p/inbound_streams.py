"""Streams that other peers open: how many a node accepts, how long they may be silent, and a supervisor for each, so
that a stream that fails ends only itself.

Each stream holds a place that is counted by subnet; some places are kept for nodes. A stream has a few seconds for
its first message, and until then it may lose its place to another. After that it keeps its place. A peer has one stream
for control messages and one for gossip: when it opens a second, it has forgotten the older one, which is ended.

Nothing here is an offence: a stream too many is reset. ``inbound.py`` bounds how fast a peer opens streams.
"""

from collections.abc import Awaitable, Callable

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.network.stream.net_stream import NetStream
from libp2p.network.swarm import Swarm
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11

from mycelia.node.network.libp2p import negotiation
from mycelia.node.network.libp2p.closing import reset_stream
from mycelia.node.network.libp2p.inbound import Inbound
from mycelia.node.network.libp2p.peers import is_relayed
from mycelia.node.network.libp2p.yamux_stream import YamuxStream
from mycelia.node.peer_id import peer_text
from mycelia.proto.admission.places import Admission

log = structlog.get_logger()

MAX_STREAMS_PER_PEER = 64
MAX_STREAMS = 512
KEPT_STREAMS = 64
"""Places that are kept for peers that said hello."""
FIRST_MESSAGE_S = 10.0
"""Time from the opening of a stream until its protocol is agreed on and its first byte has arrived."""
PENDING_S = 1.0
"""A stream without a first message for this long may lose its place also to a stream of its own subnet."""

Handler = Callable[[INetStream], Awaitable[None]]


class InboundStreams:
    """The inbound streams of one host. The constructor replaces libp2p's handler at once."""

    def __init__(self, host: BasicHost, swarm: Swarm, connections: Inbound) -> None:
        self._host = host
        self._connections = connections
        self._places: Admission[trio.CancelScope] = Admission(
            MAX_STREAMS, MAX_STREAMS_PER_PEER, KEPT_STREAMS, PENDING_S
        )
        self.one_each: set[str] = {PROTOCOL_ID_V11}
        """Protocols of which a peer has only one stream."""
        self._only: dict[tuple[bytes, str], tuple[trio.CancelScope, bool]] = {}
        """(peer, one of these protocols) -> the scope of its stream, and whether that leads through a relay."""
        # An exception in any inbound handler ends the whole swarm, and a peer may open any number of streams.
        swarm.set_stream_handler(self._serve)

    def __len__(self) -> int:
        return len(self._places)

    async def _serve(self, stream: INetStream) -> None:
        """Supervisor of one inbound stream, from before its protocol is known to its end."""
        connection = stream.muxed_conn
        peer, subnet = connection.peer_id.to_bytes(), self._connections.subnet(connection)
        is_known, is_proven = self._connections.is_wanted(connection), self._connections.is_proven(connection)
        scope = trio.CancelScope()
        given_up = self._places.admit(scope, peer, subnet, trio.current_time(), is_known, is_proven)
        if given_up is None:
            await reset_stream(stream)
            return
        for other in given_up:
            other.cancel()
        is_served = False
        try:
            with scope:
                is_served = await self._serve_admitted(stream, peer, scope)
        except Exception as exc:  # noqa: BLE001
            log.debug("inbound stream failed", peer=peer_text(peer), error=repr(exc))
        finally:
            self._places.release(scope)
            if not is_served:
                await reset_stream(stream)

    async def _serve_admitted(self, stream: INetStream, peer: bytes, scope: trio.CancelScope) -> bool:
        """Negotiates and runs the handler. True: the handler returned. False: the stream brought nothing. Raises any
        error."""
        assert isinstance(stream, NetStream) and isinstance(stream.muxed_stream, YamuxStream)
        with trio.fail_after(FIRST_MESSAGE_S):
            protocol, handler = await self._negotiated(stream, stream.muxed_stream)
            # (on an identify stream this node sends, and the peer nothing)
            if protocol != IDENTIFY and not await stream.muxed_stream.peek():
                return False
        self._places.keep(scope)
        self._connections.used(peer)
        if protocol not in self.one_each:
            await handler(stream)
            return True
        way = is_relayed(stream.muxed_conn)
        if older := self._only.get((peer, protocol)):
            if way and not older[1]:
                return False  # (slower on its way, it was opened before the one on the direct connection)
            older[0].cancel()
        self._only[peer, protocol] = scope, way
        try:
            await handler(stream)
            return True
        finally:
            if self._only.get((peer, protocol), (None,))[0] is scope:
                del self._only[peer, protocol]

    async def _negotiated(self, stream: NetStream, muxed: YamuxStream) -> tuple[TProtocol, Handler]:
        """The protocol that both sides agreed on, and its handler. Raises the stream's errors and MultiselectError."""
        multiselect = self._host.multiselect
        accepted = await negotiation.accept(stream, muxed, multiselect.handlers)
        if accepted is None:
            protocol, handler = await multiselect.negotiate(MultiselectCommunicator(stream), int(FIRST_MESSAGE_S))
            if protocol is None or handler is None:
                raise negotiation.NotSupportedError("no protocol was agreed on")
            accepted = protocol, handler
        stream.set_protocol(accepted[0])
        return accepted
