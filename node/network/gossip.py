"""Gossip: one topic a namespace or, where it is split, a cell.

Small signed state only, since a message costs each node 3-4 ms of CPU.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
import trio
from blake3 import blake3
from libp2p.abc import ISubscriptionAPI
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub

from node.network.events import EventQueue
from node.network.host import Host
from node.network.network import Gossiped, NetworkError
from node.network.services import run_service
from node.network.streams import Charge
from node.network.supervise import supervised
from proto.cells import Cell
from proto.codec import MAX_GOSSIP_BYTES, decode, encode
from proto.errors import LimitExceeded, RemoteError
from proto.limits import Limits, TokenBucket
from proto.messages import Gossip as GossipMessage
from proto.refusals import Refusal

log = structlog.get_logger()

TOPIC_PREFIX = "mycelia/1/"
PUBLISH_INTERVAL_S = 0.01
"""libp2p's queues hold about 16 messages and lose the rest of a burst in silence."""
MAX_QUEUED = 64
MAX_RPC_BYTES = 256 * 1_024
PUBLISH_DEADLINE_S = 5.0
FORWARD_RATE = 30.0
"""Messages a second that are taken from one forwarder: above what a whole topic should carry."""
FORWARD_BURST = 200.0
AUTHOR_RATE, AUTHOR_BURST = 2.0, 60.0
"""Messages a second of one author that are taken from one forwarder. What is over is not relayed either, so a flood
ends at the flooder's neighbours and uses up nobody's share of FORWARD_RATE further on; and whoever repeats an author's
old messages uses up only its own share of them."""


def topic_of(namespace: bytes, cell: Cell) -> str:
    return TOPIC_PREFIX + namespace.hex() + cell.suffix()


class Gossip:
    """Publishes paced, and turns what arrives into events inside the validator, before any queue of libp2p's."""

    def __init__(self, host: Host, events: EventQueue, charge: Charge) -> None:
        self._me = host.settings.identity.peer_id
        self._table = host.table
        self._pubsub, self._router = _new_services(host)
        self._events = events
        self._charge = charge
        self._topics: dict[str, tuple[bytes, Cell]] = {}
        self._buckets: dict[bytes, TokenBucket] = {}
        self._authors: Limits[tuple[bytes, bytes]] = Limits(AUTHOR_RATE, AUTHOR_BURST)
        """Of (forwarder, author)."""
        self._send, self._receive = trio.open_memory_channel[tuple[str, bytes]](MAX_QUEUED)
        self.num_malformed = 0
        self.num_over_rate = 0

    @asynccontextmanager
    async def services(self) -> AsyncIterator[None]:
        """Has to be entered before the host runs: its handlers are registered already and wait for these."""
        async with run_service(self._pubsub), run_service(self._router):
            yield

    async def join(self, namespace: bytes, cell: Cell, nursery: trio.Nursery) -> None:
        """Nothing happens if it was joined before."""
        topic = topic_of(namespace, cell)
        if topic in self._topics:
            return
        self._topics[topic] = (namespace, cell)
        self._pubsub.set_topic_validator(topic, self._accept, False)
        nursery.start_soon(supervised, self._drain, await self._pubsub.subscribe(topic))

    async def leave(self, namespace: bytes, cell: Cell) -> None:
        """Nothing happens if it was not joined."""
        topic = topic_of(namespace, cell)
        if self._topics.pop(topic, None) is not None:
            self._pubsub.remove_topic_validator(topic)
            await self._pubsub.unsubscribe(topic)

    def publish(self, namespace: bytes, cell: Cell, message: GossipMessage) -> None:
        """Queues. Raises NetworkError when the topic was not joined or the queue is full, LimitExceeded over
        MAX_GOSSIP_BYTES."""
        topic = topic_of(namespace, cell)
        if topic not in self._topics:
            raise NetworkError(f"{topic} was not joined")
        data = encode(message)
        if len(data) > MAX_GOSSIP_BYTES:
            raise LimitExceeded(f"a {type(message).__name__} of {len(data)} bytes is over {MAX_GOSSIP_BYTES}")
        try:
            self._send.send_nowait((topic, data))
        except trio.WouldBlock as exc:
            raise NetworkError(f"{MAX_QUEUED} messages wait to be published already") from exc

    async def run(self) -> None:
        """Publishes what was queued. Never ends."""
        async for topic, data in self._receive:
            try:
                with trio.fail_after(PUBLISH_DEADLINE_S):
                    await self._pubsub.publish(topic, data)
            except (BaseLibp2pError, OSError, trio.TooSlowError) as exc:
                log.debug("publish failed", error=repr(exc))
            await trio.sleep(PUBLISH_INTERVAL_S)

    def forget(self, peer: bytes) -> None:
        self._buckets.pop(peer, None)

    def _accept(self, forwarder: ID, raw: rpc_pb2.Message) -> bool:
        """libp2p calls this once a new message whose signature is right; only what it accepts is relayed, so a
        malformed message is the forwarder's fault too."""
        peer = forwarder.to_bytes()
        if peer == self._me:
            return True
        now = trio.current_time()
        bucket = self._buckets.get(peer) or TokenBucket(FORWARD_RATE, FORWARD_BURST, now)
        if peer in self._table:  # Else it is gone already, and nobody would forget its bucket.
            self._buckets[peer] = bucket
        if not self._authors.take((peer, raw.from_id), now):
            self.num_over_rate += 1
            if peer == raw.from_id:
                self._charge(peer, "too many gossip messages", Refusal.TOO_MANY)
            return False
        if not bucket.take(now):
            self.num_over_rate += 1
            return False
        if raw.from_id == self._me:
            return False  # our own, come back after a restart
        try:
            if len(raw.topicIDs) != 1 or raw.topicIDs[0] not in self._topics:
                raise RemoteError("gossip for more than one topic")
            message = decode(raw.data, MAX_GOSSIP_BYTES)
            if not isinstance(message, GossipMessage):
                raise RemoteError(f"{type(message).__name__} does not belong on a gossip topic")
        except RemoteError as exc:
            self.num_malformed += 1
            self._charge(peer, str(exc))
            return False
        namespace, cell = self._topics[raw.topicIDs[0]]
        self._events.offer(Gossiped(raw.from_id, peer, namespace, message, cell))
        return True

    async def _drain(self, subscription: ISubscriptionAPI) -> None:
        """The validator has delivered already; this only keeps libp2p's queue of 32 from filling. Ends with the
        subscription."""
        with suppress(trio.EndOfChannel):
            while True:
                await subscription.get()


def _new_services(host: Host) -> tuple[Pubsub, GossipSub]:
    """libp2p's two services of gossip, not yet running."""
    router = GossipSub(
        [PROTOCOL_ID_V11],  # 1.2 costs twice the CPU
        degree=4,  # each message arrives 3 times; 5 times with gossipsub's 6
        degree_low=3,
        degree_high=8,
        heartbeat_interval=1,  # the default is 120 s: a mesh would take minutes to form
        prune_back_off=10,
        spam_protection_enabled=False,  # also blocks relaying; Gossip._accept limits instead
        eclipse_protection_enabled=False,
    )
    pubsub = Pubsub(
        host.raw,
        router,
        strict_signing=True,
        msg_id_constructor=_message_id,
        max_inbound_rpc_size=MAX_RPC_BYTES,
        max_subscriptions_per_rpc=64,
        max_subscriptions_per_peer=64,
    )
    # Starts at the time in seconds: a node that restarts would reuse numbers and be ignored for two minutes.
    pubsub.counter = time.time_ns()
    push = pubsub.push_msg

    async def guarded_push(forwarder: ID, message: rpc_pb2.Message) -> None:
        # Also called by our own publish(); a hostile key or a dying stream must not make that fail.
        try:
            await push(forwarder, message)
        except Exception as exc:  # noqa: BLE001  supervisor of a message
            log.debug("gossip message failed", error=repr(exc))

    pubsub.push_msg = guarded_push  # type: ignore[method-assign, assignment]
    return pubsub, router


def _message_id(message: rpc_pb2.Message) -> bytes:
    """12 bytes instead of author and sequence number, 46: each node receives the ids of each message some 18 times."""
    return blake3(message.from_id + message.seqno).digest(length=12)
