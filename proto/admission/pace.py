"""How much work senders may cause: each sender has a rate, and so has its subnet. Work above it waits; none is lost.

Theory: a sender's work of ``tokens`` is paid off at ``rate``; a sender that is more than ``burst`` ahead waits (the
generic cell rate algorithm, ITU-T I.371: one number per sender). An honest sender that exceeds its rate for a moment is
slow for a moment. A sender that always exceeds it is served at its rate, and delays only its own subnet.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from mycelia.proto.admission.subnets import is_local

MAX_SENDERS = 8_192
FORGOTTEN = 4
"""Senders whose work is paid off that are forgotten at a time: more than are added, so that their number falls."""


@dataclass(frozen=True)
class Rate:
    """Tokens a second, and how many at once."""

    per_s: float
    burst: float


UNBOUNDED = Rate(math.inf, 1.0)


class Pace:
    """The pace of one kind of work. Invariant: at most MAX_SENDERS are known. The ones quiet for longest go first: when
    their work is paid off, as if they were new, or when there are too many."""

    def __init__(self, sender: Rate, subnet: Rate, local: Rate) -> None:
        """local: the rate of a subnet in a private network, which may be a whole swarm."""
        self._sender, self._subnet, self._local = sender, subnet, local
        self._paid_at: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._paid_at)

    def delay_s(self, sender: bytes, subnet: str, tokens: float, now: float, patience_s: float) -> float | None:
        """Seconds after which this work of ``sender`` may be done; 0: at once. None: later than ``patience_s``, so it
        must not be done. Mutates, unless it is None."""
        dues = [
            self._due(sender, self._sender, tokens, now),
            self._due(subnet, self._local if is_local(subnet) else self._subnet, tokens, now),
        ]
        delay_s = max(0.0, *(paid_at - rate.burst / rate.per_s - now for paid_at, rate in dues))
        if delay_s > patience_s:
            return None
        for key, (paid_at, _) in zip((sender, subnet), dues, strict=True):
            self._paid_at[key] = paid_at
            self._paid_at.move_to_end(key)
        for _ in range(FORGOTTEN):
            if next(iter(self._paid_at.values()), math.inf) > now:
                break
            self._paid_at.popitem(last=False)
        while len(self._paid_at) > MAX_SENDERS:
            self._paid_at.popitem(last=False)
        return delay_s

    def _due(self, key: Hashable, rate: Rate, tokens: float, now: float) -> tuple[float, Rate]:
        """The time when all work that ``key`` has caused by then is paid off."""
        return max(self._paid_at.get(key, now), now) + tokens / rate.per_s, rate
