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
        self._running: dict[bytes, dict[bytes, tuple[float, int]]] = {}
        """Peer -> request -> (when it was sent, tokens to prefill)."""

    def begin(self, request_id: bytes, peer: bytes, chain: Sequence[int], uncached_tokens: int, now: float) -> None:
        """A prompt with these block hashes goes to ``peer``, which is expected to prefill ``uncached_tokens``."""
        self._running.setdefault(peer, {})[request_id] = (now, uncached_tokens)
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

    def end(self, request_id: bytes, peer: bytes) -> None:
        """A dispatched request is over, however it ended."""
        running = self._running.get(peer, {})
        running.pop(request_id, None)
        if not running:
            self._running.pop(peer, None)

    def in_flight(self, peer: bytes) -> int:
        """Requests sent to ``peer`` that are not over."""
        return len(self._running.get(peer, ()))

    def num_in_flight(self) -> int:
        """Requests sent to anybody that are not over."""
        return sum(map(len, self._running.values()))

    def running(self) -> dict[bytes, list[tuple[float, int]]]:
        """Peer -> (when it was sent, tokens to prefill) of each request there that is not over."""
        return {peer: list(running.values()) for peer, running in self._running.items()}

    def matches(self, chain: Sequence[int], now: float) -> dict[bytes, int]:
        """Peer -> leading blocks of ``chain`` that were sent there lately, where there are any."""
        if not chain:
            return {}
        root = chain[0]
        found: dict[bytes, int] = {}
        for peer, sent in self._sent.items():
            if sent.get(root, 0.0) > now:
                found[peer] = next(
                    (place for place, block in enumerate(chain) if sent.get(block, 0.0) <= now), len(chain)
                )
        return found

    def forget(self, peer: bytes) -> None:
        """The peer is gone, and its cache with it."""
        self._sent.pop(peer, None)
