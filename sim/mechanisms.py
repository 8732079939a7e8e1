"""What nodes do for their requests besides choosing a node: switches that apply to every routing rule alike.

- ``hand_backs``: a node hands a request back that would wait longer there than the entry node expected, and longer than
  at the next best node.
- ``moves``: the entry node takes a request away from a node that does not begin with it in time, or is too slow.
- ``subscriptions``: entry nodes subscribe to the load of the nodes that were best in their last decisions.
- ``bounds``: an entry node sends nothing new to a node with a long queue; if all are long, it tells the client when to
  come again.
- ``luck``: where the swarm is busy, costs are multiplied by a random factor, so that entry nodes with the same reports
  do not all choose the same node. Costs in seconds: as much of them as a usual prompt takes (``choose.py``).
- ``keeps``: a conversation stays where most of it was sent while that is nearly as cheap as the least.

Two comparisons follow. ``equal``: every rule has all of them, so only the rules differ. ``systems``: each system as it
is. The other rules have none of these, because the systems that they come from have none.
"""

from dataclasses import dataclass, fields, replace
from math import inf

from mycelia.proto.config import OverlayConfig
from mycelia.sim.scenario import Comparison, Scenario

OWN = "mycelia"
"""The protocol's own rule."""
_WITHOUT = "-no-"


@dataclass(frozen=True)
class Mechanisms:
    hand_backs: bool = True
    moves: bool = True
    subscriptions: bool = True
    bounds: bool = True
    luck: bool = True
    keeps: bool = True

    def applied(self, config: OverlayConfig) -> OverlayConfig:
        """``config`` without the mechanisms that are off."""
        request, routing, vitals = config.request, config.routing, config.vitals
        if not self.hand_backs:
            routing = replace(routing, max_bounces=0)
        if not self.moves:
            routing = replace(routing, max_moves=0)
        if not self.luck:
            routing = replace(routing, spread=0.0)
        if not self.keeps:
            routing = replace(routing, keep_factor=0.0, keep_s=0.0)
        if not self.subscriptions:
            vitals = replace(vitals, subscriptions=0)
        if not self.bounds:
            request = replace(request, max_waiting_per_slot=inf)
        return replace(config, request=request, routing=routing, vitals=vitals)


MECHANISMS = tuple(one.name for one in fields(Mechanisms))
EQUAL = Mechanisms()
NONE = Mechanisms(**dict.fromkeys(MECHANISMS, False))


def mechanisms_of(policy: str, scenario: Scenario) -> Mechanisms:
    """The mechanisms that ``policy`` has in ``scenario``. Raises TypeError for an unknown one in ``without``."""
    rule, without = split_name(policy)
    is_own = rule == OWN or rule.startswith(OWN + "-")
    all_of_it = EQUAL if is_own or scenario.comparison is Comparison.EQUAL else NONE
    return replace(all_of_it, **dict.fromkeys((*scenario.without, *without), False))


def split_name(policy: str) -> tuple[str, tuple[str, ...]]:
    """(rule, mechanisms left out) of the name of a policy, such as ``gorgo`` or ``gorgo-no-luck``."""
    rule, _, mechanism = policy.rpartition(_WITHOUT)
    return (rule, (mechanism,)) if mechanism in MECHANISMS and rule else (policy, ())
