"""Bytes held for clients, bounded in total and per client: the rule of ``shares.has_room``, counted in bytes.

A client may hold more while it would then hold less than is free. So one client alone gets half of the room and some is
left for the next one. While nothing is held, any size is let in: otherwise a large one could never enter. The caller
gives back what it took.
"""

from collections.abc import Hashable

from mycelia.proto.admission.shares import has_room


class ByteShares:
    """Bytes held per client. Invariant: ``take`` grants at most ``num_bytes`` in total, or a single item."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._held: dict[Hashable, int] = {}

    def take(self, client: Hashable, num_bytes: int) -> bool:
        """Whether ``client`` now holds ``num_bytes`` more; give them back with ``free``. Mutates."""
        held = self._held.get(client, 0) + num_bytes
        if self._held and not has_room(held, self.total + num_bytes, self._num_bytes):
            return False
        self.force(client, num_bytes)
        return True

    def force(self, client: Hashable, num_bytes: int) -> None:
        self._held[client] = self._held.get(client, 0) + num_bytes

    def free(self, client: Hashable, num_bytes: int) -> None:
        held = self._held.pop(client, 0) - num_bytes
        if held:
            self._held[client] = held

    @property
    def total(self) -> int:
        return sum(self._held.values())
