"""The prompts that this node sent to each peer: knowledge that no digest and no load report contains yet.

From the moment a prompt goes to a peer until the peer's next digest, the sender already knows that the peer will hold
the prompt and has one more request. Routing uses both as lower bounds. A prefix that only its owner may reuse
(``sharing.py``) is in no digest: the sender's memory alone leads such a conversation back.

Invariant: at most ``max_blocks`` blocks are kept per peer. The oldest go first; within one prompt, the deepest.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from mycelia.proto.routing.candidates import UNKNOWN, Usual

_NEWEST_WEIGHT = 0.05
"""Weight of the newest prompt in the means of all: about the last twenty count."""


class UnderWay(NamedTuple):
    """A request that was sent to a peer."""

    sent_at: float
    tokens: int
    """Tokens to prefill."""
    due_at: float
    """When the first token is expected; infinity after it has come."""


class Dispatches:
    """This node's own dispatches in one namespace."""

    def __init__(self, max_blocks: int = 4_096) -> None:
        self._max_blocks = max_blocks
        self._sent: dict[bytes, OrderedDict[int, float]] = {}
        """Peer -> block hash -> time by which the peer's digest must contain it."""
        self._running: dict[bytes, dict[bytes, UnderWay]] = {}
        """Peer -> request id -> request."""
        self._num_sent = 0
        self.usual = UNKNOWN
        """Read-only."""

    def note(self, sent: Usual) -> None:
        """A prompt of this kind was sent. Mutates."""
        self._num_sent += 1
        weight, before = max(_NEWEST_WEIGHT, 1 / self._num_sent), self.usual if self._num_sent > 1 else sent
        self.usual = Usual(*(old + weight * (new - old) for old, new in zip(before, sent, strict=True)))

    def begin(self, request_id: bytes, peer: bytes, uncached_tokens: int, expected_s: float, now: float) -> None:
        """A prompt goes to ``peer``, which is expected to prefill ``uncached_tokens`` and to send the first token after
        ``expected_s``."""
        self._running.setdefault(peer, {})[request_id] = UnderWay(now, uncached_tokens, now + expected_s)

    def remember(self, peer: bytes, chain: Sequence[int], until: float) -> None:
        """``peer`` got a sequence with these block hashes, and counts as holding it until ``until``."""
        sent = self._sent.setdefault(peer, OrderedDict())
        for block in reversed(chain):  # the root last: without it the other blocks would match nothing
            sent[block] = until
            sent.move_to_end(block)
        while len(sent) > self._max_blocks:
            sent.popitem(last=False)

    def withdraw(self, peer: bytes, chain: Sequence[int]) -> None:
        """``peer`` did not serve the prompt in the end, and may not hold it."""
        sent = self._sent.get(peer)
        if sent is not None:
            for block in chain:
                sent.pop(block, None)

    def end(self, request_id: bytes, peer: bytes) -> None:
        running = self._running.get(peer, {})
        running.pop(request_id, None)
        if not running:
            self._running.pop(peer, None)

    def in_flight(self, peer: bytes) -> int:
        """Number of requests sent to ``peer`` that are not over."""
        return len(self._running.get(peer, ()))

    def num_in_flight(self) -> int:
        """Number of requests sent to all peers that are not over."""
        return sum(map(len, self._running.values()))

    def on_first_token(self, request_id: bytes, peer: bytes) -> None:
        running = self._running[peer]
        running[request_id] = running[request_id]._replace(due_at=math.inf)

    def running(self) -> dict[bytes, list[UnderWay]]:
        """Peer -> its requests that are not over."""
        return {peer: list(running.values()) for peer, running in self._running.items()}

    def matches(self, chain: Sequence[int], now: float) -> dict[bytes, int]:
        """Peer -> number of leading blocks of ``chain`` sent there lately, for each peer with at least one."""
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
