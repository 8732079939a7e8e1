"""Which node shall answer a prompt: the one where its first token is expected soonest, weighed by how busy it is.

    wait_p = 2 RTT_p + (Q_p + T - rho_p * m_p) / R_p                 seconds until the first token
    cost_p = beta_p * wait_p * ((k_p + 1) / slots_p')**a(age_p)     what is minimised

T tokens of the prompt, m_p those that p is believed to hold, rho_p the share of such beliefs that came true there, Q_p
and k_p the tokens and requests before this one, R_p tokens of prefill a second, beta_p how much longer than expected
first tokens from p took lately. slots_p' = slots_p / the median of all candidates', from 1/4 to 4: a node that works on
many requests at once feels each of them less.

The time alone would be enough if every choice stood alone. It does not: a prompt that is computed twice takes the
cells of another, and a queue that is joined is longer for the next. The product keeps prompts where their prefixes are
until that place is busier than the prefix is worth (LMetric, arXiv 2603.15202; here with rates, round trips and beliefs
of each peer). Load that was heard of long ago says little: ``a`` falls with its age, and affinity remains.

A peer's word enters only bounded: whoever claims too much cache or too little load is found out by its own answers,
through rho and beta, and what is claimed of rates is clamped.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proto.blocks import STRIDE
from proto.config import RoutingConfig
from proto.errors import LocalError

ROUND_TRIPS = 2
"""One to open a stream, one for the prompt and its first token."""
_MAX_SLOTS_RATIO = 4.0
"""Of a candidate's slots and the median's, both ways: slowness outweighs what a claim of more would win."""
_MAX_LOAD = 1e6
"""Claims of more are as good; keeps costs within what the wire can tell."""


@dataclass(frozen=True)
class Candidate:
    """A node that could serve, with what is known of it now."""

    peer: bytes
    matched_tokens: int
    """Estimated tokens of the prompt in its cache."""
    num_requests: int
    """Requests active or waiting there, as reported, and those sent there by this node since."""
    is_local: bool
    queued_tokens: int = 0
    """Of prompts that are to be prefilled there before this one."""
    slots: int = 1
    """Requests it works on at once."""
    prefill_rate: float = 0.0
    """Tokens/s; 0 when nobody has measured it yet."""
    round_trip_s: float = 0.0
    precision: float = 1.0
    """rho: tokens found in its cache / tokens believed to be there, of late."""
    slowness: float = 1.0
    """beta: observed / expected wait, of late."""
    load_age_s: float = 0.0
    """Since its load was last heard of."""
    sent_tokens: int = 0
    """Of the prompt, sent there by this node lately: earlier turns of the same conversation, mostly."""


@dataclass(frozen=True)
class RatedCandidate:
    """A candidate with the terms of its cost."""

    candidate: Candidate
    cost: float
    queue_s: float = 0.0
    prefill_s: float = 0.0
    load_factor: float = 1.0

    @property
    def wait_s(self) -> float:
        """Expected time to the first token."""
        return _wait_s(self.candidate, self.queue_s, self.prefill_s)


@dataclass(frozen=True)
class Decision:
    """The choice and every term it was made of; the chosen candidate first, the others by their cost."""

    chosen: bytes
    reason: str
    prompt_tokens: int
    rated: tuple[RatedCandidate, ...]

    @property
    def matched_tokens(self) -> int:
        """The match that the chosen node was chosen on."""
        return self.rated[0].candidate.matched_tokens


Policy = Callable[[Sequence[Candidate], int, Sequence[int]], Decision]
"""(candidates, tokens of the prompt, its block hashes) -> who shall answer. Candidates may be none: LocalError then."""


def choose(candidates: Sequence[Candidate], prompt_tokens: int, config: RoutingConfig) -> Decision:
    """The best of ``candidates`` for a prompt of ``prompt_tokens``. A conversation, most of which was sent to one of
    them before, stays there while that is nearly as good. Raises LocalError when there is no candidate."""
    if not candidates:
        raise LocalError("no node serves this model")
    rated = sorted(rate(candidates, prompt_tokens, config), key=_rank)
    best = rated[0]
    most_sent = max(one.sent_tokens for one in candidates)
    enough = best.cost * config.keep_factor + config.keep_s
    kept = next((one for one in rated if one.candidate.sent_tokens == most_sent and one.cost <= enough), best)
    if 2 * most_sent < prompt_tokens:
        kept = best
    if kept is not best:
        rated.remove(kept)
        rated.insert(0, kept)
    return Decision(kept.candidate.peer, _reason(rated, kept is not best, prompt_tokens), prompt_tokens, tuple(rated))


def rate(candidates: Sequence[Candidate], prompt_tokens: int, config: RoutingConfig) -> list[RatedCandidate]:
    """Every candidate with its cost, in the order given."""
    known = sorted(_clamped(one.prefill_rate, config) for one in candidates if one.prefill_rate > 0)
    usual_rate = known[len(known) // 2] if known else config.default_prefill_rate
    usual_slots = sorted(max(one.slots, 1) for one in candidates)[(len(candidates) - 1) // 2]
    return [_rate(one, prompt_tokens, config, usual_rate, usual_slots) for one in candidates]


def _rate(
    candidate: Candidate, prompt_tokens: int, config: RoutingConfig, usual_rate: float, usual_slots: int
) -> RatedCandidate:
    rate_ = _clamped(candidate.prefill_rate, config) if candidate.prefill_rate > 0 else usual_rate
    # Whole blocks: this node's token-exact view of itself has no edge over what peers tell.
    matched = candidate.matched_tokens // STRIDE * STRIDE
    uncached = max(prompt_tokens - candidate.precision * matched, 1.0)
    queue_s, prefill_s = candidate.queued_tokens / rate_, uncached / rate_
    exponent = config.load_exponent * 0.5 ** (candidate.load_age_s / config.load_half_life_s)
    slots = min(max(candidate.slots / usual_slots, 1 / _MAX_SLOTS_RATIO), _MAX_SLOTS_RATIO)
    load = min((candidate.num_requests + 1) / slots, _MAX_LOAD)
    factor = math.pow(load, exponent)
    cost = candidate.slowness * _wait_s(candidate, queue_s, prefill_s) * factor
    return RatedCandidate(candidate, cost, queue_s, prefill_s, factor)


def _wait_s(candidate: Candidate, queue_s: float, prefill_s: float) -> float:
    return ROUND_TRIPS * candidate.round_trip_s + queue_s + prefill_s


def _clamped(rate_: float, config: RoutingConfig) -> float:
    return min(max(rate_, config.min_prefill_rate), config.max_prefill_rate)


def _rank(rated: RatedCandidate) -> tuple[float, bool, bytes]:
    return (rated.cost, not rated.candidate.is_local, rated.candidate.peer)


def _reason(rated: Sequence[RatedCandidate], is_kept: bool, prompt_tokens: int) -> str:
    chosen, others = rated[0], rated[1:]
    if not others:
        return "the only node"
    held = f"{chosen.candidate.matched_tokens} of {prompt_tokens} tokens cached"
    expected = f"first token expected in {chosen.wait_s:.2f} s, {held}"
    if is_kept:
        return f"stays where the conversation is: {expected}"
    longest = max(one.candidate.matched_tokens for one in others)
    if longest > chosen.candidate.matched_tokens:
        return f"{expected}; who holds {longest} is slower, farther or busier"
    return expected
