"""Swarms whose nodes choose their models, in virtual time: days of a swarm take seconds.

The nodes' choices are those of ``proto/supply/chooser.py``. All else is simplified: in each step of STEP_S a model's
requests come as a Poisson process at random nodes, the nodes that serve it answer as many as they can, and the others
are refused. A node hears some of its connected nodes each step. A move takes the time of the download.

Rules to compare with: *fixed* (each node serves a random model that fits, for ever), *greedy* (each hour all nodes move
to the model that lacks most, by the same reports: no turns, no margin) and *planner* (each hour a planner that knows
everything assigns all nodes at once, in no time).
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mycelia.proto.loading.plan import Faded
from mycelia.proto.supply.chooser import (
    INTERVAL_S,
    LEAST_GAIN,
    LEAST_RATE,
    REQUESTS_PER_RATE,
    Began,
    Chooser,
    Looked,
    Move,
    Option,
    Reported,
    Serving,
    View,
)
from mycelia.proto.supply.demand import HALF_LIFE_S, OwnDemand
from mycelia.proto.wire.messages import Demand, ModelDemand

STEP_S = 300.0
CONNECTED, HEARD_PER_STEP = 50, 6
"""Real nodes hear 15 reports in that time."""
LOAD_S = 60.0
"""Time to load a model that is on the disk."""
LIE = 1_000_000
WARM_S = 21_600.0
"""Before, nodes make their first choices; requests do not count yet."""


@dataclass(frozen=True)
class Model:
    name: str
    size_gb: float
    active_gb: float
    """Weights that are read for a token."""


MODELS = (
    Model("0.6b", 0.6, 0.6),
    Model("1.7b", 1.1, 1.1),
    Model("4b", 2.5, 2.5),
    Model("8b", 5.0, 5.0),
    Model("7b-a1b", 4.2, 0.6),
    Model("30b-a3b", 18.6, 1.9),
)
MACHINES = ((4.0, 20.0), (8.0, 25.0), (16.0, 40.0), (32.0, 60.0))
"""(GB for a model, GB/s of memory), equally often."""
LINES_MB_S = (2.0, 20.0)

Shares = Sequence[float]


def steady(day: float) -> Shares:
    return [1 / (place + 1) for place in range(len(MODELS))]


def daily(day: float) -> Shares:
    """Each model is wanted most at another time of the day."""
    return [1 + 0.95 * math.sin(2 * math.pi * (day + place / len(MODELS))) for place in range(len(MODELS))]


def jumping(day: float) -> Shares:
    """Each day another model is the most wanted one, at once."""
    return [1 / (1 + (place + 2 * int(day)) % len(MODELS)) ** 1.5 for place in range(len(MODELS))]


def appearing(day: float) -> Shares:
    """Nobody knows a model until the second day; then it gets two fifths of all requests."""
    known = [1 / (place + 1) for place in range(len(MODELS))]
    known[4] = 0.0
    if day >= 1:
        known[4] = sum(known) * 2 / 3
    return known


DEMANDS: Mapping[str, Callable[[float], Shares]] = {
    "steady": steady,
    "daily": daily,
    "jumping": jumping,
    "appearing": appearing,
}


@dataclass(frozen=True)
class SupplyScenario:
    rule: str = "auto"
    demand: str = "jumping"
    nodes: int = 40
    days: float = 3.0
    load: float = 0.5
    """Requests, as a share of what the nodes could answer if each model had its share of all machines that fit it."""
    liars: int = 0
    """Subnets that claim that a model nobody wants is lacking everywhere, each with eight nodes."""
    seed: int = 1


@dataclass
class SupplyOutcome:
    asked: int = 0
    """After WARM_S, as ``answered``."""
    answered: int = 0
    moves: int = 0
    node_days: float = 0.0
    hours: list[float] = field(default_factory=list)
    """The share that was answered in each hour, from the beginning."""
    most_at_once: int = 0
    """Most nodes that decided to move to one model within one hour."""

    @property
    def share(self) -> float:
        return self.answered / max(self.asked, 1)

    @property
    def moves_per_node_day(self) -> float:
        return self.moves / max(self.node_days, 1e-9)


@dataclass
class _Node:
    peer: bytes
    subnet: str
    options: list[Option]
    own: OwnDemand
    chooser: Chooser
    serves: str = ""
    comes: str = ""
    comes_at: float = math.inf
    here: set[str] = field(default_factory=set)
    answered: Faded = field(default_factory=lambda: Faded(half_life_s=HALF_LIFE_S))
    load: float = 0.0
    peers: list[int] = field(default_factory=list)
    """Connected nodes, by number."""

    def per_hour(self, model: str) -> float:
        return next((one.per_hour for one in self.options if one.name == model), 0.0)

    def seen_options(self) -> list[Option]:
        return [one if one.name not in self.here else Option(one.name, one.per_hour) for one in self.options]


def simulate_supply(scenario: SupplyScenario) -> SupplyOutcome:
    """Run a scenario. Equal scenarios give equal outcomes."""
    return _World(scenario).run()


class _World:
    def __init__(self, scenario: SupplyScenario) -> None:
        self._scenario = scenario
        self._rng = random.Random(f"{scenario.seed} supply")
        self._draws = np.random.default_rng(scenario.seed)
        self.nodes = [self._node(number) for number in range(scenario.nodes)]
        self._liars = [
            (b"liar%d.%d" % (subnet, number), f"liar{subnet}")
            for subnet in range(scenario.liars)
            for number in range(8)
        ]
        for number, node in enumerate(self.nodes):
            others = [other for other in range(scenario.nodes) if other != number]
            node.peers = sorted(self._rng.sample(others, min(CONNECTED, len(others))))
        self._outcome = SupplyOutcome(node_days=scenario.nodes * scenario.days)
        self._moved = Counter[tuple[str, int]]()

    def run(self) -> SupplyOutcome:
        outcome, hour = self._outcome, Counter[str]()
        for step in range(round(self._scenario.days * 86_400 / STEP_S)):
            now = step * STEP_S
            asked, answered = self._step(now)
            if now >= WARM_S:
                outcome.asked += asked
                outcome.answered += answered
            hour.update(asked=asked, answered=answered)
            if (now + STEP_S) % 3_600 < STEP_S:
                outcome.hours.append(hour["answered"] / max(hour["asked"], 1))
                hour.clear()
        outcome.most_at_once = max(self._moved.values(), default=0)
        return outcome

    def _node(self, number: int) -> _Node:
        memory_gb, bandwidth = MACHINES[number % len(MACHINES)]
        line = math.exp(self._rng.uniform(*map(math.log, LINES_MB_S)))
        fitting = [
            Option(model.name, REQUESTS_PER_RATE * bandwidth / model.active_gb, model.size_gb * 1_000 / line)
            for model in MODELS
            if model.size_gb + 1 <= memory_gb and bandwidth / model.active_gb >= LEAST_RATE
        ]
        fitting.sort(key=lambda one: one.per_hour)
        peer = b"node%d" % number
        seed = f"{self._scenario.seed} {number}"
        own = OwnDemand()
        chooser = Chooser(peer, [own], random.Random(seed), 0.0)
        node = _Node(peer, peer.decode(), fitting, own, chooser)
        if self._scenario.rule != "auto":
            node.serves = self._rng.choice(fitting).name
        return node

    # --- one step -----------------------------------------------------------------------------------------------------

    def _step(self, now: float) -> tuple[int, int]:
        for node in self.nodes:
            if node.comes_at <= now:
                node.serves, node.comes, node.comes_at = node.comes, "", math.inf
                node.here.add(node.serves)
                node.answered = Faded(half_life_s=HALF_LIFE_S)
                node.chooser.handle(Began(node.serves), now)
        asked, answered = self._serve(now)
        match self._scenario.rule:
            case "auto":
                self._report(now)
                self._choose(now)
            case "greedy":
                self._report(now)
                if now % INTERVAL_S == 0:
                    self._choose_greedily(now)
            case "planner" if now % INTERVAL_S == 0:
                self._plan(now)
        return asked, answered

    def _rates(self, now: float) -> dict[str, float]:
        """Requests per hour of each model."""
        shares = DEMANDS[self._scenario.demand](now / 86_400)
        means = {
            model.name: float(np.mean([rate for node in self.nodes if (rate := node.per_hour(model.name))]))
            for model in MODELS
        }
        hours = sum(share / means[model.name] for model, share in zip(MODELS, shares, strict=True))
        total = self._scenario.load * len(self.nodes) / hours
        return {model.name: total * share for model, share in zip(MODELS, shares, strict=True)}

    def _serve(self, now: float) -> tuple[int, int]:
        num_asked = num_answered = 0
        for model, rate in self._rates(now).items():
            per_node = self._draws.poisson(rate * STEP_S / 3_600 / len(self.nodes), len(self.nodes))
            servers = [node for node in self.nodes if node.serves == model]
            capacity = sum(node.per_hour(model) for node in servers) * STEP_S / 3_600
            asked = int(per_node.sum())
            share = min(1.0, capacity / asked) if asked else 1.0
            load = asked / capacity if capacity else 0.0
            refused_here = self._draws.binomial(per_node, 1 - share)
            for node, number, refused in zip(self.nodes, per_node.tolist(), refused_here.tolist(), strict=True):
                for num, is_answered in ((number - refused, True), (refused, False)):
                    if num:
                        node.own.ended(model, is_answered, now, num)
            for node in servers:
                node.load = load
                node.answered.add(min(load, 1.0) * node.per_hour(model) * STEP_S / 3_600, now)
            num_asked += asked
            num_answered += asked - int(refused_here.sum())
        return num_asked, num_answered

    def _report(self, now: float) -> None:
        chooses = self._scenario.rule == "auto"
        demands = [
            Demand(models=rows, coming=node.chooser.coming(now), chooses=chooses)
            for node in self.nodes
            for rows in (node.own.rows(lambda name: True, now),)
        ]
        lie = Demand(models=(ModelDemand(model=MODELS[0].name, asked=LIE, refused=LIE),), coming=(), chooses=True)
        for node in self.nodes:
            for number in self._rng.sample(node.peers, min(HEARD_PER_STEP, len(node.peers))):
                other = self.nodes[number]
                node.chooser.handle(Reported(other.peer, other.subnet, demands[number]), now)
            for peer, subnet in self._liars:
                node.chooser.handle(Reported(peer, subnet, lie), now)

    def _view(self, node: _Node, now: float) -> View:
        serving = [
            Serving(other.serves, other.subnet, other.load)
            for other in (self.nodes[number] for number in node.peers)
            if other.serves
        ]
        serving += [Serving(MODELS[0].name, subnet, 2.0) for _, subnet in self._liars]
        scale = len(self.nodes) / max(len(node.peers), 1)
        return View(node.seen_options(), serving, node.answered.per_hour(now), scale)

    # --- the rules ----------------------------------------------------------------------------------------------------

    def _choose(self, now: float) -> None:
        for node in self.nodes:
            if node.chooser.due_at <= now:
                for effect in node.chooser.handle(Looked(self._view(node, now)), now):
                    if isinstance(effect, Move):
                        self._move(node, effect.model, now)

    def _choose_greedily(self, now: float) -> None:
        for node in self.nodes:
            heard, own = node.chooser.heard, node.own
            lack = {one.name: own.refused(one.name, now) + heard.refused(one.name, LIE, now) for one in node.options}
            best = max(lack, key=lambda name: lack[name])
            if lack[best] > LEAST_GAIN and best not in (node.serves, node.comes):
                self._move(node, best, now)

    def _plan(self, now: float) -> None:
        """Models that fewest machines fit come first; each gets the machines that fit the fewest other models."""
        rates = self._rates(now)
        free = sorted(self.nodes, key=lambda node: len(node.options))
        for model in sorted(rates, key=lambda name: sum(node.per_hour(name) > 0 for node in self.nodes)):
            # (those that have it already first: the planner moves no node in vain)
            for node in sorted(free, key=lambda node: node.serves != model):
                if rates[model] <= 0:
                    break
                if node.per_hour(model):
                    rates[model] -= node.per_hour(model)
                    free.remove(node)
                    if node.serves != model:
                        self._note_move(model, now)
                        node.serves = model

    def _move(self, node: _Node, model: str, now: float) -> None:
        if node.serves:
            self._note_move(model, now)
        option = next(one for one in node.seen_options() if one.name == model)
        node.comes, node.comes_at = model, now + LOAD_S + option.fetch_s

    def _note_move(self, model: str, now: float) -> None:
        self._outcome.moves += 1
        self._moved[model, int(now // 3_600)] += 1
