"""The queue between the network and its one reader. It is bounded for everything of which a peer sets the amount."""

from collections import deque
from collections.abc import AsyncIterator

import trio

from mycelia.node.network.network import Connected, Disconnected, NetworkEvent, Received

MAX_EVENTS = 1_024


class EventQueue:
    """Events in their order of arrival. Connection events always enter. Control messages wait for room, which holds
    back only their own stream. Gossip and complaints are dropped and counted when there is no room."""

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
        """The events that were not read yet, in order."""
        return tuple(self._events)

    def put(self, event: Connected | Disconnected) -> None:
        """Adds an event even when the queue is full: without it the reader would be wrong about a peer for ever."""
        self._append(event)

    def offer(self, event: NetworkEvent) -> bool:
        """Adds an event if there is room. Otherwise counts it in ``num_dropped`` and returns False."""
        if len(self._events) >= self._limit:
            self.num_dropped += 1
            return False
        self._append(event)
        return True

    async def put_wait(self, event: Received) -> None:
        """Waits for room and adds an event. After ``close`` it returns at once and drops the event."""
        while len(self._events) >= self._limit and not self._closed:
            await self._writers.park()
        self._append(event)

    def close(self) -> None:
        """Ends the queue: readers get the queued events, then the end."""
        self._closed = True
        self._readers.unpark_all()
        self._writers.unpark_all()

    async def read(self) -> AsyncIterator[NetworkEvent]:
        while True:
            await trio.lowlevel.checkpoint()  # (a queue full of digests must not delay all other tasks)
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
