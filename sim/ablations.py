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
- ``no-keep``: a conversation moves for the least gain.
- ``no-dispatches``: the node forgets what it sent where, both as load and as cached tokens.
- ``no-crowd``: computing tokens again costs no more where the swarm is busy.
- ``no-luck``: always the cheapest node.
- ``no-bounce``: no node hands a request back.
- ``no-moves``: a request that does not begin in time stays where it is.
- ``no-subscriptions``: load is reported to random nodes, and with replies.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median_low

import numpy as np

from mycelia.proto.config import OverlayConfig, RoutingConfig
from mycelia.proto.routing.candidates import Candidate, Candidates
from mycelia.proto.routing.choose import Decision, Policy, choose

PREFIX = "mycelia-no-"

Told = Callable[[Sequence[Candidate], Sequence[int]], Sequence[Candidate]]
"""(candidates, the prompt's block hashes) -> the candidates as they would be without own dispatches."""
_See = Callable[[Sequence[Candidate]], Sequence[Candidate]]


@dataclass(frozen=True)
class _Ablation:
    see: _See = tuple
    """The candidates as ``choose`` gets them."""
    config: RoutingConfig = RoutingConfig()  # noqa: RUF009  frozen


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
    "recompute": _Ablation(config=RoutingConfig(recompute_weight=0.0, crowd_weight=0.0)),
    "crowd": _Ablation(config=RoutingConfig(crowd_weight=0.0)),
    "luck": _Ablation(config=RoutingConfig(spread=0.0)),
    "load": _Ablation(config=RoutingConfig(load_exponent=0.0)),
    "ageing": _Ablation(config=RoutingConfig(load_half_life_s=1e9)),
    "precision": _Ablation(_hide(precision=1.0)),
    "lateness": _Ablation(_hide(lateness_s=0.0)),
    "keep": _Ablation(config=RoutingConfig(keep_factor=1.0, keep_s=0.0)),
}
_DISPATCHES = "dispatches"
_OF_THE_NODE: Mapping[str, Callable[[OverlayConfig], OverlayConfig]] = {
    "bounce": lambda config: replace(config, routing=replace(config.routing, max_bounces=0)),
    "moves": lambda config: replace(config, routing=replace(config.routing, max_moves=0)),
    "subscriptions": lambda config: replace(config, vitals=replace(config.vitals, subscriptions=0)),
}
"""Ablations that are not in the choice itself."""
ABLATIONS = tuple(PREFIX + term for term in (*_ABLATIONS, _DISPATCHES, *_OF_THE_NODE))


def ablated(name: str, config: OverlayConfig) -> OverlayConfig:
    """``config`` without what ``name`` leaves out, if that is not in the choice itself."""
    without = _OF_THE_NODE.get(name.removeprefix(PREFIX))
    return without(config) if without else config


def make_ablation(name: str, rng: random.Random, told: Told) -> Policy | None:
    """The policy of one of ``ABLATIONS``; None: the protocol's own choice. Raises KeyError for another name."""
    term = name.removeprefix(PREFIX)
    if term in _OF_THE_NODE:
        return None
    chance = np.random.default_rng(rng.getrandbits(64))
    if term == _DISPATCHES:
        return partial(_choose, _Ablation(), told, chance)
    return partial(_choose, _ABLATIONS[term], None, chance)


def _choose(
    ablation: _Ablation,
    told: Told | None,
    chance: np.random.Generator,
    candidates: Sequence[Candidate],
    prompt_tokens: int,
    chain: Sequence[int],
) -> Decision:
    seen = Candidates.of(ablation.see(told(candidates, chain) if told else candidates))
    return choose(seen, prompt_tokens, ablation.config, chance.random(len(candidates)))
