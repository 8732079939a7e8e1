"""Bytes that are held for clients, in all and each its share: the rule of ``shares.has_room``, counted in bytes.

A client may hold more while it would then hold less than is free, so that one alone gets half of the room and something
is left for the next one. What comes while nothing is held is let in however large it is: it could never be otherwise.
Nothing here knows what is held; callers give back what they took.
"""

from collections import Counter
from collections.abc import Hashable

from mycelia.proto.admission.shares import has_room


class ByteShares:
    """Invariant: what ``take`` granted is never more than ``num_bytes`` in all, or one thing."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._held: Counter[Hashable] = Counter()

    def take(self, client: Hashable, num_bytes: int) -> bool:
        """Whether ``client`` now holds ``num_bytes`` more; give them back with ``free``. Mutates."""
        if self._held and not has_room(self._held[client] + num_bytes, self.total + num_bytes, self._num_bytes):
            return False
        self.force(client, num_bytes)
        return True

    def force(self, client: Hashable, num_bytes: int) -> None:
        """Count what is held in any case. Mutates."""
        self._held[client] += num_bytes

    def free(self, client: Hashable, num_bytes: int) -> None:
        """What ``take`` or ``force`` counted. Mutates."""
        self._held[client] -= num_bytes
        if not self._held[client]:
            del self._held[client]

    @property
    def total(self) -> int:
        """Bytes that are held."""
        return self._held.total()
