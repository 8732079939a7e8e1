"""Rules that know no cache: random, round robin, least load, and consistent hashing with bounded loads."""

import random
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from blake3 import blake3

from mycelia.proto.routing.candidates import Candidates
from mycelia.proto.routing.choose import Rating

CHWBL_LOAD = 1.25
"""Largest load of a node / the mean."""
CHWBL_BLOCKS = 2
"""Blocks that are hashed: a first block may be common to all prompts of a service."""
_REPLICAS = 64
"""Places of each peer on the ring."""


def choose_random(rng: random.Random, candidates: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Rating:
    order = {peer: rng.random() for peer in sorted(candidates.peers)}
    return Rating(np.array([order[peer] for peer in candidates.peers]), "by lot")


class RoundRobin:
    """One peer after the other, in the order of their ids."""

    def __init__(self) -> None:
        self._last = b""

    def __call__(self, candidates: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Rating:
        self._last = min(candidates.peers, key=lambda peer: (peer <= self._last, peer))
        return only(candidates, self._last, "its turn")


def least_load(candidates: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Rating:
    """Fewest requests."""
    return Rating(candidates.num_requests, "least loaded")


class BoundedLoads:
    """``chwbl``: consistent hashing with bounded loads (Mirrokni et al., arXiv 1608.01350; KubeAI v0.21). The prompt's
    first two blocks choose a place on the ring; the first peer from there on with load <= 1.25 x the mean, this prompt
    included."""

    def __init__(self) -> None:
        self._peers: tuple[bytes, ...] = ()
        self._ring: list[tuple[int, bytes]] = []

    def __call__(self, candidates: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Rating:
        peers = tuple(sorted(candidates.peers))
        if peers != self._peers:
            self._peers = peers
            self._ring = sorted((_place(peer, replica), peer) for peer in peers for replica in range(_REPLICAS))
        load = dict(zip(candidates.peers, candidates.num_requests.tolist(), strict=True))
        bound = CHWBL_LOAD * (sum(load.values()) + 1) / len(load)
        key = chain[min(CHWBL_BLOCKS, len(chain)) - 1] if chain else 0
        start = bisect_left(self._ring, (key, b""))
        chosen = peers[0]
        for step in range(len(self._ring)):
            peer = self._ring[(start + step) % len(self._ring)][1]
            if load[peer] + 1 <= max(bound, 1):
                chosen = peer
                break
        return only(candidates, chosen, "next on the ring with room")


def only(candidates: Candidates, chosen: bytes, reason: str) -> Rating:
    """The rating of a rule that knows one best candidate."""
    return Rating(np.array([float(peer != chosen) for peer in candidates.peers]), reason)


def _place(peer: bytes, replica: int) -> int:
    return int.from_bytes(blake3(b"%s%d" % (peer, replica)).digest(length=8), "big")
