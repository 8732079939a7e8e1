"""Gossip to neighbours in batches: each neighbour gets at most one in an interval.

What a message costs both ends is mostly the packet around it: wake up, decrypt, read, hand over. In a resting swarm of
a hundred nodes, each of a node's five neighbours would get two or three packets a second with one heartbeat each. And a
neighbour that brings a message while it waits here does not get it back, so a busy link carries a message once, and
not in both directions: a message arrives about half as often as a node has neighbours.

The first message of an interval goes at once. So a quiet swarm waits for nothing, and a change in a busy one waits for
half an interval at each hop. Digests may be 10 s old; load does not travel by gossip.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

PeerT = TypeVar("PeerT", bound=Hashable)
MessageT = TypeVar("MessageT")

BATCH_S = 2.0
"""Length of an interval."""
MAX_BATCH, MAX_BATCH_BYTES = 32, 65_536
"""Messages and bytes that wait for one neighbour; a batch of that size goes at once."""


class Batches(Generic[PeerT, MessageT]):
    """What waits for each neighbour of one node. Call ``begin_interval`` each BATCH_S."""

    def __init__(self) -> None:
        self._waiting: dict[PeerT, dict[bytes, tuple[MessageT, int]]] = {}
        """Neighbour that got something in this interval -> id of a message that waits -> the message and its bytes."""

    def add(self, peer: PeerT, message_id: bytes, message: MessageT, num_bytes: int) -> list[MessageT]:
        """Takes a message for ``peer``, and returns what to send it now: nothing if the message waits."""
        waiting = self._waiting.get(peer)
        if waiting is None:
            self._waiting[peer] = {}
            return [message]
        waiting[message_id] = (message, num_bytes)
        if len(waiting) < MAX_BATCH and sum(size for _, size in waiting.values()) < MAX_BATCH_BYTES:
            return []
        self._waiting[peer] = {}
        return _messages(waiting)

    def drop(self, peer: PeerT, message_id: bytes) -> None:
        """``peer`` has the message: it does not get it."""
        waiting = self._waiting.get(peer)
        if waiting:
            waiting.pop(message_id, None)

    def forget(self, peer: PeerT) -> None:
        """``peer`` is no neighbour any more."""
        self._waiting.pop(peer, None)

    def begin_interval(self) -> dict[PeerT, list[MessageT]]:
        """What to send now to each neighbour for which something waited."""
        batches = {peer: _messages(waiting) for peer, waiting in self._waiting.items() if waiting}
        self._waiting = {peer: {} for peer in batches}
        return batches

    def check_invariants(self) -> None:
        for waiting in self._waiting.values():
            assert len(waiting) < MAX_BATCH
            assert sum(size for _, size in waiting.values()) < MAX_BATCH_BYTES


def _messages(waiting: dict[bytes, tuple[MessageT, int]]) -> list[MessageT]:
    return [message for message, _ in waiting.values()]
