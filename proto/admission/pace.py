"""How much work senders may cause: each has a rate, and so has its subnet. What is over waits, nothing is lost.

Theory: a sender's work of ``tokens`` is paid off at ``rate``; one that is ``burst`` ahead waits until it is no longer
(the generic cell rate algorithm, ITU-T I.371: one number a sender). Honest senders that are over for a moment are slow
for a moment; one that is over all the time is served at its rate, and holds back nobody but its own subnet.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from mycelia.proto.admission.subnets import is_local

MAX_SENDERS = 8_192


@dataclass(frozen=True)
class Rate:
    """Tokens a second, and how many at once."""

    per_s: float
    burst: float


UNBOUNDED = Rate(math.inf, 1.0)


class Pace:
    """Of one kind of work. Invariant: at most MAX_SENDERS are known, those of whom least was heard lately go first."""

    def __init__(self, sender: Rate, subnet: Rate, local: Rate) -> None:
        """local: of a subnet in a private network, which may be a whole swarm."""
        self._sender, self._subnet, self._local = sender, subnet, local
        self._paid_at: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._paid_at)

    def delay_s(self, sender: bytes, subnet: str, tokens: float, now: float, patience_s: float) -> float | None:
        """After which time so much work of ``sender`` may be done, 0: at once. None: only after more than
        ``patience_s``, and it is not to be done. Mutates, unless it is None."""
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
        while len(self._paid_at) > MAX_SENDERS:
            self._paid_at.popitem(last=False)
        return delay_s

    def _due(self, key: Hashable, rate: Rate, tokens: float, now: float) -> tuple[float, Rate]:
        """When what ``key`` has caused by then is paid off."""
        return max(self._paid_at.get(key, now), now) + tokens / rate.per_s, rate
