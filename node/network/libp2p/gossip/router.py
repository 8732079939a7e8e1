"""libp2p's Pubsub and GossipSub with bounds for everything that strangers send.

Each table of theirs whose keys a stranger chooses, and its bound:

- ``peer_topics``, subscription counts and replayed topics: MAX_SUBSCRIPTIONS for each connected peer;
- ``seen_messages``: ``Seen``. The cache of validated messages is not used: a message that one forwarder sent too often
  would then be refused from every other;
- ``back_off``: only joined topics; each heartbeat removes expired entries;
- the message cache: messages accepted in the last heartbeats, whose number ``gossip.py`` bounds;
- messages that wait for a neighbour: see ``proto/digests/batches.py``;
- mesh, protocols and the times of IHAVEs, IWANTs and PRUNEs: connected peers and joined topics, swept at heartbeats;
- scores, equivocations, IDONTWANTs, extensions, observers, delivery times: not kept.
"""

import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import structlog
import trio
from libp2p.abc import IMuxedConn, INetStream
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.mcache import CacheEntry, MessageCache
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.utils.varint import encode_varint_prefixed

from mycelia.node.network.libp2p.closing import BROKEN
from mycelia.node.network.libp2p.frames import Frames
from mycelia.node.network.libp2p.gossip.filter import MAX_RPC_BYTES, MAX_SUBSCRIPTIONS, Filtered
from mycelia.node.peer_id import peer_text
from mycelia.proto.digests.batches import BATCH_S, Batches

log = structlog.get_logger()

MessageId = Callable[[rpc_pb2.Message], bytes]
SEEN_S = 120.0
MAX_SEEN = 16_384
MAX_REPLY_BYTES = 128 * 1_024
"""Bytes of messages that one IWANT gets. A peer would not read a larger RPC, so more would be lost."""
LAZY_HEARTBEATS, LAZY_PEERS = 3, 6
"""Heartbeats between two announcements by IHAVE, each of the messages of so many heartbeats and to so many peers
outside the mesh. In every heartbeat, each message would be announced as often, and a resting node would spend a fifth
of its processor time on that."""
LAZY_DELAY = 2
"""Heartbeats before a message is announced. It may wait at each node of the mesh, and a peer that heard of it before it
came would ask for one copy more."""


class Seen:
    """The ids of the newest MAX_SEEN messages of the last SEEN_S."""

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
    """libp2p's router with version 1.1 of the protocol: 1.2 costs twice the processor time."""

    def __init__(self, message_id: MessageId) -> None:
        super().__init__(
            [PROTOCOL_ID_V11],
            degree=4,  # each message arrives 3 times; with gossipsub's default of 6 it arrives 5 times
            degree_low=3,
            degree_high=8,
            heartbeat_interval=round(BATCH_S),  # the default is 120 s: a mesh would take minutes to form
            prune_back_off=10,
            max_pending_messages_per_peer=1,  # (a new subscriber gets the recent messages in any case)
            spam_protection_enabled=False,  # would also block relaying; gossip.py limits instead
            eclipse_protection_enabled=False,
            # It counts short connections as bad health, and then sets the heartbeat to 60 s.
            adaptive_gossip_enabled=False,
        )
        self.mcache = _Cache(message_id)
        self._message_id = message_id
        self.batches: Batches[ID, rpc_pb2.Message] = Batches()
        self._num_heartbeats = 0
        self._slow: set[ID] = set()
        """Connected peers whose queue was full once: libp2p's own code may owe them a GRAFT or PRUNE."""
        self.scorer = None  # (all weights are 0)
        # It grows with every message, and only adaptive gossip would shorten it.
        self.recent_message_deliveries = defaultdict(partial(deque, maxlen=0))  # type: ignore[arg-type]

    def gossip_heartbeat(self) -> defaultdict[ID, dict[str, list[bytes]]]:
        """The messages to announce now: peer -> topic -> message ids. Sends what waited for the heartbeat."""
        for neighbour, messages in self.batches.begin_interval().items():
            self.send_rpc(neighbour, rpc_pb2.RPC(publish=messages))
        self._num_heartbeats += 1
        announced: defaultdict[ID, dict[str, list[bytes]]] = defaultdict(dict)
        if self._num_heartbeats % LAZY_HEARTBEATS == 0:
            num_of = Counter[str]()
            for peer, topics in super().gossip_heartbeat().items():  # (in random order, a quarter of all peers)
                for topic, message_ids in topics.items():
                    num_of[topic] += 1
                    if num_of[topic] <= LAZY_PEERS:
                        announced[peer][topic] = message_ids
        return announced

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        """Sends a message to the mesh of its topic in batches, except to its author and to the peer that it came from.
        libp2p's own also looks for subscribers outside the mesh: for a mesh that still forms."""
        (topic,) = pubsub_msg.topicIDs
        mesh = self.mesh.get(topic, set())
        if len(mesh) < self.degree_low or self.pubsub is None:
            await super().publish(msg_forwarder, pubsub_msg)
            return
        self.mcache.put(pubsub_msg)
        message_id, num_bytes = self._message_id(pubsub_msg), pubsub_msg.ByteSize()
        for peer in mesh - {msg_forwarder, ID(pubsub_msg.from_id)}:
            if messages := self.batches.add(peer, message_id, pubsub_msg, num_bytes):
                self.send_rpc(peer, rpc_pb2.RPC(publish=messages))
        await trio.lowlevel.checkpoint()

    def send_rpc(self, peer_id: ID, rpc: rpc_pb2.RPC, priority: bool = False) -> None:
        """Queues an RPC, which must not change any more. libp2p's own copies each RPC three times for each peer, to
        split those that are too long for any peer."""
        queue = self.pubsub.peer_queues.get(peer_id) if self.pubsub is not None else None
        if queue is None or peer_id in self._slow or rpc.ByteSize() > MAX_RPC_BYTES:
            super().send_rpc(peer_id, rpc, priority)
        elif not queue.push(rpc, priority):
            self._slow.add(peer_id)
            super().send_rpc(peer_id, rpc, priority)

    async def emit_control_message(self, control_msg: rpc_pb2.ControlMessage, to_peer: ID) -> None:
        """Queues a control message. libp2p's own adds a signed record of this node's addresses, which no node reads."""
        self.send_rpc(to_peer, rpc_pb2.RPC(control=control_msg), priority=True)

    def _check_equivocation(self, msg: rpc_pb2.Message) -> bool:
        """True: two messages of one author and number have the same id, so the second counts as seen."""
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
        """Deletes what is kept of a disconnected peer. libp2p misses those to which this node never had a stream."""
        self._cleanup_security_state(peer)
        self._slow.discard(peer)
        self.batches.forget(peer)

    def known(self, message_ids: Iterable[bytes]) -> tuple[list[bytes], int]:
        """The ids of cached messages that fit into one answer, in the order given, and the bytes of these messages."""
        kept, num_bytes = [], 0
        for message_id in message_ids:
            message = self.mcache.get(message_id)
            if message is not None and num_bytes + message.ByteSize() <= MAX_REPLY_BYTES:
                kept.append(message_id)
                num_bytes += message.ByteSize()
        return kept, num_bytes


class _Cache(MessageCache):
    """A message cache with the ids of gossip.py. Under libp2p's own ids, peers would not recognize the messages that
    they have seen, and would ask for every message once more."""

    def __init__(self, message_id: MessageId) -> None:
        super().__init__(window_size=LAZY_HEARTBEATS, history_size=LAZY_DELAY + LAZY_HEARTBEATS + 2)
        self._message_id = message_id

    def window(self, topic: str) -> list[bytes]:
        """The ids to announce: of the ``window_size`` heartbeats before the last LAZY_DELAY."""
        told = self.history[LAZY_DELAY : LAZY_DELAY + self.window_size]
        return [entry.mid for entries in told for entry in entries if topic in entry.topics]

    def put(self, msg: rpc_pb2.Message) -> None:
        message_id = self._message_id(msg)
        if message_id not in self.msgs:
            self.msgs[message_id] = msg
            self.history[0].append(CacheEntry(message_id, msg.topicIDs))


class BoundedPubsub(Pubsub):
    """libp2p's Pubsub with ``admit`` and ``accept`` in place of its own checks."""

    def __init__(
        self,
        host: BasicHost,
        router: Router,
        message_id: MessageId,
        admit: Callable[[ID, bytes], Awaitable[Filtered]],
        accept: Callable[[ID, rpc_pb2.Message], Awaitable[bool]],
    ) -> None:
        """admit: waits for a peer's turn and returns the parts of its RPC to handle; raises RemoteError. accept:
        whether a message that was not seen before is valid."""
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
        # libp2p starts at the time in seconds: a restarted node would reuse numbers and be ignored for two minutes.
        self.counter = time.time_ns()
        self._message_id = message_id
        self._admit = admit
        self._accept = accept
        self._router = router

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """Handles RPCs until the stream ends. Lets other tasks run after each message: checking one takes up to a
        millisecond, relaying it several. Raises the errors of the stream and of ``admit``."""
        peer = stream.muxed_conn.peer_id
        frames = Frames(stream, MAX_RPC_BYTES)
        if peer in self.peers and self.topic_ids:
            # With any stream that breaks, libp2p forgets the topics of the peer, which would not name them again.
            self._router.send_rpc(peer, self.get_hello_packet())
        while (data := await frames.read()) is not None:
            parts = await self._admit(peer, data)
            for message in parts.messages:
                await self.push_msg(peer, message)
                await trio.lowlevel.checkpoint()
            for subscription in parts.subscriptions:
                self.handle_subscription(peer, subscription)
            if parts.control is not None:
                await self.router.handle_rpc(rpc_pb2.RPC(control=parts.control), peer)
        await frames.close()

    async def _handle_new_peer(self, peer_id: ID) -> None:
        """Opens the stream for messages to a peer. Raises SwarmException if the peer does not agree on the protocol in
        time, as a busy one may: after another error libp2p does not try again for as long as the peer is connected."""
        try:
            await super()._handle_new_peer(peer_id)
        except StreamFailure as exc:
            raise SwarmException(str(exc)) from exc

    async def move(
        self, peer: ID, is_best: Callable[[IMuxedConn], bool], open_stream: Callable[[str], Awaitable[INetStream]]
    ) -> None:
        """Replaces a stream by one on the best connection with the peer, unless it is there. What waits for the old one
        is lost: peers ask for the messages that they miss. open_stream: opens one there, for a protocol. Raises its
        errors and libp2p's."""
        old = self.peers.get(peer)
        if old is None or is_best(old.muxed_conn):
            return
        stream = await open_stream(PROTOCOL_ID_V11)
        await stream.write(encode_varint_prefixed(self.get_hello_packet().SerializeToString()))
        if self.peers.get(peer) is not old:
            await stream.reset()
            return
        self.peer_queues[peer].close()
        self.peers[peer], self.peer_queues[peer] = stream, RpcQueue()
        self.manager.run_task(self.handle_sending_messages, peer, stream, self.peer_queues[peer])
        await old.close()

    async def write_msg(self, stream: INetStream, rpc_msg: rpc_pb2.RPC) -> bool:
        """Whether the message was written. libp2p takes the failure of any stream for the end of the peer, also of one
        that another has replaced."""
        peer = stream.muxed_conn.peer_id
        muxed = stream.muxed_stream if isinstance(stream, NetStream) else stream  # (as in frames.py)
        try:
            await muxed.write(encode_varint_prefixed(rpc_msg.SerializeToString()))
        except BROKEN as exc:
            log.debug("gossip_not_sent", peer=peer_text(peer.to_bytes()), reason=repr(exc))
            return self.peers.get(peer) is stream and await super().write_msg(stream, rpc_msg)
        return True

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Handles one message; ``publish`` calls it too. Never raises: a hostile key or a broken stream must not make
        ``publish`` fail."""
        try:
            message_id = self._message_id(msg)
            self._router.batches.drop(msg_forwarder, message_id)
            if self.seen_messages.has(message_id) or not await self._accept(msg_forwarder, msg):
                return
            kept = rpc_pb2.Message()
            kept.CopyFrom(msg)  # (a message is a part of its RPC, all of which would stay in memory with it)
            self.seen_messages.add(message_id)
            self.notify_subscriptions(kept)
            await self.router.publish(msg_forwarder, kept)
        except Exception as exc:  # noqa: BLE001  supervisor of a message
            log.debug("gossip message failed", error=repr(exc))
