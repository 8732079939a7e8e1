"""Hostile bytes for gossip. Whatever an RPC contains, the part that reaches libp2p is in bounds and about joined
topics, libp2p handles it without an error, and keeps nothing of other topics."""

import logging
import random
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub

from mycelia.node.network.identity import Identity
from mycelia.node.network.libp2p.gossip.filter import (
    MAX_BACK_OFF_S,
    MAX_IDS,
    MAX_MESSAGES,
    MAX_SUBSCRIPTIONS,
    TOPIC_PREFIX,
    Filtered,
    filtered,
)
from mycelia.node.network.libp2p.gossip.gossip import is_signed
from mycelia.node.network.libp2p.gossip.router import Router
from mycelia.proto.wire.codec import MAX_GOSSIP_BYTES, decode
from mycelia.proto.wire.errors import RemoteError
from tests.fuzz.mutate import splice, spoil_bytes

_JOINED = frozenset({TOPIC_PREFIX + "6e", TOPIC_PREFIX + "6f"})
_PEERS = [Identity(bytes([number]) * 32).peer_id for number in range(3)]


def _corpus() -> list[bytes]:
    topics = [*sorted(_JOINED), TOPIC_PREFIX + "70", "x"]
    ids = [bytes([number]) * 12 for number in range(20)]
    messages = [
        rpc_pb2.Message(
            from_id=peer, data=b"\xa2\x00", seqno=bytes(8), topicIDs=[topic], signature=bytes(64), key=bytes(36)
        )
        for peer in _PEERS
        for topic in topics[:3]
    ]
    control = rpc_pb2.ControlMessage(
        ihave=[rpc_pb2.ControlIHave(topicID=topic, messageIDs=ids) for topic in topics],
        iwant=[rpc_pb2.ControlIWant(messageIDs=ids)] * 2,
        graft=[rpc_pb2.ControlGraft(topicID=topic) for topic in topics],
        prune=[
            rpc_pb2.ControlPrune(topicID=topic, backoff=2**40, peers=[rpc_pb2.PeerInfo(peerID=_PEERS[0])])
            for topic in topics
        ],
        idontwant=[rpc_pb2.ControlIDontWant(messageIDs=ids)],
        extensions=rpc_pb2.ControlExtensions(topicObservation=True),
        observe=[rpc_pb2.ControlObserve(topicID=topics[0])],
    )
    subscriptions = [
        rpc_pb2.RPC.SubOpts(subscribe=number % 3 > 0, topicid=topic) for number, topic in enumerate(topics * 3)
    ]
    parts: list[dict[str, Any]] = [
        {"publish": messages},
        {"control": control},
        {"subscriptions": subscriptions},
        {"publish": messages, "control": control, "subscriptions": subscriptions, "senderRecord": bytes(200)},
    ]
    return [rpc_pb2.RPC(**part).SerializeToString() for part in parts]


class Target:
    name = "gossip"
    weight = 2.0

    def __init__(self) -> None:
        logging.getLogger("libp2p").setLevel(logging.CRITICAL)  # (as nodes do)
        self._corpus = _corpus()
        self._router = Router(lambda message: message.from_id[-8:] + message.seqno)
        nobody = SimpleNamespace(
            peers={}, peer_queues={}, peer_topics={}, seen_messages=SimpleNamespace(has=lambda message_id: False)
        )
        self._router.pubsub = cast(Pubsub, nobody)
        for topic in _JOINED:
            self._router.mesh[topic] = set()

    def make(self, rng: random.Random) -> tuple[int, bytes]:
        """The number of the sending peer, and the bytes."""
        data = rng.choice(self._corpus)
        way = rng.randrange(10)
        if way < 7:
            data = spoil_bytes(data, rng)
        elif way < 8:
            data = splice(data, rng.choice(self._corpus), rng)
        elif way < 9:
            data = rng.randbytes(rng.randrange(100))
        return rng.randrange(len(_PEERS)), data

    def check(self, item: tuple[int, bytes]) -> bool:
        number, data = item
        try:
            found = filtered(data, _JOINED)
        except RemoteError:
            return False
        _check_bounds(found, len(data))
        for message in found.messages[:1]:
            is_signed(message)
            try:
                decode(message.data, MAX_GOSSIP_BYTES)
            except RemoteError:
                continue
        control = found.control or rpc_pb2.ControlMessage()
        known, _ = self._router.known(one for iwant in control.iwant for one in iwant.messageIDs)
        assert not known
        _finish(self._router.handle_rpc(rpc_pb2.RPC(control=control), ID(_PEERS[number])))
        assert set(self._router.mesh) == _JOINED and set(self._router.back_off) <= _JOINED
        return True


def _check_bounds(found: Filtered, num_bytes: int) -> None:
    assert len(found.messages) <= MAX_MESSAGES and len(found.subscriptions) <= MAX_SUBSCRIPTIONS
    assert all(one.topicid.startswith(TOPIC_PREFIX) for one in found.subscriptions)
    assert all(list(one.topicIDs) in [[topic] for topic in _JOINED] for one in found.messages)
    control = found.control or rpc_pb2.ControlMessage()
    ids = [one for have in control.ihave for one in have.messageIDs]
    ids += [one for want in control.iwant for one in want.messageIDs]
    assert len(ids) <= 2 * MAX_IDS
    assert {one.topicID for part in (control.ihave, control.graft, control.prune) for one in part} <= _JOINED
    assert all(not one.peers and one.backoff <= MAX_BACK_OFF_S for one in control.prune)
    assert not control.idontwant and not control.observe and not control.HasField("extensions")
    assert found.cost >= 1 + num_bytes / 1_024


def _finish(task: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine that never waits to its end."""
    try:
        task.send(None)
    except StopIteration:
        return
    raise AssertionError("gossipsub waits for something")
