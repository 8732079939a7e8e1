"""Overload as the entry node sees it: its own places, and the nodes that refused for a while.

A refusal is not held against a node, unless the node had just claimed to be idle. An overloaded node gets no request
until its stated time is over or nothing waits there any more. There is no other consequence: a node that exaggerates
loses the requests it would have got.

When all nodes that could answer are busy, the client is refused and gets a retry time: ``retry_times.py``.

Invariant: at most ``MAX_BUSY`` peers are remembered, those that refused last.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Protocol

from mycelia.proto.admission.shares import MAX_RETRY_S, Shares
from mycelia.proto.wire.messages import Failed

OVERLOADED = "overloaded"
UNKNOWN_RETRY_S = 1.0
"""How long a peer that states no time gets no request."""
MAX_BUSY = 4_096


class Asked(Protocol):
    @property
    def subnet(self) -> bytes: ...


class EntryPlaces:
    """Shares of the requests in flight at an entry node, among the subnets of its clients."""

    def __init__(self, num_places: int) -> None:
        self.shares = Shares(num_places)
        self._num_joined = 0
        self._num_over = 0

    def join(self, subnet: bytes, in_flight: Collection[Asked], now: float) -> float:
        """0.0: one more request of ``subnet`` may enter now. Otherwise the seconds after which it may. Mutates."""
        num_over = self._num_joined - len(in_flight)
        for _ in range(min(num_over - self._num_over, self.shares.num_places)):
            self.shares.pace.freed(now, somebody_waits=True)
        self._num_over = num_over
        if 2 * len(in_flight) < self.shares.num_places:
            self.shares.pace.nobody_waits()  # (time counts only while places are scarce)
        else:
            self.shares.pace.waits(now)
        num_own = sum(request.subnet == subnet for request in in_flight)
        own_part = max(num_own, 1) / (len(in_flight) + 1)
        wait_s = self.shares.join(subnet, num_own, len(in_flight), own_part, now)
        self._num_joined += not wait_s
        return wait_s


class BusyPeers:
    """The peers that are overloaded, and until when. Keys are peer ids, or begin with one."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def refused(self, peer: bytes, frame: Failed, now: float) -> None:
        wait_s = min(frame.retry_after_ms / 1000 or UNKNOWN_RETRY_S, MAX_RETRY_S)
        self._until[peer] = now + wait_s
        self._until.move_to_end(peer)
        if len(self._until) > MAX_BUSY:
            self._until.popitem(last=False)

    def idle(self, peer: bytes) -> None:
        """Nothing waits at ``peer`` any more. Forgets every key that begins with it. Mutates."""
        for key in [key for key in self._until if key.startswith(peer)]:
            del self._until[key]

    def is_busy(self, peer: bytes, now: float) -> bool:
        return now < self._until.get(peer, 0.0)

    def now(self, now: float) -> set[bytes]:
        return {peer for peer, until in self._until.items() if now < until}

    def least_wait_ms(self, peers: Iterable[bytes], now: float) -> int:
        """Milliseconds until the first busy one of ``peers`` may get a request again, at least 1; 0 if none is busy."""
        waits = [self._until[peer] - now for peer in peers if self.is_busy(peer, now)]
        return max(round(1000 * min(waits)), 1) if waits else 0
