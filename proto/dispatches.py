"""What this node sent where: knowledge that no digest and no report carries yet.

Between the moment a prompt goes to a peer and the peer's next digest, the sender already knows that the peer will hold
the prompt, and that the peer has one more request to work on. Both are used in routing as lower bounds.

Invariant: at most ``max_blocks`` blocks are remembered a peer; the oldest are dropped first, of one prompt the deepest.
"""

from collections import OrderedDict
from collections.abc import Sequence


class Dispatches:
    """Own dispatches of one namespace."""

    def __init__(self, keep_s: float, max_blocks: int = 4_096) -> None:
        self._keep_s = keep_s
        self._max_blocks = max_blocks
        self._sent: dict[bytes, OrderedDict[int, float]] = {}
        """Peer -> block hash -> when the peer's digest must have told it."""
        self._in_flight: dict[bytes, int] = {}

    def begin(self, peer: bytes, chain: Sequence[int], now: float) -> None:
        """A prompt with these block hashes goes to ``peer``."""
        self._in_flight[peer] = self._in_flight.get(peer, 0) + 1
        sent = self._sent.setdefault(peer, OrderedDict())
        for block in reversed(chain):  # the root last: without it the rest would match nothing
            sent[block] = now + self._keep_s
            sent.move_to_end(block)
        while len(sent) > self._max_blocks:
            sent.popitem(last=False)

    def withdraw(self, peer: bytes, chain: Sequence[int]) -> None:
        """``peer`` did not serve the prompt after all, and may not hold it."""
        sent = self._sent.get(peer)
        if sent is not None:
            for block in chain:
                sent.pop(block, None)

    def end(self, peer: bytes) -> None:
        """A dispatched request is over, however it ended."""
        remaining = self._in_flight.get(peer, 0) - 1
        if remaining > 0:
            self._in_flight[peer] = remaining
        else:
            self._in_flight.pop(peer, None)

    def in_flight(self, peer: bytes) -> int:
        """Requests sent to ``peer`` that are not over."""
        return self._in_flight.get(peer, 0)

    def num_in_flight(self) -> int:
        """Requests sent to anybody that are not over."""
        return sum(self._in_flight.values())

    def match(self, peer: bytes, chain: Sequence[int], now: float) -> int:
        """Leading blocks of ``chain`` that were sent to ``peer`` lately."""
        sent = self._sent.get(peer)
        depth = 0
        while sent and depth < len(chain) and sent.get(chain[depth], 0.0) > now:
            depth += 1
        return depth

    def forget(self, peer: bytes) -> None:
        """The peer is gone, and its cache with it."""
        self._sent.pop(peer, None)
