"""Rules of other systems that know where prefixes are cached.

They are re-implementations for peers of different speeds and without a central router: compare orderings, not
absolutes. What a system knows of its workers and Mycelia's nodes do not report is replaced as each rule says. Matches
are in whole blocks. Luck multiplies as much of a cost in seconds as it does of the protocol's own, and all of a cost in
other units.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mycelia.proto.config import RoutingConfig
from mycelia.proto.routing.candidates import Candidates, Column
from mycelia.proto.routing.choose import Rating, rate
from mycelia.proto.wire.blocks import STRIDE

SGLANG_ABS, SGLANG_REL, SGLANG_MATCH = 64, 1.5, 0.3
DYNAMO_OVERLAP = 1.0
LLMD_PREFIX, LLMD_KV, LLMD_QUEUE = 3.0, 2.0, 2.0
PREBLE_BALANCE = 1.5
DEFAULT_RATE = 1_000.0
"""Tokens/s if no peer's rate is known."""
_CONFIG = RoutingConfig()


def longest_prefix(candidates: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Rating:
    """arXiv 2606.17059: the longest estimated match; among equals the least loaded."""
    cost = _uncached(candidates, prompt_tokens) + np.minimum(candidates.num_requests / 1e6, 0.5)
    return Rating(cost, "longest match")


def sglang(candidates: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Rating:
    """SGLang's router 0.3.2, policy ``cache_aware`` with the default thresholds of its ``router_args.py``: 64, 1.5 and
    0.3. Where loads differ by more than 64 and by more than a factor of 1.5: the least loaded. Otherwise the best
    match, if it is over 0.3 of the prompt, and without such a match the least loaded."""
    loads = candidates.num_requests
    most, least = float(loads.max()), float(loads.min())
    if most - least > SGLANG_ABS and most > SGLANG_REL * least:
        return Rating(loads, "out of balance: least loaded")
    if float(candidates.matched_tokens.max()) > SGLANG_MATCH * prompt_tokens:
        return Rating(_uncached(candidates, prompt_tokens), "best match")
    return Rating(loads, "no good match: least loaded")


def lmetric(candidates: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Rating:
    """arXiv 2603.15202: least (uncached tokens) x (requests + 1)."""
    return Rating(
        _uncached(candidates, prompt_tokens) * (candidates.num_requests + 1.0), "least uncached tokens x load"
    )


def gorgo(candidates: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Rating:
    """arXiv 2602.11688: least round trip + c x (queued + uncached tokens), one c for all peers: the inverse of the
    median of the known rates."""
    rates = np.sort(candidates.prefill_rate[candidates.prefill_rate > 0])
    usual_rate = float(rates[len(rates) // 2]) if len(rates) else DEFAULT_RATE
    uncached = _uncached(candidates, prompt_tokens)
    cost = candidates.round_trip_s + (candidates.queued_tokens + uncached) / usual_rate
    more_s = np.maximum(uncached - candidates.usual.tokens, 0.0) / usual_rate
    return Rating(cost, "least round trip + work", cost - more_s)


class Dynamo:
    """NVIDIA Dynamo 1.0's KV router (``lib/kv-router/src/scheduling/selector.rs``), with its default overlap weight of
    1 and temperature of 0: least overlap weight x (blocks to prefill, those that wait there included) + active blocks,
    all with this prompt added. Active blocks: requests there x the mean length of this router's prompts, because nodes
    do not report their KV cells in use."""

    def __init__(self) -> None:
        self._num_prompts = 0
        self._num_tokens = 0

    def __call__(self, candidates: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Rating:
        self._num_prompts += 1
        self._num_tokens += prompt_tokens
        usual_tokens = self._num_tokens / self._num_prompts
        prefill = candidates.queued_tokens + _uncached(candidates, prompt_tokens)
        active = candidates.num_requests * usual_tokens + prompt_tokens
        return Rating((DYNAMO_OVERLAP * prefill + active) / STRIDE, "least blocks to prefill + active blocks")


def llmd(candidates: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Rating:
    """llm-d's inference scheduler 0.7 with the scorers and weights of its guide for precise prefix caching: 3 x
    ``precise-prefix-cache-scorer`` + 2 x ``kv-cache-utilization-scorer`` + 2 x ``queue-scorer``, highest first. The
    first and the last are scaled to 0 to 1 between the least and the most of the candidates. KV utilisation: the share
    of the slots in use, because nodes do not report their KV cells in use."""
    matched = _matched(candidates)
    slots = np.maximum(candidates.slots, 1.0)
    waiting = np.maximum(candidates.num_requests - slots, 0.0)
    score = LLMD_PREFIX * _scaled(matched, where=matched > 0)
    score = score + LLMD_KV * (1.0 - np.minimum(candidates.num_requests / slots, 1.0))
    score = score + LLMD_QUEUE * (1.0 - _scaled(waiting) if waiting.max() > waiting.min() else 1.0)
    return Rating(LLMD_PREFIX + LLMD_KV + LLMD_QUEUE - score, "highest score of match, KV utilisation and queue")


def preble(candidates: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Rating:
    """Preble's E2 (arXiv 2407.00023; ``multi_node/global_scheduler_with_time.py`` at 0c962c4). More than half of the
    prompt is cached somewhere: exploit, the least loaded of the nodes with the longest match, unless the load there is
    more than 1.5 times the least. Otherwise explore: least load + prefill + eviction, the latter the time to compute
    again what this prompt displaces of a full cache, if half of that is asked for again. Load: seconds of work waiting
    there by the nodes' reports, where Preble adds up what its one router sent in three minutes."""
    matched, uncached = _matched(candidates), _uncached(candidates, prompt_tokens)
    terms = rate(candidates, prompt_tokens, _CONFIG)
    load_s = terms.queue_s + candidates.num_requests * candidates.hold_s / np.maximum(candidates.slots, 1.0)
    explore_s = load_s + 1.5 * terms.prefill_s
    longest = float(matched.max())
    if longest <= prompt_tokens - longest:
        return Rating(explore_s, "explore: least load and prefill")
    holders = uncached == uncached.min()
    if float(load_s[holders].min()) > PREBLE_BALANCE * float(load_s.min()) + float(terms.prefill_s[holders].min()):
        return Rating(explore_s, "out of balance: least load and prefill")
    return Rating(np.where(holders, load_s, load_s + 1e6), "exploit: least loaded of the longest match")


def least_ttft(candidates: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Rating:
    """The least expected time to the first token, from the same reports as Mycelia's own rule and nothing else."""
    terms = rate(candidates, prompt_tokens, _CONFIG)
    return Rating(terms.wait_s, "first token expected soonest", terms.uncertain_s)


def _matched(candidates: Candidates) -> Column:
    return np.floor_divide(candidates.matched_tokens, STRIDE) * STRIDE


def _uncached(candidates: Candidates, prompt_tokens: int) -> Column:
    """Tokens to compute; never 0, because the last one is always computed."""
    return np.maximum(prompt_tokens - _matched(candidates), 1.0)


def _scaled(values: Column, where: NDArray[np.bool_] | None = None) -> Column:
    """``values`` scaled to 0 to 1 between the least and the most of those ``where``; 1 where all of those are equal,
    and 0 elsewhere."""
    counted = values if where is None else values[where]
    if not len(counted):
        return np.zeros_like(values)
    least, most = float(counted.min()), float(counted.max())
    if most == least:
        return np.ones_like(values) if where is None else where.astype(np.float64)
    return np.clip((values - least) / (most - least), 0.0, 1.0)
