"""The queue between the network and its one reader. Bounded where a peer decides how much arrives."""

from collections import deque
from collections.abc import AsyncIterator

import trio

from mycelia.node.network.network import Connected, Disconnected, NetworkEvent, Received

MAX_EVENTS = 1_024


class EventQueue:
    """Order of arrival. Connection events always enter; control messages wait for room, which holds back only the
    stream they came on; gossip and complaints are dropped and counted when there is no room."""

    def __init__(self, limit: int = MAX_EVENTS) -> None:
        self._limit = limit
        self._events: deque[NetworkEvent] = deque()
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()
        self._closed = False
        self.num_dropped = 0

    def __len__(self) -> int:
        return len(self._events)

    @property
    def waiting(self) -> tuple[NetworkEvent, ...]:
        """What was not read yet, in order."""
        return tuple(self._events)

    def put(self, event: Connected | Disconnected) -> None:
        """Always enters: one that was lost would leave the reader wrong about a peer for ever."""
        self._append(event)

    def offer(self, event: NetworkEvent) -> bool:
        """Enters if there is room. False, and one more in ``num_dropped``, if not."""
        if len(self._events) >= self._limit:
            self.num_dropped += 1
            return False
        self._append(event)
        return True

    async def put_wait(self, event: Received) -> None:
        """Waits for room; after ``close`` returns at once and the event is gone."""
        while len(self._events) >= self._limit and not self._closed:
            await self._writers.park()
        self._append(event)

    def close(self) -> None:
        """Readers get what is queued, then the end."""
        self._closed = True
        self._readers.unpark_all()
        self._writers.unpark_all()

    async def read(self) -> AsyncIterator[NetworkEvent]:
        while True:
            await trio.lowlevel.checkpoint()  # (a queue full of digests must not hold up everything else)
            while not self._events:
                if self._closed:
                    return
                await self._readers.park()
            event = self._events.popleft()
            self._writers.unpark()
            yield event

    def _append(self, event: NetworkEvent) -> None:
        if not self._closed:
            self._events.append(event)
            self._readers.unpark()
