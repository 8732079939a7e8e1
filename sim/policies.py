"""Rules for which node answers a prompt, to compare with the protocol's own. Each entry node has its own rule object.

They see what the protocol reports to the entry node (``Candidate``), with its staleness; only the oracle looks at the
engines themselves. They are re-implementations from the papers and the code of those systems, for peers of different
speeds and without a central router: compare orderings, not absolutes. Matches are in whole blocks; ties go to the
lowest peer id unless a rule says otherwise.

- ``random``, ``round_robin``: as the names say.
- ``least_load``: fewest requests.
- ``chwbl``: consistent hashing with bounded loads (Mirrokni et al., 2016; KubeAI). The prompt's first two blocks choose
  a place on the ring; the first peer from there on with load <= 1.25 x the mean, this prompt included.
- ``longest_prefix``: arXiv 2606.17059. The longest estimated match; among equals the least loaded.
- ``sglang``: SGLang's router, cache_aware. Where loads differ by more than 32 and by more than a factor of 1.0001: the
  least loaded; otherwise the best match, if it is over half of the prompt; otherwise the least loaded, where SGLang
  takes the smallest tree.
- ``lmetric``: arXiv 2603.15202. Least (uncached tokens) x (requests + 1).
- ``gorgo``: arXiv 2602.11688. Least round trip + c x (queued + uncached tokens), one c for all peers: the inverse of
  the median of the known rates.
- ``oracle``: the protocol's own rule, with ``ORACLE_CONFIG``, if every report were true and fresh and included what is
  in flight to each engine.
- ``mycelia``: the protocol's own, ``proto.routing.choose``; ``mycelia-no-...``: without one of its terms, see
  ``ablations.py``.
"""

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from blake3 import blake3

from mycelia.proto.config import RoutingConfig
from mycelia.proto.routing.candidates import Candidate, Candidates
from mycelia.proto.routing.choose import Decision, Policy, Terms, choose
from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.ablations import ABLATIONS, Told, make_ablation

CHWBL_LOAD = 1.25
"""Largest load of a node / the mean."""
CHWBL_BLOCKS = 2
"""Blocks that are hashed: a first block may be common to all prompts of a service."""
_REPLICAS = 64
"""Places of each peer on the ring."""
SGLANG_ABS, SGLANG_REL, SGLANG_MATCH = 32, 1.0001, 0.5
DEFAULT_RATE = 1_000.0
"""Tokens/s if no peer's rate is known."""

Cost = Callable[[Candidate], float]


def decide(candidates: Sequence[Candidate], prompt_tokens: int, cost: Cost, reason: str) -> Decision:
    """The candidate that costs least; among equals the lowest peer id. Raises LocalError without candidates."""
    if not candidates:
        raise LocalError("no node serves this model")
    costs = [cost(one) for one in candidates]
    place = min(range(len(costs)), key=lambda place: (costs[place], candidates[place].peer))
    terms = Terms.of_costs(np.array(costs, dtype=np.float64))
    return Decision(Candidates.of(candidates), terms, place, prompt_tokens, reason)


def _uncached(one: Candidate, prompt_tokens: int) -> int:
    """Tokens to compute; never 0, because the last one is always computed."""
    return max(prompt_tokens - one.matched_tokens // STRIDE * STRIDE, 1)


# --- without a cache in mind ----------------------------------------------------------------------------------------


def choose_random(
    rng: random.Random, candidates: Sequence[Candidate], prompt_tokens: int, chain: Sequence[int]
) -> Decision:
    order = {one.peer: rng.random() for one in sorted(candidates, key=_peer)}
    return decide(candidates, prompt_tokens, lambda one: order[one.peer], "by lot")


class RoundRobin:
    """One peer after the other, in the order of their ids."""

    def __init__(self) -> None:
        self._last = b""

    def __call__(self, candidates: Sequence[Candidate], prompt_tokens: int, chain: Sequence[int]) -> Decision:
        turn = decide(candidates, prompt_tokens, lambda one: float(one.peer <= self._last), "its turn")
        self._last = turn.chosen
        return turn


def least_load(candidates: Sequence[Candidate], prompt_tokens: int, chain: Sequence[int]) -> Decision:
    return decide(candidates, prompt_tokens, lambda one: one.num_requests, "least loaded")


class BoundedLoads:
    def __init__(self) -> None:
        self._peers: tuple[bytes, ...] = ()
        self._ring: list[tuple[int, bytes]] = []

    def __call__(self, candidates: Sequence[Candidate], prompt_tokens: int, chain: Sequence[int]) -> Decision:
        peers = tuple(sorted(one.peer for one in candidates))
        if peers != self._peers:
            self._peers = peers
            self._ring = sorted((_place(peer, replica), peer) for peer in peers for replica in range(_REPLICAS))
        load = {one.peer: one.num_requests for one in candidates}
        bound = CHWBL_LOAD * (sum(load.values()) + 1) / max(len(load), 1)
        key = chain[min(CHWBL_BLOCKS, len(chain)) - 1] if chain else 0
        start = bisect_left(self._ring, (key, b""))
        chosen = b""
        for step in range(len(self._ring)):
            peer = self._ring[(start + step) % len(self._ring)][1]
            if load[peer] + 1 <= max(bound, 1):
                chosen = peer
                break
        return decide(candidates, prompt_tokens, lambda one: float(one.peer != chosen), "next on the ring with room")


def _place(peer: bytes, replica: int) -> int:
    return int.from_bytes(blake3(b"%s%d" % (peer, replica)).digest(length=8), "big")


# --- with one -------------------------------------------------------------------------------------------------------


def longest_prefix(candidates: Sequence[Candidate], prompt_tokens: int, chain: Sequence[int]) -> Decision:
    def cost(one: Candidate) -> float:
        return _uncached(one, prompt_tokens) + min(one.num_requests / 1e6, 0.5)

    return decide(candidates, prompt_tokens, cost, "longest match")


def sglang(candidates: Sequence[Candidate], prompt_tokens: int, chain: Sequence[int]) -> Decision:
    loads = [one.num_requests for one in candidates]
    if loads and max(loads) - min(loads) > SGLANG_ABS and max(loads) > SGLANG_REL * min(loads):
        return decide(candidates, prompt_tokens, lambda one: one.num_requests, "out of balance: least loaded")
    longest = max((one.matched_tokens for one in candidates), default=0)
    if longest > SGLANG_MATCH * prompt_tokens:
        return decide(candidates, prompt_tokens, lambda one: _uncached(one, prompt_tokens), "best match")
    return decide(candidates, prompt_tokens, lambda one: one.num_requests, "no good match: least loaded")


def lmetric(candidates: Sequence[Candidate], prompt_tokens: int, chain: Sequence[int]) -> Decision:
    return decide(
        candidates,
        prompt_tokens,
        lambda one: _uncached(one, prompt_tokens) * (one.num_requests + 1),
        "least uncached x load",
    )


def gorgo(candidates: Sequence[Candidate], prompt_tokens: int, chain: Sequence[int]) -> Decision:
    rates = sorted(one.prefill_rate for one in candidates if one.prefill_rate > 0)
    rate = rates[len(rates) // 2] if rates else DEFAULT_RATE
    return decide(
        candidates,
        prompt_tokens,
        lambda one: one.round_trip_s + (one.queued_tokens + _uncached(one, prompt_tokens)) / rate,
        "least round trip + work",
    )


# --- with perfect knowledge -----------------------------------------------------------------------------------------

ORACLE_CONFIG = RoutingConfig(load_exponent=0.6, crowd_weight=4.0)
"""With perfect knowledge a hit is worth less than what nodes of this protocol pay for it where all are busy. With their
weight the oracle would be slower than they are, and useless as a bound."""

Look = Callable[[Candidate, Sequence[int]], Candidate]
"""(what the protocol knows, the prompt's block hashes) -> the same candidate as it truly is at this moment."""


def oracle(look: Look, candidates: Sequence[Candidate], prompt_tokens: int, chain: Sequence[int]) -> Decision:
    return choose(Candidates.of([look(one, chain) for one in candidates]), prompt_tokens, ORACLE_CONFIG)


# --- by name --------------------------------------------------------------------------------------------------------

OWN, ORACLE = "mycelia", "oracle"
_PLAIN: dict[str, Policy] = {
    "least_load": least_load,
    "longest_prefix": longest_prefix,
    "sglang": sglang,
    "lmetric": lmetric,
    "gorgo": gorgo,
}
NAMES = ("random", "round_robin", "least_load", "chwbl", *list(_PLAIN)[1:], OWN, ORACLE)
"""All rules except the ablations."""


def as_known(candidates: Sequence[Candidate], chain: Sequence[int]) -> Sequence[Candidate]:
    """``candidates`` unchanged, where it is unknown what own dispatches added to their load."""
    return candidates


def make_policy(name: str, rng: random.Random, look: Look, told: Told = as_known) -> Policy | None:
    """A rule object for one entry node; None for the protocol's own. Raises LocalError for an unknown name."""
    if name in ABLATIONS:
        return make_ablation(name, rng, told)
    match name:
        case "mycelia":
            return None
        case "random":
            return partial(choose_random, rng)
        case "round_robin":
            return RoundRobin()
        case "chwbl":
            return BoundedLoads()
        case "oracle":
            return partial(oracle, look)
    if name not in _PLAIN:
        raise LocalError(f"no policy {name}; there are {', '.join((*NAMES, *ABLATIONS))}")
    return _PLAIN[name]


def _peer(one: Candidate) -> bytes:
    return one.peer
