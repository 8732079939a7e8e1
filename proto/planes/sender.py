"""Limits on what the digest plane sends to one peer: bytes shared among subnets, and questions paced per peer.

Heads of this node come first: everything else leaves a part of the bucket to them. Answers are paid by the asker: their
bytes are the *level* of its subnet, which decays in the time that fills the bucket. An answer goes out only while the
level is below a share of what is left in the bucket (the dynamic threshold of ``subnets.py``). So k subnets that ask
without end get a k-th of the rate each, and leave a k-th of the bucket to those that ask rarely. Half of the bucket is
kept for peers that sent a hello.

All questions to a peer have one pace (``Membership.questions``): whatever others make this node ask, it never comes
near the rate at which an honest peer stops reading.
"""

import math
from collections import OrderedDict

from mycelia.proto.admission.subnets import PUBLIC_SHARE
from mycelia.proto.config import DigestConfig
from mycelia.proto.digests.budget import SendBudget, Traffic, size_of
from mycelia.proto.digests.estimate import Source
from mycelia.proto.effects import Effect, Send
from mycelia.proto.planes.membership import Membership
from mycelia.proto.wire.messages import Control, Gossip, Reconcile, Repair, RepairRequest

NODE_SHARE = 1.0
"""Share of what is left: one node's subnet alone gets half."""
_KEPT_FOR_HEADS, _KEPT_FOR_NODES = 1 / 16, 1 / 2
"""Shares of the bucket."""
_MAX_LEVELS = 1_024


class Sender:
    def __init__(self, config: DigestConfig, members: Membership, traffic: Traffic) -> None:
        self._config = config
        self._members = members
        self._traffic = traffic
        self._budget = SendBudget(config.send_bytes_per_s, config.send_burst_bytes, 0.0)
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Subnet, or peer of a private network -> (bytes of answers that count against it, the time of that count)."""

    def ready_at(self, now: float) -> float:
        """When this node's next head may go out; ``now`` if it may already."""
        return self._budget.ready_at(now)

    def spend(self, message: Control | Gossip, now: float, times: int = 1) -> None:
        num_bytes = times * size_of(message)
        self._budget.spend(num_bytes, now)
        self._traffic.sent_kinds[type(message).__name__] += num_bytes

    def ask(self, peer: bytes, message: RepairRequest | Reconcile, now: float) -> list[Effect]:
        """Sends a question, unless this node asked ``peer`` too much lately: then a later round asks again."""
        has_room = self._left(now) > _KEPT_FOR_HEADS * self._config.send_burst_bytes
        if not has_room or not self._members.questions.take(peer, now):
            return self._drop()
        self.spend(message, now)
        return [Send(peer, message)]

    def answer(self, peer: bytes, message: Repair, now: float) -> list[Effect]:
        """Sends an answer if the asker's share allows; the asker asks again for a dropped one."""
        source = self._members.source(peer)
        kept = _KEPT_FOR_HEADS if source.is_node else _KEPT_FOR_NODES
        share = NODE_SHARE if source.is_node else PUBLIC_SHARE
        level = self._level(source, now)
        if level >= share * (self._left(now) - kept * self._config.send_burst_bytes):
            return self._drop()
        self._levels[source.name] = (level + size_of(message), now)
        self._levels.move_to_end(source.name)
        if len(self._levels) > _MAX_LEVELS:
            self._levels.popitem(last=False)
        self.spend(message, now)
        return [Send(peer, message)]

    def _level(self, source: Source, now: float) -> float:
        level, at = self._levels.get(source.name, (0.0, now))
        fills_in_s = self._config.send_burst_bytes / self._config.send_bytes_per_s
        return level * math.exp(min(at - now, 0.0) / fills_in_s)

    def _left(self, now: float) -> float:
        return self._budget.left(now)

    def _drop(self) -> list[Effect]:
        self._traffic.num_dropped += 1
        return []
