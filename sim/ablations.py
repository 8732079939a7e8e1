"""The protocol's own rule with one term of its cost left out: ``mycelia-no-rtt`` and so on.

Each either hides one thing from ``proto.routing.choose`` or sets one tunable so that it has no effect. The rest of the
node still knows what is hidden: only choices change.

- ``no-rtt``: all nodes are equally near.
- ``no-queue``: no tokens wait anywhere.
- ``no-rate``: one prefill rate for all, the median of the known ones.
- ``no-slots``: all nodes work on equally many requests at once.
- ``no-hold``: a node whose slots are all taken does not count as later for that. (Without the time of requests, it is
  not known either how many come to a node.)
- ``no-recompute``: computing tokens again costs other requests nothing.
- ``no-blocking``: prompts that would come to the node meanwhile do not count.
- ``no-load``: the time to the first token alone, without the factor for load.
- ``no-usual``: of a long prompt, too, the factor for load and luck multiply all of the time to its first token.
- ``no-ageing``: old load reports count like fresh ones.
- ``no-precision``: beliefs about caches count as true.
- ``no-lateness``: observed lateness of a node does not count.
- ``no-dispatches``: the node forgets what it sent where, both as load and as cached tokens.
- ``no-crowd``: computing tokens again, and lateness, cost no more where the swarm is busy.
- ``no-hand_backs``, ``no-moves``, ``no-subscriptions``, ``no-bounds``, ``no-luck``, ``no-keeps``: without one of the
  mechanisms that all rules have, see ``mechanisms.py``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median_low

from mycelia.proto.config import RoutingConfig
from mycelia.proto.routing.candidates import Candidate, Candidates
from mycelia.proto.routing.choose import Policy, Rating, rate
from mycelia.sim.mechanisms import MECHANISMS

PREFIX = "mycelia-no-"

Told = Callable[[Sequence[Candidate], Sequence[int]], Sequence[Candidate]]
"""(candidates, the prompt's block hashes) -> the candidates as they would be without own dispatches."""
_See = Callable[[Sequence[Candidate]], Sequence[Candidate]]


@dataclass(frozen=True)
class _Ablation:
    see: _See = tuple
    """The candidates as ``choose`` gets them."""
    config: RoutingConfig = RoutingConfig()  # noqa: RUF009  frozen
    has_usual: bool = True
    """Whether a prompt's length is compared with the usual one."""
    has_recompute: bool = True
    """Whether computing again costs others anything."""
    has_blocking: bool = True
    """Whether the prompts that would come to the node meanwhile count."""
    has_crowd: bool = True
    """Whether that, and lateness, cost more where the swarm is busy."""


def _hide(**values: float) -> _See:
    return lambda candidates: [replace(one, **values) for one in candidates]  # type: ignore[arg-type]


def _one_rate(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    known = [one.prefill_rate for one in candidates if one.prefill_rate > 0]
    return _hide(prefill_rate=median_low(known) if known else 0.0)(candidates)


_ABLATIONS = {
    "rtt": _Ablation(_hide(round_trip_s=0.0)),
    "queue": _Ablation(_hide(queued_tokens=0)),
    "rate": _Ablation(_one_rate),
    "slots": _Ablation(_hide(slots=1)),
    "hold": _Ablation(_hide(hold_s=0.0)),
    "recompute": _Ablation(has_recompute=False),
    "blocking": _Ablation(has_blocking=False),
    "crowd": _Ablation(has_crowd=False),
    "load": _Ablation(config=RoutingConfig(load_exponent=0.0)),
    "usual": _Ablation(has_usual=False),
    "ageing": _Ablation(config=RoutingConfig(load_half_life_s=1e9)),
    "precision": _Ablation(_hide(precision=1.0)),
    "lateness": _Ablation(_hide(lateness_s=0.0)),
}
_DISPATCHES = "dispatches"
TERMS = tuple(PREFIX + term for term in (*_ABLATIONS, _DISPATCHES))
ABLATIONS = (*TERMS, *(PREFIX + mechanism for mechanism in MECHANISMS))


def make_ablation(name: str, told: Told | None) -> Policy:
    """The policy of one of ``TERMS``. Raises KeyError for another name."""
    term = name.removeprefix(PREFIX)
    if term == _DISPATCHES:
        return partial(_rate, _Ablation(), told)
    return partial(_rate, _ABLATIONS[term], None)


def _rate(
    ablation: _Ablation, told: Told | None, candidates: Candidates, prompt_tokens: int, chain: Sequence[int]
) -> Rating:
    known = candidates.to_list()
    some = ablation.see(told(known, chain) if told else known)
    seen = Candidates.of(some, candidates.usual, candidates.prompts_per_node)
    terms = rate(seen, prompt_tokens, ablation.config)
    cost, uncertain_s = terms.cost, terms.uncertain_s
    if not ablation.has_usual:
        cost = cost + (terms.load_factor - 1.0) * (terms.wait_s - uncertain_s)
        uncertain_s = terms.wait_s
    if not ablation.has_blocking:
        cost = cost - terms.blocking_s
    if not ablation.has_recompute:
        cost = cost - terms.recompute_s
    if not ablation.has_crowd:
        cost = cost - (terms.late_price - 1.0) * seen.lateness_s
        cost = cost - (1.0 - 1.0 / terms.work_price) * terms.recompute_s
    return Rating(cost, "one term of the cost left out", uncertain_s)
