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
    """The peers that are overloaded with a model, and until when. Keys begin with the namespace and the peer's id."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def refused(self, key: bytes, frame: Failed, now: float) -> None:
        wait_s = min(frame.retry_after_ms / 1000 or UNKNOWN_RETRY_S, MAX_RETRY_S)
        self._until[key] = now + wait_s
        self._until.move_to_end(key)
        if len(self._until) > MAX_BUSY:
            self._until.popitem(last=False)

    def idle(self, beginning: bytes) -> None:
        """Nothing waits any more at the peer with the model. Forgets every key that begins so. Mutates."""
        for key in [key for key in self._until if key.startswith(beginning)]:
            del self._until[key]

    def is_busy(self, key: bytes, now: float) -> bool:
        return now < self._until.get(key, 0.0)

    def now(self, namespace: bytes, now: float) -> set[bytes]:
        """What follows the namespace in the keys that are busy."""
        return {
            key.removeprefix(namespace)
            for key, until in self._until.items()
            if now < until and key.startswith(namespace)
        }

    def least_wait_ms(self, keys: Iterable[bytes], now: float) -> int:
        """Milliseconds until the first busy one of ``keys`` may get a request again, at least 1; 0 if none is busy."""
        waits = [self._until[key] - now for key in keys if self.is_busy(key, now)]
        return max(round(1000 * min(waits)), 1) if waits else 0
