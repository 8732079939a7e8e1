"""Which model of the catalogue a node serves: ``handle(event, now) -> list[Effect]``. After a call look at ``due_at``.

A node decides when it has listened for a while, and then at most once each INTERVAL_S, sooner only where a passing
failure ended its move. It compares, in requests per hour:

    gain(model) = min(lack, what this machine could answer) x the part of the next day that is left after the download
    loss        = what is answered here of the present model, and other nodes of that model have no room for

*Lack* is what clients ask of a model and nobody answers, by the reports of ``demand.py``, or what its nodes are
overloaded by, whichever is more; less what nodes that are about to serve it will answer. A node moves when the gain
exceeds the loss by MARGIN and LEAST_GAIN. So nodes that are needed stay, and nodes that nobody asks go.

Many nodes see the same lack. They take *turns*: each node ranks itself among the nodes that choose by a hash of node,
model and hour. With a lack of x nodes the first x in the order move, the next one with the probability of the rest. All
nodes get the same order without a message, and each hour another one. Where those whose turn it is do not move (the
model does not fit there, or they are needed where they are), the number of turns doubles with each decision, until
somebody has begun. A node that hears of no other one that chooses takes no turns.

No claim of other nodes is believed alone: see ``demand.believed``. A node's own clients are believed.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from mycelia.proto.admission.limits import TokenBucket
from mycelia.proto.supply.demand import HeardDemand, OwnDemand, believed
from mycelia.proto.wire.messages import Demand

LISTEN_S = (300.0, 900.0)
"""Before the first decision. Reports of some peers come each minute."""
INTERVAL_S = 3_600.0
JITTER = 0.25
"""The interval is up to this much longer, so that nodes do not decide in step."""
MARGIN = 0.5
LEAST_GAIN = 2.0
"""Requests per hour. Less is chance."""
MAX_DOUBLINGS = 6
COMING_S = 2_400.0
"""Time after a move in which refusals that the move has ended still show in rates."""
RETRY_S, MAX_RETRY_S, MAX_FAILURES = 3_600.0, 86_400.0, 10
"""Pause before a model that could not be fetched or loaded is chosen again, doubled by each further failure, up to a
maximum."""
SOON_S = 120.0
"""The first of these pauses if the reason may have passed in minutes. The node then decides again after it, and counts
no further download: it goes on with the one that it has begun."""
PAYS_S = 86_400.0
"""A download has to pay within this time."""
FETCHES = 3.0
"""Downloads after the start. Others follow one in PAYS_S, whatever other nodes report."""
LEAST_RATE = 5.0
"""Tokens/s of one answer below which a model is too slow for a machine: as fast as people read."""
REQUESTS_PER_RATE = 24.0
"""Requests per hour for each token/s of one answer: 300 tokens each, with twice that rate for several at once."""
MAX_SCALE = 16.0
MAX_LOAD = 2.0


@dataclass(frozen=True)
class Option:
    """A model that this machine could serve."""

    name: str
    per_hour: float
    """Requests that it could answer."""
    fetch_s: float = 0.0
    """Time of its download; 0: it is here."""


@dataclass(frozen=True)
class Serving:
    """A connected node that serves a model, by its own report."""

    model: str
    subnet: str
    """See ``HeardDemand.hear``."""
    load: float
    """Requests that run or wait / requests that run at once."""


@dataclass(frozen=True)
class View:
    """What a node sees when it decides."""

    options: Sequence[Option]
    """The one first that it would choose without any demand."""
    serving: Sequence[Serving] = ()
    answered: float = 0.0
    """Requests per hour that were answered here, of the present model, for anybody."""
    scale: float = 1.0
    """Nodes of the swarm for each node that was heard."""
    why_none: str = "no model of the catalogue fits this machine"
    """Why there are no options, if there are none."""


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reported:
    """A node reported the demand of its clients. subnet: see ``HeardDemand.hear``."""

    peer: bytes
    subnet: str
    demand: Demand


@dataclass(frozen=True)
class Looked:
    """``Chooser.due_at`` has come."""

    view: View


@dataclass(frozen=True)
class Began:
    """The node serves the chosen model now: after Move, or as after its last run."""

    model: str


@dataclass(frozen=True)
class Continued:
    """The Move of its last run, which did not come to its end, goes on. Answer with Began or Failed."""

    model: str


@dataclass(frozen=True)
class Failed:
    """The model of a Move cannot be served."""

    model: str
    is_passing: bool = False
    """Whether the reason may have passed in minutes, as when a hub cannot be reached."""


Event = Reported | Looked | Began | Continued | Failed


# --- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Move:
    """Fetch and serve ``model``; then stop serving ``instead``, if it is not empty. Answer with Began or Failed."""

    model: str
    instead: str
    reason: str


@dataclass(frozen=True)
class Stay:
    """Nothing changes."""

    reason: str


Effect = Move | Stay


class Chooser:
    """The choice of one node."""

    def __init__(
        self, me: bytes, own: Sequence[OwnDemand], rng: random.Random, now: float, decided_at: float = -math.inf
    ) -> None:
        """own: what this node's clients ask for, in each swarm that it is in; the caller keeps it up to date.
        decided_at: the last decision of its last run."""
        self._me = me
        self._own = own
        self._rng = rng
        self.heard = HeardDemand()
        """Read-only."""
        self.held = ""
        """The chosen model that the node serves; empty: none yet."""
        self._fetches = TokenBucket(1 / PAYS_S, FETCHES, now)
        """The downloads that it may begin."""
        self._moving = ""
        self._began_at = -math.inf
        self._set_aside: dict[str, tuple[float, int]] = {}
        """Model that could not be served -> (until when it is not chosen, failures in a row)."""
        self._passed: dict[str, tuple[int, float]] = {}
        """Model that was worth a move, but not this node's turn -> (how often in a row, nodes that served it then)."""
        self.due_at = max(now + rng.uniform(*LISTEN_S), min(decided_at, now) + INTERVAL_S)
        """When to call ``handle`` with Looked."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What to do after ``event``. Mutates."""
        match event:
            case Reported():
                self.heard.hear(event.peer, event.subnet, event.demand, now)
            case Began():
                self.held, self._moving, self._began_at = event.model, "", now
                self._passed.clear()
                self._set_aside.pop(event.model, None)
            case Continued():
                self._moving = event.model
            case Failed():
                self._moving = ""
                _, num_failed = self._set_aside.get(event.model, (now, 0))
                first_s = SOON_S if event.is_passing else RETRY_S
                pause_s = min(first_s * 2.0 ** min(num_failed, MAX_FAILURES), MAX_RETRY_S)
                self._set_aside[event.model] = now + pause_s, num_failed + 1
                if event.is_passing:
                    self.due_at = min(self.due_at, now + pause_s * (1 + self._rng.uniform(0, JITTER)))
            case Looked():
                self.due_at = now + INTERVAL_S * (1 + self._rng.uniform(0, JITTER))
                return [self._decide(event.view, now)]
        return []

    def coming(self, now: float) -> tuple[str, ...]:
        """What others count as nodes that are about to answer, see ``Demand.coming``."""
        recent = self.held if now - self._began_at <= COMING_S else ""
        return tuple(filter(None, dict.fromkeys((self._moving, recent))))

    # --- the decision -------------------------------------------------------------------------------------------------

    def _decide(self, view: View, now: float) -> Effect:
        aside = self._set_aside = {name: one for name, one in self._set_aside.items() if one[0] + MAX_RETRY_S > now}
        options = [one for one in view.options if one.name not in aside or aside[one.name][0] <= now]
        if self._moving:
            return Stay(f"{self._moving} is still being fetched")
        if not options and aside:
            return Stay(f"no model could be fetched and loaded; {', '.join(sorted(aside))} will be tried again")
        if not options:
            return Stay(view.why_none)
        gains = {one: self._gain(one, view, now) for one in options if one.name != self.held}
        if not self.held:
            return self._first(options, gains, view, now)
        if not self._fetches.has(now):
            gains = {one: gain for one, gain in gains.items() if not one.fetch_s or one.name in aside}
        loss = self._loss(view, now)
        worth = {one: gain for one, gain in gains.items() if gain > loss * (1 + MARGIN) + LEAST_GAIN}
        self._passed = {one.name: self._passed.get(one.name, (-1, 0.0)) for one in worth}
        ready = {one: gain for one, gain in worth.items() if self._has_turn(one, view, now)}
        if ready:
            best = max(ready, key=lambda one: (ready[one], one.name))
            return self._move(best, f"{self._told(best, view, now)}; {self._told_held(view, loss)}", now)
        if worth:
            names = ", ".join(sorted(one.name for one in worth))
            return Stay(f"{names} would help more, but it is the turn of other nodes; {self._told_held(view, loss)}")
        return Stay(f"no other model that fits here is lacking more; {self._told_held(view, loss)}")

    def _first(self, options: Sequence[Option], gains: Mapping[Option, float], view: View, now: float) -> Effect:
        """The first model: one that is lacking, else one that is asked for, each with a probability by how much."""
        lacking = {one: gain for one, gain in gains.items() if gain > LEAST_GAIN}
        asked = {one: self._asked(one, now) / (1 + _num_nodes(view, one.name)) for one in options}
        weights = lacking or {one: rate for one, rate in asked.items() if rate > 0}
        if not weights:
            return self._move(
                options[0], "nobody is heard asking for a model; it is the best that is fast enough here", now
            )
        drawn = {one: -math.log1p(-self._hashed(one.name, now)[1]) / weight for one, weight in weights.items()}
        best = min(drawn, key=lambda one: (drawn[one], one.name))
        return self._move(best, self._told(best, view, now), now)

    def _move(self, option: Option, reason: str, now: float) -> Move:
        self._moving = option.name
        if option.fetch_s and option.name not in self._set_aside:
            self._fetches.spend(now, 1.0)
        return Move(option.name, self.held, reason)

    def _gain(self, option: Option, view: View, now: float) -> float:
        lack = self._lack(option, view, now) * min(max(view.scale, 1.0), MAX_SCALE)
        return min(lack, option.per_hour) * max(0.0, 1 - option.fetch_s / PAYS_S)

    def _lack(self, option: Option, view: View, now: float) -> float:
        """Requests per hour of those that were heard which nobody answers."""
        name, most = option.name, option.per_hour
        refused = sum(own.refused(name, now) for own in self._own) + self.heard.refused(name, most, now)
        over = believed([(net, max(0.0, min(load, MAX_LOAD) - 1)) for net, load in _loads(view, name)], 1.0)
        return max(refused, over * most) - self.heard.coming(name, now) * most

    def _asked(self, option: Option, now: float) -> float:
        asked = sum(own.asked(option.name, now) for own in self._own)
        return asked + self.heard.asked(option.name, option.per_hour, now)

    def _loss(self, view: View, now: float) -> float:
        held = next((one for one in view.options if one.name == self.held), None)
        if held is None or self._lack(held, view, now) > LEAST_GAIN:
            return view.answered
        room = believed([(net, max(0.0, 1 - load)) for net, load in _loads(view, self.held)], 1.0)
        return max(0.0, view.answered - room * held.per_hour)

    def _has_turn(self, option: Option, view: View, now: float) -> bool:
        """Whether this node is one of those that move to ``option``. Mutates."""
        num_passed, num_before = self._passed[option.name]
        num_nodes = _num_nodes(view, option.name) + self.heard.coming(option.name, now)
        num_passed = 0 if num_nodes > num_before else min(num_passed + 1, MAX_DOUBLINGS)
        self._passed[option.name] = num_passed, num_nodes
        own, fraction = self._hashed(option.name, now)
        others = self.heard.choosers(now)
        rank = sum(_hashed(peer, option.name, now)[0] < own for peer in others)
        return not others or rank + fraction < self._lack(option, view, now) / option.per_hour * (1 << num_passed)

    def _hashed(self, model: str, now: float) -> tuple[float, float]:
        return _hashed(self._me, model, now)

    # --- explanations -------------------------------------------------------------------------------------------------

    def _told(self, option: Option, view: View, now: float) -> str:
        asked, lack = self._asked(option, now), max(0.0, self._lack(option, view, now))
        nodes = _num_nodes(view, option.name)
        served = f"{nodes} connected {'node serves' if nodes == 1 else 'nodes serve'} it"
        return f"it is asked for {asked:.0f} times an hour, of which {lack:.0f} lack an answer; {served}"

    def _told_held(self, view: View, loss: float) -> str:
        return f"{self.held} is answered here {view.answered:.0f} times an hour, {loss:.0f} of them not elsewhere"


def _num_nodes(view: View, model: str) -> int:
    return sum(one.model == model for one in view.serving)


def _loads(view: View, model: str) -> list[tuple[str, float]]:
    """(Subnet, load) of each node that serves ``model``."""
    return [(one.subnet, one.load) for one in view.serving if one.model == model]


def _hashed(peer: bytes, model: str, now: float) -> tuple[float, float]:
    """(place in the order of this hour, a number of its own), each in [0, 1)."""
    digest = blake3(b"%s %d %s" % (model.encode(), now // 3_600, peer)).digest(length=16)
    return int.from_bytes(digest[:8], "big") / 2**64, int.from_bytes(digest[8:], "big") / 2**64
