"""Version floors: which versions of forgotten digests stay refused.

A reader forgets an owner that went quiet, and all owners when it restarts. A peer that recorded an older head could
then present it as new. The floor of an owner is the highest version that is no longer accepted.

Invariant: at most ``max_floors`` floors, the most recently set; a floor never sinks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

_Key = tuple[bytes, bytes]


@dataclass(frozen=True)
class Floor:
    """Heads of ``owner`` in ``namespace`` up to (``epoch``, ``seq``) are refused."""

    owner: bytes
    namespace: bytes
    epoch: int
    seq: int
    at: float
    """Unix time in seconds at which the owner was last held."""


class Floors:
    """At most ``max_floors`` floors, each for ``keep_s`` seconds after its owner was last held."""

    def __init__(self, max_floors: int, keep_s: float) -> None:
        self._max_floors = max_floors
        self._keep_s = keep_s
        self._floors: dict[_Key, Floor] = {}

    def __len__(self) -> int:
        return len(self._floors)

    def __contains__(self, key: object) -> bool:
        return key in self._floors

    def __iter__(self) -> Iterator[Floor]:
        """Iterates from the floor set first."""
        return iter(self._floors.values())

    def refuse(self, owner: bytes, namespace: bytes, version: tuple[int, int]) -> bool:
        """Whether ``version``, (epoch, seq), is below or at the floor. Does not mutate."""
        floor = self._floors.get((owner, namespace))
        return floor is not None and version <= (floor.epoch, floor.seq)

    def set(self, floor: Floor) -> None:
        """Set the floor unless there is a higher one. Drops the oldest if there are too many. Mutates."""
        key = (floor.owner, floor.namespace)
        if self.refuse(*key, (floor.epoch, floor.seq)):
            return
        self._floors.pop(key, None)
        if len(self._floors) >= self._max_floors:
            del self._floors[next(iter(self._floors))]
        self._floors[key] = floor

    def expire(self, now: float) -> None:
        """Drop floors that are too old. Call every few seconds. Mutates."""
        keep_from = now - self._keep_s
        for key in [key for key, floor in self._floors.items() if floor.at < keep_from]:
            del self._floors[key]
