"""Bytes: what the digest plane may send, and how fast each plane receives.

Sending is paid from one bucket. A message goes out when the bucket is not empty and may leave a debt, so that the
largest message needs no bucket of its own size: in any window of t seconds at most ``burst + rate * t`` bytes and one
message more are sent. A delta that cannot be sent now waits and then carries the newest state. A repair or question is
dropped, because the node that needs it asks again.

Receiving cannot be refused without losing what was already paid for. So it is reduced at its source: a node that
receives more than it should stretches the interval between its own deltas, as do all nodes that measure the same.
"""

import math
from collections import Counter
from enum import StrEnum

from mycelia.proto.wire.messages import (
    Announce,
    Control,
    Delta,
    Gossip,
    Hello,
    PromptLogprobs,
    Reconcile,
    Repair,
    RepairRequest,
    ServingFrame,
    Subscribe,
    Tokens,
    VitalsUpdate,
)

METER_TAU_S = 30.0
"""Memory of a rate in seconds: three delta intervals, so that one burst is no trend."""

_GOSSIP_OVERHEAD_BYTES = 224
"""Bytes that libp2p adds to each copy of a gossip message: signed envelope and share of lazy announcements."""


class Plane(StrEnum):
    DIGESTS = "digests"
    VITALS = "vitals"
    REQUESTS = "requests"


class SendBudget:
    """Bytes a second with a burst. Invariant: see above, if nothing is spent while ``ready_at`` is in the future."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._updated_at = now

    def ready_at(self, now: float) -> float:
        """When the next message may go out; ``now`` if it may already."""
        self._refill(now)
        return now + max(0.0, -self._left) / self._rate

    def left(self, now: float) -> float:
        """Bytes in the bucket; negative: a debt."""
        self._refill(now)
        return self._left

    def spend(self, num_bytes: int, now: float) -> None:
        self._refill(now)
        self._left -= num_bytes

    def _refill(self, now: float) -> None:
        self._left = min(self._burst, self._left + max(0.0, now - self._updated_at) * self._rate)
        self._updated_at = max(now, self._updated_at)


class RateMeter:
    """Mean rate of what is added; the past weighs exponentially less with time (``METER_TAU_S``)."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._at = 0.0

    def add(self, amount: float, now: float) -> None:
        self._weight = self._decayed(now) + amount
        self._at = max(now, self._at)

    def per_s(self, now: float) -> float:
        return self._decayed(now) / METER_TAU_S

    def _decayed(self, now: float) -> float:
        return self._weight * math.exp(-max(0.0, now - self._at) / METER_TAU_S)


class Traffic:
    """Bytes that a node sent and received, per plane. Sent bytes are counted only for digests, which have a budget."""

    def __init__(self, gossip_copies: float) -> None:
        """gossip_copies: how often the transport receives each gossip message."""
        self._gossip_copies = gossip_copies
        self.received: Counter[Plane] = Counter()
        """Bytes since the start. Of gossip only the first copy: the transport drops the others unseen."""
        self.received_kinds: Counter[str] = Counter()
        """The same by kind of message: the name of its class."""
        self.sent_kinds: Counter[str] = Counter()
        """Bytes of digests; a gossip message counts once, whatever the transport makes of it."""
        self.num_postponed = 0
        """Deltas that waited for the budget."""
        self.num_dropped = 0
        """Repairs and questions that the budget did not allow."""
        self._meters = {plane: RateMeter() for plane in Plane}
        self._copies = RateMeter()
        """Bytes of gossip beyond the messages as seen here."""

    @property
    def sent_bytes(self) -> int:
        """Bytes of digests sent, all kinds together."""
        return self.sent_kinds.total()

    def note_received(self, message: Control | Gossip | ServingFrame, now: float) -> None:
        plane, num_bytes = plane_of(message), size_of(message)
        self.received[plane] += num_bytes
        self.received_kinds[type(message).__name__] += num_bytes
        self._meters[plane].add(num_bytes, now)
        if isinstance(message, Delta | Announce):
            on_the_line = self._gossip_copies * (num_bytes + _GOSSIP_OVERHEAD_BYTES)
            self._copies.add(on_the_line - num_bytes, now)

    def received_per_s(self, plane: Plane, now: float) -> float:
        return self._meters[plane].per_s(now)

    def digests_per_s(self, now: float) -> float:
        """Recent bytes of digests a second on the line: gossip with all its copies and envelopes."""
        return self._meters[Plane.DIGESTS].per_s(now) + self._copies.per_s(now)


def plane_of(message: Control | Gossip | ServingFrame) -> Plane:
    match message:
        case RepairRequest() | Repair() | Reconcile() | Delta() | Announce():
            return Plane.DIGESTS
        case Hello() | VitalsUpdate() | Subscribe():
            return Plane.VITALS
        case _:
            return Plane.REQUESTS


def size_of(message: Control | Gossip | ServingFrame) -> int:
    """The approximate encoded length of ``message`` in bytes, without encoding it; never too low for digests."""
    match message:
        case Delta() | Repair():
            return 256 + len(message.upserts) + len(message.removes)
        case Reconcile():
            return 16 + sum(44 + len(version.owner) for version in message.versions)
        case RepairRequest():
            return 160
        case Hello():
            return 16 + len(message.agent) + sum(96 + len(served.model) for served in message.served)
        case Tokens():
            alternatives = sum(1 + len(entry.top) for entry in message.logprobs)
            return 32 + len(message.tokens) + len(message.text) + 24 * alternatives
        case PromptLogprobs():
            return 32 + 24 * sum(1 + len(entry.top) for entry in message.logprobs)
        case _:
            return 256
