"""The protocol's own rule with one term of its cost left out: ``mycelia-no-rtt`` and so on.

Each either hides one thing from ``proto.routing.choose`` or sets one tunable so that it has no effect. The rest of the
node still knows what is hidden: only choices change.

- ``no-rtt``: all nodes are equally near.
- ``no-queue``: no tokens wait anywhere.
- ``no-rate``: one prefill rate for all, the median of the known ones.
- ``no-slots``: all nodes work on equally many requests at once.
- ``no-hold``: a node whose slots are all taken does not count as later for that.
- ``no-recompute``: computing tokens again costs other requests nothing.
- ``no-load``: the time to the first token alone, without the factor for load.
- ``no-ageing``: old load reports count like fresh ones.
- ``no-precision``: beliefs about caches count as true.
- ``no-lateness``: observed lateness of a node does not count.
- ``no-dispatches``: the node forgets what it sent where, both as load and as cached tokens.
- ``no-crowd``: computing tokens again costs no more where the swarm is busy.
- ``no-price``: lateness counts once, as this prompt's own wait.
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
    recompute: float | None = None
    """What a second of computing again costs others, at any load; None: as usual."""


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
    "recompute": _Ablation(recompute=0.0),
    "crowd": _Ablation(recompute=1.0),
    "price": _Ablation(config=RoutingConfig(lateness_weight=1.0)),
    "load": _Ablation(config=RoutingConfig(load_exponent=0.0)),
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
    seen = Candidates.of(ablation.see(told(known, chain) if told else known))
    terms = rate(seen, prompt_tokens, ablation.config)
    cost = terms.cost
    if ablation.recompute is not None:
        cost = cost - terms.recompute_s * (1.0 - ablation.recompute / (1.0 + terms.crowd) ** 2)
    return Rating(cost, "one term of the cost left out")
