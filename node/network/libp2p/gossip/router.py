"""libp2p's Pubsub and GossipSub, with what a stranger sends bounded on its way in.

Everything that they keep under a key of a stranger's, and what bounds it here:

- ``peer_topics``, subscription counts and replayed topics: MAX_SUBSCRIPTIONS a connected peer;
- ``seen_messages``: ``Seen``; the cache of validated messages is not used, since it would hold a message that came
  once too often by one way against every other way;
- ``back_off``: joined topics alone, expired entries are swept at each heartbeat;
- the message cache: what was accepted in the last heartbeats, see ``gossip.py`` for how much that is;
- mesh, protocols and the times of IHAVEs, IWANTs and PRUNEs: connected peers and joined topics, swept at heartbeats;
- scores, equivocations, IDONTWANTs, extensions, observers, delivery times: not kept.
"""

import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.mcache import CacheEntry, MessageCache
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub

from mycelia.node.network.libp2p.frames import Frames
from mycelia.node.network.libp2p.gossip.filter import MAX_RPC_BYTES, MAX_SUBSCRIPTIONS

log = structlog.get_logger()

MessageId = Callable[[rpc_pb2.Message], bytes]
SEEN_S = 120.0
MAX_SEEN = 16_384
MAX_REPLY_BYTES = 128 * 1_024
"""Of the messages that one IWANT gets. More than a peer would read as one RPC are lost."""


class Seen:
    """Ids of the messages of the last SEEN_S, the newest MAX_SEEN of them."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def has(self, message_id: bytes) -> bool:
        return self._until.get(message_id, 0.0) > time.monotonic()

    def add(self, message_id: bytes) -> None:
        self._until[message_id] = time.monotonic() + SEEN_S
        self._until.move_to_end(message_id)
        while len(self._until) > MAX_SEEN or next(iter(self._until.values())) < time.monotonic():
            self._until.popitem(last=False)


class Router(GossipSub):
    """libp2p's, of version 1.1: 1.2 costs twice the processor time."""

    def __init__(self, message_id: MessageId) -> None:
        super().__init__(
            [PROTOCOL_ID_V11],
            degree=4,  # each message arrives 3 times; 5 times with gossipsub's 6
            degree_low=3,
            degree_high=8,
            heartbeat_interval=1,  # the default is 120 s: a mesh would take minutes to form
            prune_back_off=10,
            max_pending_messages_per_peer=1,  # (whoever subscribes is sent the recent messages anyhow)
            spam_protection_enabled=False,  # also blocks relaying; gossip.py limits instead
            eclipse_protection_enabled=False,
            # Connections that come and go count as bad health, and bad health as a reason for a heartbeat of 60 s.
            adaptive_gossip_enabled=False,
        )
        self.mcache = _Cache(message_id)
        self.scorer = None  # (all weights are 0)
        # Grows by every message, and is cleaned for the adaptive gossip alone.
        self.recent_message_deliveries = defaultdict(partial(deque, maxlen=0))  # type: ignore[arg-type]

    def _check_equivocation(self, msg: rpc_pb2.Message) -> bool:
        """Two messages of one author and number have one id: the second was seen already."""
        return True

    def _periodic_security_cleanup(self) -> None:
        super()._periodic_security_cleanup()
        now = int(time.time())
        for topic, peers in list(self.back_off.items()):
            for peer in [peer for peer, until in peers.items() if until <= now]:
                del peers[peer]
            if not peers:
                del self.back_off[topic]

    def forget(self, peer: ID) -> None:
        """Also a peer that this node never had a stream to, of which libp2p would not hear."""
        self._cleanup_security_state(peer)

    def known(self, message_ids: Iterable[bytes]) -> tuple[list[bytes], int]:
        """Those of the messages that are still here and may be sent to one peer at once, and how large they are."""
        kept, num_bytes = [], 0
        for message_id in message_ids:
            message = self.mcache.get(message_id)
            if message is not None and num_bytes + message.ByteSize() <= MAX_REPLY_BYTES:
                kept.append(message_id)
                num_bytes += message.ByteSize()
        return kept, num_bytes


class _Cache(MessageCache):
    """Under the ids that gossip.py gives messages: libp2p's are longer, and no peer knows them for those it has seen,
    so each would ask for every message once more."""

    def __init__(self, message_id: MessageId) -> None:
        super().__init__(window_size=3, history_size=5)
        self._message_id = message_id

    def put(self, msg: rpc_pb2.Message) -> None:
        message_id = self._message_id(msg)
        if message_id not in self.msgs:
            self.msgs[message_id] = msg
            self.history[0].append(CacheEntry(message_id, msg.topicIDs))


class BoundedPubsub(Pubsub):
    """Reads RPCs through ``admit`` and takes messages through ``accept`` instead of libp2p's own checks."""

    def __init__(
        self,
        host: BasicHost,
        router: Router,
        message_id: MessageId,
        admit: Callable[[ID, bytes], Awaitable[rpc_pb2.RPC]],
        accept: Callable[[ID, rpc_pb2.Message], Awaitable[bool]],
    ) -> None:
        """admit: what of the RPC of a peer is handled, when its turn has come; raises RemoteError. accept: whether a
        message that was not seen before is right."""
        super().__init__(
            host,
            router,
            strict_signing=True,
            msg_id_constructor=message_id,
            max_inbound_rpc_size=MAX_RPC_BYTES,
            max_subscriptions_per_rpc=MAX_SUBSCRIPTIONS,
            max_subscriptions_per_peer=MAX_SUBSCRIPTIONS,
        )
        self.seen_messages.stop()  # (has a thread)
        self.seen_messages = Seen()  # type: ignore[assignment]
        # Starts at the time in seconds: a node that restarts would reuse numbers and be ignored for two minutes.
        self.counter = time.time_ns()
        self._admit = admit
        self._accept = accept

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """Raises what the stream and ``admit`` raise. One message after the other, and others have their turn after
        each: checking one takes up to a millisecond, relaying it some."""
        peer = stream.muxed_conn.peer_id
        frames = Frames(stream, MAX_RPC_BYTES)
        while (data := await frames.read()) is not None:
            rpc = await self._admit(peer, data)
            for message in rpc.publish:
                await self.push_msg(peer, message)
                await trio.lowlevel.checkpoint()
            for subscription in rpc.subscriptions:
                self.handle_subscription(peer, subscription)
            if rpc.HasField("control"):
                await self.router.handle_rpc(rpc, peer)
        await frames.close()

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Also called by ``publish``. Never raises: a hostile key or a dying stream must not make that fail."""
        try:
            if self._is_msg_seen(msg) or not await self._accept(msg_forwarder, msg):
                return
            self._mark_msg_seen(msg)
            self.notify_subscriptions(msg)
            await self.router.publish(msg_forwarder, msg)
        except Exception as exc:  # noqa: BLE001  supervisor of a message
            log.debug("gossip message failed", error=repr(exc))
