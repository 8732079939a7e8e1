"""Which node answers a prompt: the one whose first token is expected soonest, weighed against what that costs others.

    u_p    = max(T - rho_p * m_p, 1)                                      tokens to compute
    soon_p = RTT_p + max(Q_p / R_p, n_p H_p / s_p) + min(u_p, U) / R_p    seconds, if the prompt is not unusually long
    more_p = max(u_p - U, 0) / R_p                                        seconds that it takes because it is
    b_p    = (r_p / H_p) * (u_p / R_p) * min(u_p / R_p / 2, (U - u) / R)  seconds that it costs who would come meanwhile
    cost_p = soon_p * L_p ** a(age_p) + more_p + d_p + b_p + (1 + k) ** 2 * u_p / R + (1 + n) ** 2 * d_p
                                                                          what is minimised, with some randomness

The prompt has T tokens; U is the mean of the prompts that this entry node sent lately, u what was to be computed of
them. Node p is believed to hold m_p tokens of the prompt; rho_p is the share of such beliefs that came true there. Q_p
tokens are to be computed at p before this prompt, at R_p tokens a second (R: the median of all nodes). n_p requests
must end before the prompt gets one of s_p slots; r_p have one, each for H_p seconds. L_p = (requests there + 1) /
slots_p', where slots_p' = slots_p / the median of all, from 1/2 to 2. d_p is by how many seconds first tokens from p
came later than expected (moving average), or are late now. Means over all nodes: n requests per slot, and k prompts to
compute, which are the reported tokens to compute / those of this entry node's mean prompt.

soon_p + more_p + d_p, the expected time, would be enough if choices were independent. They are not, in four ways:

- *A prompt makes a queue longer for the prompts after it.* Hence L, as in LMetric (arXiv 2603.15202), but weaker, since
  queues and slots are included already. A node with many requests is also one that other entry nodes choose, and will
  have got more by the time the prompt arrives. What they send are usual prompts. So L multiplies the time of a usual
  prompt, and not what a prompt of 100,000 tokens takes longer: that is known, and as long whatever else comes.
- *A prompt that is computed again takes time from all others*, at whichever node: what waits there goes elsewhere. A
  server with k prompts in it is busy for k / (1 + k) of the time if prompts arrive at random. A little more work there
  costs all of them, itself included, the derivative: (1 + k) ** 2 for each second of the work. k is measured, so
  computing again is cheap where no prompts wait and dear where they do, and nothing has to be tuned to a workload. The
  work counts at the usual rate R, not at p's own: otherwise the fastest nodes would look cheap to all entry nodes.
- *A prompt that is computed keeps a node from others*, one at a time. Meanwhile r_p / H_p prompts a second would come
  there (Little's law, Operations Research 9(3), 1961). Each waits half of the time on average, or goes elsewhere and
  computes what it would have found here: (U - u) / R, the mean of all. Hence b_p. It grows with the square of the time,
  so it is next to nothing for short prompts, and keeps long ones from nodes where many short ones are served. Where no
  prefixes are shared it is nothing. All of it is measured.
- *Reports are old.* What others sent since a report shows only as lateness, so d_p is the congestion that nobody
  announced. Like any congestion it costs more than one's own delay, because a prompt that joins a crowd delays all of
  it (Pigou; for roads Vickrey, American Economic Review 53(2), 1963): (1 + n) ** 2 likewise. Where the swarm is idle
  there is no crowd: a node that is late there is so by chance, and soon gets prompts again.

Where load reports are a second old, all entry nodes see the same idle node and send it more than it can take
(Mitzenmacher, "How useful is old information?", IEEE TPDS 11(1), 2000): hence the randomness in a busy swarm, and the
exponent ``a``, which falls with the age of the report. Randomness, too, multiplies only soon_p: otherwise it would send
long prompts to slow nodes, to avoid others that hardly ever come. docs/evaluation.md measures each term.

A peer's claims count only within bounds. If a node claims too much cache or too little load, its own answers show it,
through rho and d. Of a claimed rate at most the fastest observed one is believed, or four times the usual one. A node
without a past gets a bounded share of the prompts (``newcomers.py``).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mycelia.proto.config import RoutingConfig
from mycelia.proto.routing.candidates import Candidate, Candidates, Column
from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Vitals

_MAX_SLOTS_RATIO = 2.0
"""Bound on a candidate's slots / the median's, and on the inverse: all that a false claim of slots can gain."""
_MAX_RATE_RATIO = 16.0
"""Bound on the usual rate / this node's own rate, and on the inverse: a laptop against a good GPU."""
_MAX_UNSEEN = 4.0
"""A rate that was not observed is believed up to this many times the usual rate."""
_MAX_CROWD = 2.0
_LEAST_HOLD_S = 1e-3
"""What vitals can tell."""
_MAX_LOAD = 1e6
"""Larger claims count as this, so that costs fit their fields on the wire."""


@dataclass(frozen=True, eq=False)
class Terms:
    """The parts of the candidates' costs, in columns; times in seconds."""

    cost: Column
    queue_s: Column
    prefill_s: Column
    wait_s: Column
    """Expected time to the first token, by the nodes' reports."""
    late_s: Column
    """The same, corrected by the observed lateness."""
    load_factor: Column
    recompute_s: Column
    """The cost to other requests of computing tokens again."""
    blocking_s: Column
    """The cost to requests that would come to the node while it computes this prompt."""
    uncertain_s: Column
    """The part of ``wait_s`` that prompts of other entry nodes may prolong: that of a prompt of usual length."""
    crowd: float = 0.0
    """Load of all candidates: mean of requests per slot, each counted as 2 at most."""
    work_price: float = 1.0
    """What a second of computing costs all others, in seconds, itself included."""
    late_price: float = 1.0
    """The same for a second of lateness, besides this prompt's own wait."""


@dataclass(frozen=True)
class RatedCandidate:
    candidate: Candidate
    cost: float
    queue_s: float = 0.0
    prefill_s: float = 0.0
    wait_s: float = 0.0
    late_s: float = 0.0
    load_factor: float = 1.0
    recompute_s: float = 0.0


@dataclass(frozen=True, eq=False)
class Decision:
    candidates: Candidates
    terms: Terms
    place: int
    """Place of the chosen node among the candidates."""
    prompt_tokens: int
    given_reason: str = ""
    """Reason given by another rule than this module's."""
    is_kept: bool = False
    """The node is not the cheapest but has the conversation already."""

    @property
    def chosen(self) -> bytes:
        return self.candidates.peers[self.place]

    @property
    def matched_tokens(self) -> int:
        """Tokens of the prompt that the chosen node was believed to hold."""
        return int(self.candidates.matched_tokens[self.place])

    @property
    def uncached_tokens(self) -> float:
        """Tokens that the chosen node will probably compute, at least 1."""
        return max(self.prompt_tokens - float(self.candidates.precision[self.place]) * self.matched_tokens, 1.0)

    @property
    def expected_s(self) -> float:
        """Seconds until the first token, by the chosen node's reports."""
        return float(self.terms.wait_s[self.place])

    @property
    def prefill_s(self) -> float:
        """Seconds of prefill at the chosen node, by its reports."""
        return float(self.terms.prefill_s[self.place])

    @property
    def late_s(self) -> float:
        """Seconds until the first token, corrected by the chosen node's observed lateness."""
        return float(self.terms.late_s[self.place])

    def order(self, most: int) -> list[int]:
        """The place of the chosen node, then the places of the ``most`` - 1 cheapest other ones, by cost."""
        cost = self.terms.cost
        some = np.argpartition(cost, most)[: most + 1] if most + 1 < len(cost) else np.arange(len(cost))
        ranked = sorted(some.tolist(), key=self._rank)
        return [self.place, *(place for place in ranked if place != self.place)][:most]

    @cached_property
    def rated(self) -> tuple[RatedCandidate, ...]:
        """All candidates: the chosen one first, the others by cost."""
        return self.best_rated(len(self.candidates))

    def best_rated(self, most: int) -> tuple[RatedCandidate, ...]:
        """The first ``most`` of ``rated``; the others are not computed."""
        terms = self.terms
        return tuple(
            RatedCandidate(
                candidate=self.candidates[place],
                cost=terms.cost[place].item(),
                queue_s=terms.queue_s[place].item(),
                prefill_s=terms.prefill_s[place].item(),
                wait_s=terms.wait_s[place].item(),
                late_s=terms.late_s[place].item(),
                load_factor=terms.load_factor[place].item(),
                recompute_s=terms.recompute_s[place].item(),
            )
            for place in self.order(most)
        )

    @cached_property
    def reason(self) -> str:
        """The reason in words, for display."""
        if self.given_reason:
            return self.given_reason
        if len(self.candidates) == 1:
            return "the only node"
        held = f"{self.matched_tokens} of {self.prompt_tokens} tokens cached"
        expected = f"first token expected in {self.expected_s:.2f} s, {held}"
        if self.is_kept:
            return f"stays where the conversation is: {expected}"
        longest = int(self.candidates.matched_tokens.max())
        if longest > self.matched_tokens:
            return f"{expected}; who holds {longest} is slower, farther or busier"
        return expected

    def _rank(self, place: int) -> tuple[float, bool, bytes]:
        return (self.terms.cost[place].item(), place != self.candidates.local, self.candidates.peers[place])


class Rating(NamedTuple):
    """The costs of candidates by another rule than this module's."""

    cost: Column
    """At least 0 each; the least is chosen."""
    reason: str
    """The rule in words, for display."""
    uncertain: Column | None = None
    """The part of the cost that prompts of other entry nodes may change, which luck multiplies; None: all of it."""


Policy = Callable[[Candidates, int, Sequence[int]], Rating]
"""Another rule, for comparisons: (candidates, at least one; tokens of the prompt; its block hashes) -> costs."""


def choose(
    candidates: Candidates,
    prompt_tokens: int,
    config: RoutingConfig,
    luck: Column | None = None,
    rating: Rating | None = None,
) -> Decision:
    """The best of ``candidates`` for a prompt of ``prompt_tokens``. If most of a conversation was sent to one candidate
    before, it stays there while that is nearly as good. Raises LocalError when there is no candidate.

    luck: a number from 0 to 1 per candidate, drawn anew for each prompt; None: no randomness. rating: costs by another
    rule, which replace this module's; all else is the same for every rule.
    """
    if not len(candidates):
        raise LocalError("no node serves this model")
    terms = rate(candidates, prompt_tokens, config)
    uncertain = terms.uncertain_s
    if rating is not None:
        terms = replace(terms, cost=rating.cost)
        uncertain = rating.cost if rating.uncertain is None else rating.uncertain
    cost = terms.cost
    if luck is not None:
        cost = cost + config.spread * min(terms.crowd / config.spread_load, 1.0) * luck * uncertain
    best = cheapest(candidates, cost, luck)
    reason = rating.reason if rating is not None else ""
    sent = candidates.sent_tokens
    most_sent = np.maximum.reduce(sent)
    if 2 * most_sent >= prompt_tokens:
        enough = np.minimum.reduce(terms.cost) * config.keep_factor + config.keep_s
        there = np.where((sent == most_sent) & (terms.cost <= enough), terms.cost, np.inf)
        kept = cheapest(candidates, there)
        if math.isfinite(there[kept]):
            return Decision(candidates, terms, kept, prompt_tokens, reason, is_kept=kept != best)
    return Decision(candidates, terms, best, prompt_tokens, reason)


def patience_s(decision: Decision, config: RoutingConfig) -> float | None:
    """How long the chosen node may let the first token wait before the next best node would have been the better
    choice; None when there is no other node.

    Network delay is not included: a request that is handed back has lost half a round trip, and so has an answered one.
    """
    if len(decision.candidates) < 2:
        return None
    other = decision.order(2)[1]
    late_s = decision.terms.late_s
    return float(max(late_s[other] * config.bounce_factor, late_s[decision.place])) + config.bounce_s


def wait_here_s(vitals: Vitals, uncached_tokens: int, config: RoutingConfig) -> float:
    """Seconds until the first token of a prompt that is at the node with this load. 0: its speed is unknown."""
    if not vitals.prefill_rate:
        return 0.0
    rate_ = min(max(float(vitals.prefill_rate), config.min_prefill_rate), config.max_prefill_rate)
    num_requests, slots = vitals.active_requests + vitals.waiting_requests, max(vitals.slots, 1)
    queue_s = _queue_s(vitals.queued_tokens / rate_, num_requests, slots, vitals.hold_ms / 1000, config)
    return float(queue_s) + max(uncached_tokens, 1) / rate_


def cheapest(candidates: Candidates, cost: Column, luck: Column | None = None) -> int:
    """The place with the least cost; among equals this node itself, then the least luck, or without luck the lowest
    peer id: if many entry nodes know the same idle nodes, they must not all send their prompts to the same one."""
    ties: list[int] = (cost == np.minimum.reduce(cost)).nonzero()[0].tolist()
    if candidates.local in ties:
        return candidates.local
    if len(ties) == 1:
        return ties[0]
    return min(ties, key=lambda place: candidates.peers[place] if luck is None else luck[place])


def rate(candidates: Candidates, prompt_tokens: int, config: RoutingConfig) -> Terms:
    """The cost of each candidate; there is at least one."""
    # (numpy functions written in Python, such as np.clip, would take longer here than their work)
    known = candidates.prefill_rate > 0
    clamped = np.minimum(np.maximum(candidates.prefill_rate, config.min_prefill_rate), config.max_prefill_rate)
    told = clamped[known]
    usual_rate = _ordered(told, len(told) // 2) if len(told) else config.default_prefill_rate
    if candidates.local >= 0 and known[candidates.local]:  # (the only rate that is surely true)
        own_rate = float(clamped[candidates.local])
        usual_rate = min(max(usual_rate, own_rate / _MAX_RATE_RATIO), own_rate * _MAX_RATE_RATIO)
    believed = np.minimum(clamped, np.maximum(candidates.seen_rate, usual_rate * _MAX_UNSEEN))
    rate_ = np.where(known, believed, usual_rate)
    slots = np.maximum(candidates.slots, 1.0)
    usual_slots = _ordered(slots, (len(slots) - 1) // 2)
    slots_ratio = np.minimum(np.maximum(slots / usual_slots, 1 / _MAX_SLOTS_RATIO), _MAX_SLOTS_RATIO)
    # Whole blocks: this node's token-exact view of itself gives it no advantage over peers' digests.
    matched = np.floor_divide(candidates.matched_tokens, STRIDE) * STRIDE
    uncached = np.maximum(prompt_tokens - candidates.precision * matched, 1.0)
    prefill_s = uncached / rate_
    usual = candidates.usual
    usual_s = np.minimum(uncached, usual.tokens) / rate_
    queue_s = _queue_s(candidates.queued_tokens / rate_, candidates.num_requests, slots, candidates.hold_s, config)
    start_s = candidates.round_trip_s + queue_s  # (one round trip: the stream's opening carries the prompt)
    wait_s, uncertain_s = start_s + prefill_s, start_s + usual_s
    exponent = config.load_exponent * np.exp2(candidates.load_age_s * (-1.0 / config.load_half_life_s))
    load = np.minimum((candidates.num_requests + 1.0) / slots_ratio, _MAX_LOAD)
    load_factor = np.power(load, exponent)
    crowd = float(np.add.reduce(np.minimum(candidates.num_requests / slots, _MAX_CROWD))) / len(slots)
    work_price, late_price = (1.0 + candidates.prompts_per_node) ** 2, (1.0 + crowd) ** 2
    recompute_s = work_price * uncached / usual_rate
    blocking_s = _blocking_s(candidates, slots, prefill_s, usual.cached / usual_rate)
    late_s = wait_s + candidates.lateness_s
    expected_s = uncertain_s * load_factor + (prefill_s - usual_s) + candidates.lateness_s
    cost = expected_s + late_price * candidates.lateness_s + recompute_s + blocking_s
    others_s, prices = (recompute_s, blocking_s), (crowd, work_price, late_price)
    return Terms(cost, queue_s, prefill_s, wait_s, late_s, load_factor, *others_s, uncertain_s, *prices)


def _blocking_s(candidates: Candidates, slots: Column, prefill_s: Column, elsewhere_s: float) -> Column:
    """Seconds that requests lose in all that would come to each node during ``prefill_s``, if going elsewhere costs one
    of them ``elsewhere_s``."""
    hold_s = np.maximum(candidates.hold_s, _LEAST_HOLD_S)
    coming = np.where(candidates.hold_s > 0, np.minimum(candidates.num_requests, slots) / hold_s, 0.0) * prefill_s
    blocking_s: Column = np.minimum(coming, _MAX_LOAD) * np.minimum(prefill_s / 2, elsewhere_s)
    return blocking_s


def _queue_s(
    prefills_s: Column | float,
    num_requests: Column | float,
    slots: Column | float,
    hold_s: Column | float,
    config: RoutingConfig,
) -> Column:
    """Seconds until a prompt's own prefill begins. The entry node and the serving node must agree on this: otherwise no
    node hands back a prompt that waits for a slot."""
    # A request that waits for a slot waits for the prefills before it at the same time.
    num_before = np.maximum(num_requests - slots + 1.0, 0.0)
    queue_s: Column = np.maximum(prefills_s, num_before * np.minimum(hold_s, config.max_hold_s) / slots)
    return queue_s


def _ordered(values: Column, place: int) -> float:
    """The value at ``place`` if ``values`` were sorted."""
    ordered = values.copy()
    ordered.partition(place)
    return float(ordered[place])
