"""Too much at once, seen from the entry node: its own places, and the nodes that refused for a while.

A refusal is no fault of a node that did not just claim to be idle. Who says that it is overloaded is not asked again
until the time that it said is over or nobody waits there any more, and nothing else comes of it: a node that
exaggerates loses what it would have been asked.

When everybody who could answer is busy, the client is refused and told when to come again: ``retry_times.py``.

Invariant: at most ``MAX_BUSY`` peers are remembered, those that refused last.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Protocol

from mycelia.proto.admission.shares import MAX_RETRY_S, Shares
from mycelia.proto.wire.messages import Failed

OVERLOADED = "overloaded"
"""The code of such a refusal."""
UNKNOWN_RETRY_S = 1.0
"""How long a peer is left alone that does not say."""
MAX_BUSY = 4_096


class Asked(Protocol):
    """A request in flight."""

    @property
    def subnet(self) -> bytes: ...


class EntryPlaces:
    """Shares of the requests in flight at an entry node, among the subnets of its clients."""

    def __init__(self, num_places: int) -> None:
        self.shares = Shares(num_places)
        self._num_joined = 0
        self._num_over = 0

    def join(self, subnet: bytes, in_flight: Collection[Asked], now: float) -> float:
        """0.0: one more request of ``subnet`` may enter beside those in flight. Else it may after so many seconds.
        Mutates."""
        num_over = self._num_joined - len(in_flight)
        for _ in range(min(num_over - self._num_over, self.shares.num_places)):
            self.shares.pace.freed(now, somebody_waits=True)
        self._num_over = num_over
        if 2 * len(in_flight) < self.shares.num_places:
            self.shares.pace.nobody_waits()  # (time counts while places are scarce)
        else:
            self.shares.pace.waits(now)
        num_own = sum(request.subnet == subnet for request in in_flight)
        own_part = max(num_own, 1) / (len(in_flight) + 1)
        wait_s = self.shares.join(subnet, num_own, len(in_flight), own_part, now)
        self._num_joined += not wait_s
        return wait_s


class BusyPeers:
    """Who said to be overloaded, and until when. Peer ids are the keys."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def refused(self, peer: bytes, frame: Failed, now: float) -> None:
        """``peer`` refused a request as overloaded. Mutates."""
        wait_s = min(frame.retry_after_ms / 1000 or UNKNOWN_RETRY_S, MAX_RETRY_S)
        self._until[peer] = now + wait_s
        self._until.move_to_end(peer)
        if len(self._until) > MAX_BUSY:
            self._until.popitem(last=False)

    def idle(self, peer: bytes) -> None:
        """At ``peer`` nobody waits any more, so that it refuses nobody. Also forgets what begins with it. Mutates."""
        for key in [key for key in self._until if key.startswith(peer)]:
            del self._until[key]

    def is_busy(self, peer: bytes, now: float) -> bool:
        return now < self._until.get(peer, 0.0)

    def now(self, now: float) -> set[bytes]:
        """All that are busy."""
        return {peer for peer, until in self._until.items() if now < until}

    def least_wait_ms(self, peers: Iterable[bytes], now: float) -> int:
        """Until the first of ``peers`` that is busy may be asked again, at least 1; 0 if none is."""
        waits = [self._until[peer] - now for peer in peers if self.is_busy(peer, now)]
        return max(round(1000 * min(waits)), 1) if waits else 0
