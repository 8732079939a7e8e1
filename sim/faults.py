"""Faults of volunteers' machines and lines, all drawn from one seed.

- ``kill``: a node's session ends (Weibull, as measured), in half of the cases with its machine: then no peer is
  notified, and its peers notice when it has been silent for a while. It comes back, empty.
- ``leave``: a node is asked to leave: it takes nothing new, finishes its work if that does not take too long, and goes.
  It comes back, empty.
- ``freeze``: a node does nothing for some seconds, while its engine works on.
- ``engine``: a node's engine dies and is started again.
- ``delay``, ``loss``: one node's line is slow, or loses many messages, for a while.
- ``partition``: no message passes between two parts of the swarm for a while.
- ``slow-disk``: all reports of a node's engine come late.
- ``full-disk``: what a node wrote is missing at its next start: the versions of its peers and its epoch.
- ``clock``: a node starts with a clock that is wrong by up to an hour, or by a day.
- ``storm``: a quarter of all nodes stop within seconds, and are back soon.
- ``flap``: the connections of one node break every few seconds.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from mycelia.proto.events import FloorsRestored, Leaving, TrustRestored
from mycelia.sim.links import Impairment, Partition
from mycelia.sim.serving import Serving
from mycelia.sim.world import World

KILL, LEAVE, FREEZE, ENGINE, DELAY, LOSS = "kill", "leave", "freeze", "engine", "delay", "loss"
PARTITION, SLOW_DISK, FULL_DISK, CLOCK, STORM, FLAP = "partition", "slow-disk", "full-disk", "clock", "storm", "flap"
FAULTS = (KILL, LEAVE, FREEZE, ENGINE, DELAY, LOSS, PARTITION, SLOW_DISK, FULL_DISK, CLOCK, STORM, FLAP)

SESSION_SHAPE = 0.608
"""Shape of the Weibull distribution of volunteers' sessions, fitted to IPFS's DHT servers."""
DOWN_S = 60.0
"""Mean time until a node that left is back, with an empty cache."""
LIVENESS_S = (5.0, 9.0)
"""Measured time until a node closes the connection with a peer that went silent."""
_REDIAL_S, _REDIAL_CHANCE = 2.0, 0.4
"""Seconds between dials of a missing peer, and the chance of success: a partition has healed 15 s after its end."""
_MEAN_S = {LEAVE: 60.0, FREEZE: 30.0, ENGINE: 30.0, DELAY: 60.0, LOSS: 60.0, SLOW_DISK: 30.0, STORM: 600.0, FLAP: 120.0}
"""Seconds between two faults of a kind in a swarm of ``_SWARM`` nodes; in a smaller one they are rarer."""
_SWARM = 200
_FROZEN_S, _ENGINE_DOWN_S, _SLOW_S, _IMPAIRED_S = (2.0, 30.0), (1.0, 6.0), (1.0, 20.0), (10.0, 60.0)
_ADDED_S, _LOST = (0.5, 3.0), (0.3, 0.7)
_STORM_SHARE, _STORM_S, _STORM_DOWN_S = 0.25, 5.0, (5.0, 30.0)
_FLAPS, _FLAP_S = 8, 5.0
_WRONG_CLOCKS_S = (-86_400.0, -3_000.0, -600.0, 600.0, 3_000.0, 86_400.0)
DRAIN_S, _DRAIN_STEP_S = 30.0, 0.5
"""Longest time that a leaving node works on, as in ``mycelia leave``; time between two checks of it."""
_RESTART_CHANCE = 0.1
"""Chance of a wrong clock, and of a full disk, at each start."""


def session_s(median_s: float, rng: random.Random, is_running: bool = False) -> float:
    """How long a volunteer's node stays. is_running: it began at an unknown time, so a part is over."""
    lasts_s = rng.weibullvariate(median_s / math.log(2) ** (1 / SESSION_SHAPE), SESSION_SHAPE)
    return lasts_s * rng.random() if is_running else lasts_s


@dataclass(frozen=True)
class FaultPlan:
    """Which faults occur, and how often the two whose pace is set by the scenario."""

    kinds: tuple[str, ...] = FAULTS
    session_s: float = 1_200.0
    """Median."""
    partition_every_s: float = 300.0
    partition_s: float = 30.0
    pace: float = 1.0
    """How many times as often as usual the other faults come."""


class Faults:
    """Strikes the nodes of a world from ``begin`` to ``end``, and restores the connections they should have."""

    def __init__(
        self,
        world: World,
        serving: Serving,
        edges: Sequence[tuple[int, int]],
        plan: FaultPlan,
        rng: random.Random,
        on_entry_lost: Callable[[int], None],
    ) -> None:
        """edges: the connections, each once. on_entry_lost: called when clients of a node notice its loss."""
        self._world = world
        self._serving = serving
        self._edges = edges
        self._plan = plan
        self._rng = rng
        self._on_entry_lost = on_entry_lost
        self._kept: dict[int, tuple[FloorsRestored, TrustRestored]] = {}
        """Contents of the disks of nodes that are down."""
        self._num_freezes = Counter[int]()
        self._is_over = False
        self.counts = Counter[str]()

    def begin(self) -> None:
        world, kinds = self._world, self._plan.kinds
        world.call(world.now, self._redial)
        if KILL in kinds:
            for node in world.up():
                self._leave_later(node.number, is_running=True)
        if PARTITION in kinds:
            world.call(world.now + self._plan.partition_every_s, self._part)
        strikes: dict[str, Callable[[], None]] = {
            LEAVE: self._depart,
            FREEZE: self._freeze,
            ENGINE: self._crash,
            DELAY: lambda: self._impairment(DELAY, Impairment(added_s=self._rng.uniform(*_ADDED_S))),
            LOSS: lambda: self._impairment(LOSS, Impairment(loss=self._rng.uniform(*_LOST))),
            SLOW_DISK: self._stall,
            STORM: self._storm,
            FLAP: self._flap,
        }
        for kind in FAULTS:
            if kind in kinds and kind in strikes:
                self._again(kind, strikes[kind])

    def end(self) -> None:
        """Start no new faults; running ones go on to their end, and nodes that are down come back."""
        self._is_over = True

    # --- when ------------------------------------------------------------------------------------------------------

    def _again(self, kind: str, strike: Callable[[], None]) -> None:
        mean_s = _MEAN_S[kind] / self._plan.pace * max(_SWARM / len(self._world.nodes), 1.0)

        def act() -> None:
            if not self._is_over:
                strike()
                self._again(kind, strike)

        self._world.call(self._world.now + self._rng.expovariate(1 / mean_s), act)

    def _leave_later(self, number: int, is_running: bool = False) -> None:
        life = self._world.node(number)
        lasts_s = session_s(self._plan.session_s, self._rng, is_running)

        def leave() -> None:
            if not self._is_over and self._world.nodes[number] is life:
                self.counts[KILL] += 1
                self._stop(number, self._rng.expovariate(1 / DOWN_S))

        self._world.call(self._world.now + lasts_s, leave)

    def _pick(self) -> int | None:
        """A node that is up and not frozen, if there is one."""
        well = [node.number for node in self._world.up() if node.held is None]
        return self._rng.choice(well) if well else None

    # --- nodes -----------------------------------------------------------------------------------------------------

    def _depart(self) -> None:
        number = self._pick()
        if number is None:
            return
        self.counts[LEAVE] += 1
        world, life = self._world, self._world.node(number)
        until = world.now + DRAIN_S
        world.handle(life, Leaving())

        def go() -> None:
            if world.nodes[number] is not life:
                return
            if world.now < until and self._serving.is_working(number):
                world.call(world.now + _DRAIN_STEP_S, go)
            else:
                self._stop(number, self._rng.expovariate(1 / DOWN_S), is_noticed=True)

        go()

    def _stop(self, number: int, down_s: float, is_noticed: bool | None = None) -> None:
        """is_noticed: whether its peers notice at once; None: at random."""
        world = self._world
        node = world.node(number)
        if FULL_DISK in self._plan.kinds and self._rng.random() < _RESTART_CHANCE:
            self.counts[FULL_DISK] += 1
        else:
            overlay, now = node.overlay, world.now + node.clock_s
            trust = TrustRestored(overlay.offenders(now), overlay.observations(now))
            self._kept[number] = (FloorsRestored(overlay.floors()), trust)
        if is_noticed is None:
            is_noticed = self._rng.random() < 0.5
        peers = sorted(node.near)
        self._serving.stop(number, is_noticed)
        world.links.impairments.pop(number, None)
        if is_noticed:
            world.call(world.now, partial(self._on_entry_lost, number))
        else:
            for peer in peers:
                world.call(world.now + self._rng.uniform(*LIVENESS_S), partial(self._serving.forget, peer, number))
            world.call(world.now + self._rng.uniform(*LIVENESS_S), partial(self._on_entry_lost, number))
        world.call(world.now + down_s, partial(self._come_back, number))

    def _come_back(self, number: int) -> None:
        kept = self._kept.get(number)
        clock_s = 0.0
        if CLOCK in self._plan.kinds and self._rng.random() < _RESTART_CHANCE:
            self.counts[CLOCK] += 1
            clock_s = self._rng.choice(_WRONG_CLOCKS_S)
        node = self._world.start(number, clock_s, remembers=kept is not None)
        for restored in kept or ():
            self._world.handle(node, restored)
        self._serving.start(node)
        if KILL in self._plan.kinds:
            self._leave_later(number)

    def _storm(self) -> None:
        self.counts[STORM] += 1
        up = self._world.up()
        for node in self._rng.sample(up, math.ceil(_STORM_SHARE * len(up))):
            at = self._world.now + self._rng.uniform(0.0, _STORM_S)
            self._world.call(at, partial(self._stop_if, node.number, self._rng.uniform(*_STORM_DOWN_S)))

    def _stop_if(self, number: int, down_s: float) -> None:
        if self._world.nodes[number] is not None:
            self._stop(number, down_s)

    def _freeze(self) -> None:
        number = self._pick()
        if number is None:
            return
        self.counts[FREEZE] += 1
        self._num_freezes[number] += 1
        world, which = self._world, self._num_freezes[number]
        life, until = world.node(number), world.now + self._rng.uniform(*_FROZEN_S)
        world.freeze(number)
        self._silence(number, until)

        def is_frozen() -> bool:
            return world.nodes[number] is life and life.held is not None and self._num_freezes[number] == which

        def notice(peer: int) -> None:
            if is_frozen() and self._is_connected(number, peer):
                self._serving.disconnect(number, peer)

        def notice_entry() -> None:
            if is_frozen():
                self._on_entry_lost(number)

        def thaw() -> None:
            if is_frozen():
                world.thaw(number)

        for peer in sorted(life.near):
            world.call(world.now + self._rng.uniform(*LIVENESS_S), partial(notice, peer))
        world.call(world.now + self._rng.uniform(*LIVENESS_S), notice_entry)
        world.call(until, thaw)

    def _crash(self) -> None:
        number = self._pick()
        if number is None or self._serving.engines[number] is None:
            return
        self.counts[ENGINE] += 1
        life = self._world.node(number)
        self._serving.crash(number)

        def recover() -> None:
            if self._world.nodes[number] is life:
                self._serving.recover(life)

        self._world.call(self._world.now + self._rng.uniform(*_ENGINE_DOWN_S), recover)

    def _stall(self) -> None:
        number = self._pick()
        if number is not None:
            self.counts[SLOW_DISK] += 1
            self._silence(number, self._world.now + self._rng.uniform(*_SLOW_S))

    def _silence(self, number: int, until: float) -> None:
        silent = self._serving.silent_until
        silent[number] = max(until, silent.get(number, 0.0))

    # --- lines -----------------------------------------------------------------------------------------------------

    def _impairment(self, kind: str, impairment: Impairment) -> None:
        number, impairments = self._pick(), self._world.links.impairments
        if number is None or number in impairments:
            return
        self.counts[kind] += 1
        impairments[number] = impairment

        def heal() -> None:
            if impairments.get(number) is impairment:
                del impairments[number]

        self._world.call(self._world.now + self._rng.uniform(*_IMPAIRED_S), heal)

    def _part(self) -> None:
        if self._is_over:
            return
        self.counts[PARTITION] += 1
        world, share = self._world, self._rng.uniform(0.1, 0.5)
        side = [self._rng.random() < share for _ in world.nodes]
        cut = world.links.partition = Partition(world.now, world.now + self._plan.partition_s, side)

        def notice(one: int, other: int) -> None:
            if world.now < cut.end_s and self._is_connected(one, other):
                self._serving.disconnect(one, other)

        for one, other in self._edges:
            if side[one] != side[other]:
                world.call(world.now + self._rng.uniform(*LIVENESS_S), partial(notice, one, other))
        world.call(world.now + self._plan.partition_every_s, self._part)

    def _flap(self) -> None:
        number = self._pick()
        if number is None:
            return
        self.counts[FLAP] += 1
        life = self._world.node(number)

        def flap() -> None:
            if self._world.nodes[number] is life:
                for peer in sorted(life.near):
                    if self._is_connected(number, peer):
                        self._serving.disconnect(number, peer)

        for place in range(_FLAPS):
            self._world.call(self._world.now + place * _FLAP_S, flap)

    def _redial(self) -> None:
        world = self._world
        for one, other in self._edges:
            if self._can_connect(one, other) and self._rng.random() < _REDIAL_CHANCE:
                self._serving.forget(one, other)
                self._serving.forget(other, one)
                world.connect(one, other)
        world.call(world.now + _REDIAL_S, self._redial)

    def _can_connect(self, one: int, other: int) -> bool:
        mine, theirs, links = self._world.nodes[one], self._world.nodes[other], self._world.links
        if mine is None or theirs is None or mine.held is not None or theirs.held is not None:
            return False
        return not self._is_connected(one, other) and not links.is_cut(one, other, self._world.now)

    def _is_connected(self, one: int, other: int) -> bool:
        mine, theirs = self._world.nodes[one], self._world.nodes[other]
        return mine is not None and theirs is not None and other in mine.near and one in theirs.near


def reachable(world: World, from_node: int, among: Collection[int]) -> list[int]:
    """The nodes of ``among`` that are up, not frozen, and on the same side as ``from_node``; sorted."""
    return [
        number
        for number in sorted(among)
        if world.nodes[number] is not None
        and not world.is_frozen(number)
        and not world.links.is_cut(from_node, number, world.now)
    ]
