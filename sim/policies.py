"""Rules for which node answers a prompt, to compare with the protocol's own, by name. Each entry node has its own rule
object.

They see what the protocol reports to the entry node (``Candidates``), with its staleness; only the oracles look at the
engines themselves. Ties go to the entry node itself, otherwise by lot.

``rules/plain.py``: rules without a cache in mind. ``rules/systems.py``: those of other systems. ``rules/oracles.py``:
with perfect knowledge. ``mycelia``: the protocol's own, ``proto/routing``; ``mycelia-no-...``: without one of its terms
(``ablations.py``). Any name with ``-no-`` and a mechanism (``mechanisms.py``): that rule without the mechanism.
"""

import random
from functools import partial

from mycelia.proto.routing.choose import Policy
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.ablations import ABLATIONS, TERMS, Told, make_ablation
from mycelia.sim.mechanisms import OWN, split_name
from mycelia.sim.rules.oracles import ORACLES, Oracle, Truth
from mycelia.sim.rules.plain import BoundedLoads, RoundRobin, choose_random, least_load
from mycelia.sim.rules.systems import Dynamo, gorgo, least_ttft, llmd, lmetric, longest_prefix, preble, sglang

__all__ = ["ABLATIONS", "NAMES", "ORACLE", "ORACLES", "OTHERS", "OWN", "make_policy"]

_PLAIN: dict[str, Policy] = {
    "least_load": least_load,
    "least_ttft": least_ttft,
    "longest_prefix": longest_prefix,
    "sglang": sglang,
    "llmd": llmd,
    "preble": preble,
    "lmetric": lmetric,
    "gorgo": gorgo,
}
ORACLE = ORACLES[0]
OTHERS = ("random", "round_robin", "chwbl", "dynamo", *_PLAIN)
"""The rules to compare with the protocol's own."""
NAMES = (*OTHERS, OWN, *ORACLES)
"""All rules except the ablations."""


def make_policy(policy: str, rng: random.Random, truth: Truth | None = None, told: Told | None = None) -> Policy | None:
    """A rule object for one entry node; None for the protocol's own. truth: needed for the oracles. told: for the
    ablation that forgets its own dispatches. Raises LocalError for an unknown name, and for one that lacks its need."""
    name, _ = split_name(policy)
    if name in TERMS:
        return make_ablation(name, told)
    if name in ORACLES and truth is not None:
        return Oracle(name, truth)
    match name:
        case "mycelia":
            return None
        case "random":
            return partial(choose_random, rng)
        case "round_robin":
            return RoundRobin()
        case "chwbl":
            return BoundedLoads()
        case "dynamo":
            return Dynamo()
    if name not in _PLAIN:
        raise LocalError(f"no policy {policy}; there are {', '.join((*NAMES, *ABLATIONS))}")
    return _PLAIN[name]
