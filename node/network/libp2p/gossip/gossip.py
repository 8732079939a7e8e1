"""Gossip: one topic for each namespace or, where it is split, for each cell.

It carries only small signed state, since a message costs each node 3-4 ms of CPU.
"""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import structlog
import trio
from blake3 import blake3
from libp2p.abc import ISubscriptionAPI
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX

from mycelia.node.network.events import EventQueue
from mycelia.node.network.identity import verify
from mycelia.node.network.libp2p.gossip.filter import KIB, TOPIC_PREFIX, Filtered, filtered
from mycelia.node.network.libp2p.gossip.router import BoundedPubsub, Router
from mycelia.node.network.libp2p.host import Host
from mycelia.node.network.libp2p.services import run_service
from mycelia.node.network.libp2p.streams import Charge
from mycelia.node.network.network import Gossiped, NetworkError
from mycelia.node.network.supervise import supervised
from mycelia.proto.admission.limits import Limits
from mycelia.proto.admission.pace import Pace, Rate
from mycelia.proto.cells.cells import Cell
from mycelia.proto.wire.codec import MAX_GOSSIP_BYTES, decode, encode
from mycelia.proto.wire.errors import LimitExceeded, RemoteError
from mycelia.proto.wire.messages import Gossip as GossipMessage
from mycelia.proto.wire.refusals import Refusal

log = structlog.get_logger()

PUBLISH_INTERVAL_S = 0.01
"""libp2p's queues hold about 16 messages and silently lose the rest of a burst."""
MAX_QUEUED = 64
PUBLISH_DEADLINE_S = 5.0
WORK_OF_A_PEER, WORK_OF_A_SUBNET, WORK_OF_A_PRIVATE_NETWORK = (
    Rate(200.0, 2_000.0),
    Rate(400.0, 4_000.0),
    Rate(1_000.0, 10_000.0),
)
"""Tokens per second, see ``Filtered.cost``. RPCs over the rate wait. A new message costs MESSAGE_COST more, so a peer
can forward 30 a second, which is more than a whole topic should carry."""
MESSAGE_COST = 6.0
WRONG_RATE, WRONG_BURST = 8 / 60, 8.0
"""Messages with wrong signatures that a peer may forward: another version may check signatures in another way."""
AUTHOR_RATE, AUTHOR_BURST = 2.0, 60.0
"""Messages per second of one author that one forwarder may deliver. Others are not relayed: a flood ends at the
flooder's neighbours, and a peer that repeats an author's old messages uses up only its own share of them."""


def topic_of(namespace: bytes, cell: Cell) -> str:
    return TOPIC_PREFIX + namespace.hex() + cell.suffix()


class Gossip:
    """Publishes at a pace, and turns messages into events inside the validator, before they enter libp2p's queues."""

    def __init__(self, host: Host, events: EventQueue, charge: Charge) -> None:
        self._me = host.settings.identity.peer_id
        self._table, self._outbound = host.table, host.outbound
        self.router = Router(message_id)
        self.pubsub = BoundedPubsub(host.raw, self.router, message_id, self._admit, self._check)
        self._events = events
        self.charge = charge
        self.topics: dict[str, tuple[bytes, Cell]] = {}
        self._pace = Pace(WORK_OF_A_PEER, WORK_OF_A_SUBNET, WORK_OF_A_PRIVATE_NETWORK)
        self._wrong: Limits[bytes] = Limits(WRONG_RATE, WRONG_BURST)
        self.authors: Limits[tuple[bytes, bytes]] = Limits(AUTHOR_RATE, AUTHOR_BURST)
        """Limits by (forwarder, author)."""
        self._send, self._receive = trio.open_memory_channel[tuple[str, bytes]](MAX_QUEUED)
        self.num_malformed = 0
        self.num_over_rate = 0

    @asynccontextmanager
    async def services(self) -> AsyncIterator[None]:
        """Runs libp2p's services. Enter it before the host runs, whose gossip handlers wait for them."""
        async with run_service(self.pubsub), run_service(self.router):
            yield

    async def join(self, namespace: bytes, cell: Cell, nursery: trio.Nursery) -> None:
        """Subscribes to a topic, unless it is joined."""
        topic = topic_of(namespace, cell)
        if topic in self.topics:
            return
        self.topics[topic] = (namespace, cell)
        nursery.start_soon(supervised, self._drain, await self.pubsub.subscribe(topic))

    async def leave(self, namespace: bytes, cell: Cell) -> None:
        """Ends a subscription, if the topic is joined."""
        topic = topic_of(namespace, cell)
        if self.topics.pop(topic, None) is not None:
            await self.pubsub.unsubscribe(topic)

    def publish(self, namespace: bytes, cell: Cell, message: GossipMessage) -> None:
        """Queues a message. Raises NetworkError when the topic was not joined or the queue is full, and LimitExceeded
        over MAX_GOSSIP_BYTES."""
        topic = topic_of(namespace, cell)
        if topic not in self.topics:
            raise NetworkError(f"{topic} was not joined")
        data = encode(message)
        if len(data) > MAX_GOSSIP_BYTES:
            raise LimitExceeded(f"a {type(message).__name__} of {len(data)} bytes is over {MAX_GOSSIP_BYTES}")
        try:
            self._send.send_nowait((topic, data))
        except trio.WouldBlock as exc:
            raise NetworkError(f"{MAX_QUEUED} messages wait to be published already") from exc

    async def run(self) -> None:
        """Publishes the queued messages. Never returns."""
        async for topic, data in self._receive:
            try:
                with trio.fail_after(PUBLISH_DEADLINE_S):
                    await self.pubsub.publish(topic, data)
            except (BaseLibp2pError, OSError, trio.TooSlowError) as exc:
                log.debug("publish failed", error=repr(exc))
            await trio.sleep(PUBLISH_INTERVAL_S)

    async def move(self, peer: bytes) -> None:
        """Sends on the best connection with ``peer`` from now on. Raises NetworkError and libp2p's errors."""
        await self.pubsub.move(ID(peer), self._table.is_best, partial(self._outbound.open, peer))

    def forget(self, peer: bytes) -> None:
        self.router.forget(ID(peer))

    async def _admit(self, sender: ID, data: bytes) -> Filtered:
        """Waits for the sender's turn and returns the parts of its RPC to handle. Raises RemoteError."""
        found = filtered(data, self.topics.keys())
        peer = sender.to_bytes()
        for iwant in found.control.iwant if found.control is not None else ():
            known, num_bytes = self.router.known(iwant.messageIDs)
            iwant.messageIDs[:] = known
            found.cost += num_bytes / KIB
        await self._wait_turn(peer, found.cost)
        return found

    async def _wait_turn(self, peer: bytes, cost: float) -> None:
        """Waits until the rates of ``peer`` and its subnet allow ``cost``. Delays only the peer's own stream."""
        subnet = self._table.subnet(peer)
        delay_s = self._pace.delay_s(peer, subnet, cost, trio.current_time(), math.inf)
        if delay_s:
            self.num_over_rate += 1
            await trio.sleep(delay_s)

    async def _check(self, forwarder: ID, raw: rpc_pb2.Message) -> bool:
        """Whether a message that was not seen before is valid, its signature included."""
        peer = forwarder.to_bytes()
        if peer == self._me:
            return True
        await self._wait_turn(peer, MESSAGE_COST)
        if not is_signed(raw):
            self.num_malformed += 1
            if not self._wrong.take(peer, trio.current_time()):
                self.charge(peer, "gossip with wrong signatures")
            return False
        return self.accept(forwarder, raw)

    def accept(self, forwarder: ID, raw: rpc_pb2.Message) -> bool:
        """Whether to accept and relay a new message with a valid signature. Nodes relay only accepted messages, so a
        malformed one is its forwarder's fault, too."""
        peer, now = forwarder.to_bytes(), trio.current_time()
        if not self.authors.take((peer, raw.from_id), now):
            self.num_over_rate += 1
            if peer == raw.from_id:
                self.charge(peer, "too many gossip messages", Refusal.TOO_MANY)
            return False
        joined = self.topics.get(raw.topicIDs[0])
        if raw.from_id == self._me or joined is None:
            return False  # (this node's own from before a restart, or of a topic that it has just left)
        try:
            message = decode(raw.data, MAX_GOSSIP_BYTES)
            if not isinstance(message, GossipMessage):
                raise RemoteError(f"{type(message).__name__} does not belong on a gossip topic")
        except RemoteError as exc:
            self.num_malformed += 1
            self.charge(peer, str(exc))
            return False
        namespace, cell = joined
        self._events.offer(Gossiped(raw.from_id, peer, namespace, message, cell))
        return True

    async def _drain(self, subscription: ISubscriptionAPI) -> None:
        """Empties libp2p's queue of 32 messages, which the validator has delivered. Ends with the subscription."""
        with suppress(trio.EndOfChannel):
            while True:
                await subscription.get()


def message_id(message: rpc_pb2.Message) -> bytes:
    """An id of 12 bytes. Author and sequence number take 46, and each node receives each message's id some 18 times."""
    return blake3(message.from_id + message.seqno).digest(length=12)


def is_signed(message: rpc_pb2.Message) -> bool:
    """Whether the author signed ``message``. libp2p's own check parses the author's key three times."""
    signed = rpc_pb2.Message(
        from_id=message.from_id, data=message.data, seqno=message.seqno, topicIDs=message.topicIDs
    ).SerializeToString()
    return verify(message.from_id, PUBSUB_SIGNING_PREFIX.encode() + signed, message.signature)
