"""A filter between peers and gossipsub. It passes only the parts of an RPC that this node can use, within bounds.

gossipsub itself keeps and answers messages about any topic without limit, dials the peers that a PRUNE names, and
sends a message as often as IWANTs name it. A part that the filter drops is no offence: other versions may send it.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from libp2p.pubsub.pb import rpc_pb2

from mycelia.node.network.libp2p.frames import parsed
from mycelia.node.peer_id import is_ed25519

TOPIC_PREFIX = "mycelia/1/"
MAX_TOPIC_BYTES = 128
MAX_RPC_BYTES = 256 * 1_024
MAX_MESSAGES = 64
MAX_SUBSCRIPTIONS = 64
"""Subscriptions in one RPC, and of one peer in all. A node subscribes to the topics of its models and their cells."""
MAX_IDS = 256
"""Message ids that one RPC announces, and that it asks for."""
MAX_ID_BYTES = 64
MAX_BACK_OFF_S = 60
SEQNO_BYTES, SIGNATURE_BYTES, MAX_KEY_BYTES = 8, 64, 64
KIB = 1_024


@dataclass
class Filtered:
    """The parts of an RPC that passed."""

    messages: list[rpc_pb2.Message]
    subscriptions: list[rpc_pb2.RPC.SubOpts]
    control: rpc_pb2.ControlMessage | None
    """None: nothing of it passed."""
    cost: float
    """The cost of reading and answering it: 1 for the RPC, for each KiB and for each topic that it names."""


def filtered(data: bytes, joined: Collection[str]) -> Filtered:
    """The parts of the RPC ``data`` that are in bounds and about the topics ``joined``. Subscriptions to other topics
    pass too, since this node may join them later. Raises RemoteError."""
    rpc = parsed(rpc_pb2.RPC(), data, MAX_RPC_BYTES)
    control = rpc.control if rpc.HasField("control") else None
    named = len(rpc.subscriptions)
    if control is not None:
        named += len(control.ihave) + len(control.graft) + len(control.prune)
    return Filtered(
        [message for message in rpc.publish[:MAX_MESSAGES] if _is_message(message, joined)],
        _subscriptions(rpc.subscriptions[:MAX_SUBSCRIPTIONS]),
        _control(control, joined) if control is not None else None,
        1 + len(data) / KIB + named,
    )


def _is_message(message: rpc_pb2.Message, joined: Collection[str]) -> bool:
    message.DiscardUnknownFields()
    return (
        len(message.topicIDs) == 1
        and message.topicIDs[0] in joined
        and is_ed25519(message.from_id)
        and len(message.seqno) == SEQNO_BYTES
        and len(message.signature) == SIGNATURE_BYTES
        and len(message.key) <= MAX_KEY_BYTES
    )


def _subscriptions(told: Iterable[rpc_pb2.RPC.SubOpts]) -> list[rpc_pb2.RPC.SubOpts]:
    """The last subscription of each topic."""
    return list({one.topicid: one for one in told if _is_topic(one.topicid)}.values())


def _is_topic(topic: str | bytes) -> bool:
    if not isinstance(topic, str):  # (bytes that are no text, which protobuf leaves as they are)
        return False
    return topic.startswith(TOPIC_PREFIX) and len(topic) <= MAX_TOPIC_BYTES and topic.isascii()


def _control(told: rpc_pb2.ControlMessage, joined: Collection[str]) -> rpc_pb2.ControlMessage | None:
    """The control messages of gossipsub 1.1, without the peers that a PRUNE names; None: there are none."""
    kept = rpc_pb2.ControlMessage()
    num_ids = 0
    for topic, ihave in {one.topicID: one for one in told.ihave if one.topicID in joined}.items():
        ids = _ids(ihave.messageIDs, MAX_IDS - num_ids)
        num_ids += len(ids)
        if ids:
            kept.ihave.add(topicID=topic, messageIDs=ids)
    wanted = _ids((one for iwant in told.iwant for one in iwant.messageIDs), MAX_IDS)
    if wanted:
        kept.iwant.add(messageIDs=wanted)
    for topic in {one.topicID for one in told.graft} & set(joined):
        kept.graft.add(topicID=topic)
    for topic, prune in {one.topicID: one for one in told.prune if one.topicID in joined}.items():
        kept.prune.add(topicID=topic, backoff=min(prune.backoff, MAX_BACK_OFF_S))
    return kept if kept.ByteSize() else None


def _ids(told: Iterable[bytes], limit: int) -> list[bytes]:
    """The first ``limit`` distinct ids."""
    kept: dict[bytes, None] = {}
    for one in told:
        if len(kept) >= limit:
            break
        if 0 < len(one) <= MAX_ID_BYTES:
            kept[one] = None
    return list(kept)
