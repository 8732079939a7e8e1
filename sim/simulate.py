"""Requests routed through a simulated swarm: what share of them was cached, how soon they were answered.

A run: nodes with engines of different speeds start and connect; requests enter at some of them and warm the caches; the
requests after that time are measured and answered to the end. The overlays, and what they know of each other, are the
node's own. Equal seeds give equal runs: the machines, homes, prompts and times of arrival of a seed are the same for
every policy.

Nodes dial until they have ``connections`` and route to connected nodes, as real ones do. A swarm too large for one cell
is split from the start, without records in the DHT: a prompt is answered in the cell where it enters. If not all nodes
are entry nodes, only entry nodes read digests, and only those of nodes they are connected with; what repairs of the
other digests would cost them is added in proportion.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

from mycelia.proto.config import CellConfig, DigestConfig, OverlayConfig
from mycelia.proto.routing.choose import Policy
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.capacity import rate_at
from mycelia.sim.faults import DOWN_S, session_s
from mycelia.sim.links import Links, Matrix, constant_rtt, measured_rtt, mesh_of, modelled_rtt, random_graph
from mycelia.sim.machine import EngineSpec, draw_spec
from mycelia.sim.mechanisms import mechanisms_of
from mycelia.sim.metadata import MESH_DEGREE
from mycelia.sim.outcome import Outcome, Window, outcome_of
from mycelia.sim.policies import make_policy
from mycelia.sim.prompts import Session
from mycelia.sim.record import Record
from mycelia.sim.scenario import Scenario
from mycelia.sim.serving import Serving
from mycelia.sim.sessions import GENERATORS, in_bursts
from mycelia.sim.traces import Recorded, Trace
from mycelia.sim.traffic import GOSSIP, LAZY, REPAIR
from mycelia.sim.views import TrueState, told
from mycelia.sim.world import World

START_S, SETTLE_S = 5.0, 15.0
"""Nodes begin to serve within the first time, and know each other after the second."""

LEAST_AGAIN_S, AGAIN_S = 0.2, 1.0
"""Least time until a client comes again, and the time if it got none: as in ``ask --wait``."""

Step = Callable[[str], None]
"""Called with what begins, for a progress line."""


def simulate(scenario: Scenario, policy: str, seed: int, step: Step) -> Outcome:
    """One run under one policy. Raises LocalError for an unknown workload or policy, or a bad RTT file."""
    run = SwarmRun(scenario, policy, seed)
    step("nodes start")
    run.start()
    step("requests")
    run.ask()
    return run.outcome()


@dataclass
class SwarmRun:
    """A swarm and its requests. Call ``start``, then ``ask``; ``submit`` is what each client does."""

    scenario: Scenario
    policy: str
    seed: int
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        scenario, seed = self.scenario, self.seed
        if scenario.recorded is None and scenario.workload not in GENERATORS:
            raise LocalError(f"no workload {scenario.workload}; there are {', '.join(GENERATORS)}")
        if scenario.entries < 1:
            raise LocalError("all nodes are liars: there is none where requests could enter")
        self.rng = random.Random(f"scenario {seed}")
        self.links = Links(self._rtt(), seed, loss=scenario.loss)
        self.world = World(
            self.links,
            scenario.num_peers,
            seed,
            mechanisms_of(self.policy, scenario).applied(_config(scenario)),
            perform_request=lambda node, effect: self.serving.perform(node, effect),
            policy_of=self._policy_of,
            readers=range(scenario.entries) if scenario.entries < scenario.num_peers else None,
        )
        self.num_cells = cells_for(scenario.num_peers)
        self.near: list[list[int]] = [[] for _ in range(scenario.num_peers)]
        """The nodes that each node connects with."""
        specs = _machines(scenario, seed)
        # Machines and homes are drawn node by node, so the last nodes are like any others.
        liars = range(scenario.num_peers - scenario.num_liars, scenario.num_peers)
        self.serving = Serving(self.world, specs, liars, scenario.conduct)
        self._policy_of(0)  # (so that an unknown name is an error now)
        self.most_tokens = max(spec.context_tokens for spec in specs)
        """Tokens that the largest cache holds."""
        self._too_long_s: list[float] = []
        """When prompts came that no machine can hold."""
        self.rate = scenario.rate
        if scenario.load is not None:
            work = scenario.workload, scenario.recorded, scenario.zipf
            self.rate = _rate_at(scenario.load, specs, *work, seed)

    # --- the swarm -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """All nodes start to serve and learn of each other."""
        world, num_peers = self.world, self.scenario.num_peers
        cells = [range(first, num_peers, self.num_cells) for first in range(self.num_cells)]
        mesh: list[tuple[int, int]] = []
        for cell in cells:
            within = random_graph(len(cell), self.scenario.connections, self.rng)
            mesh += [(cell[a], cell[b]) for a, b in mesh_of(within, len(cell), MESH_DEGREE, self.rng)]
            for one, other in within:
                # Connections between two nodes without entering requests carry nothing beyond the gossip already
                # counted.
                if min(cell[one], cell[other]) < self.scenario.entries:
                    self.near[cell[one]].append(cell[other])
                    self.near[cell[other]].append(cell[one])
        self.links.set_mesh(mesh)
        first = num_peers - self.scenario.num_liars if self.scenario.liars_after_s else num_peers
        for number in range(first):
            node = world.start(number)
            world.call(world.now + self.rng.uniform(0.0, START_S), partial(self.serving.start, node))
        for number in range(first):
            self._connect(number)
        for number in range(first, num_peers):
            world.call(world.now + START_S + SETTLE_S + self.scenario.liars_after_s, partial(self._join, number))
        if self.scenario.churn_s is not None:
            for number in range(self.scenario.entries, num_peers):
                self._leave_later(number, self.scenario.churn_s, is_running=True)
        world.run(world.now + START_S + SETTLE_S)

    def _connect(self, number: int) -> None:
        for other in self.near[number]:
            if self.world.nodes[other] is not None:
                self.world.connect(number, other)

    def _leave_later(self, number: int, median_s: float, is_running: bool = False) -> None:
        lasts_s = session_s(median_s, self.rng, is_running)
        self.world.call(self.world.now + START_S + lasts_s, partial(self._leave, number, median_s))

    def _leave(self, number: int, median_s: float) -> None:
        self.serving.stop(number)
        back = partial(self._come_back, number, median_s)
        self.world.call(self.world.now + self.rng.expovariate(1 / DOWN_S), back)

    def _join(self, number: int) -> None:
        node = self.world.start(number)
        self._connect(number)
        self.serving.start(node)

    def _come_back(self, number: int, median_s: float) -> None:
        self._join(number)
        self._leave_later(number, median_s)

    def _rtt(self) -> Matrix:
        scenario = self.scenario
        homes = random.Random(f"homes {self.seed}")
        if scenario.rtt_s is not None:
            return constant_rtt(scenario.num_peers, scenario.rtt_s)
        if scenario.rtt_file is not None:
            return measured_rtt(scenario.rtt_file, scenario.num_peers, homes)
        return modelled_rtt(scenario.num_peers, homes)

    def _policy_of(self, number: int) -> Policy | None:
        return make_policy(
            self.policy,
            random.Random(f"policy {self.seed} {number}"),
            TrueState(self.serving, number),
            told=lambda candidates, chain: told(self.serving, number, candidates, chain),
        )

    # --- requests --------------------------------------------------------------------------------------------------

    def ask(self) -> None:
        world, scenario = self.world, self.scenario
        clients = random.Random(f"clients {self.seed}")
        sessions = _sessions(scenario.workload, scenario.recorded, self.rate, scenario.zipf, self.seed)
        if scenario.burst_s is not None:
            sessions = in_bursts(sessions, scenario.burst_s)
        self._begin_next(sessions, world.now, clients)
        world.run(world.now + scenario.warm_s)
        from_s, bytes_before = world.now, self._digest_bytes()
        numbers = range(scenario.num_peers)
        used_before = [self.serving.used(number) for number in numbers]
        world.run(world.now + scenario.measured_s)
        used = [self.serving.used(number) - used_before[number] for number in numbers]
        window = self.window = Window(
            from_s,
            world.now,
            max(world.now + scenario.tail_s, world.now + scenario.drain_s),
            self.rate or (scenario.recorded and scenario.recorded.rate) or 0.0,
            tuple(one.busy_s / max(scenario.measured_s, 1e-9) for one in used),
            self._digest_bytes() - bytes_before,
            frozenset(self.serving.liars),
        )
        world.run(world.now + scenario.tail_s)
        while world.now < window.ends_s and self._is_waiting():
            world.run(min(world.now + 1.0, window.ends_s))

    def _is_waiting(self) -> bool:
        """Whether a prompt of the measured time may still get an answer."""
        tries = (record for record in self.records if self.window.holds(record) and not record.came_again)
        return any(not record.is_over or record.is_retryable for record in tries)

    def _begin_next(self, sessions: Iterator[Session], began: float, clients: random.Random) -> None:
        """Only the next session is made: their number is unknown."""
        session = next(sessions, None)
        if session is None:
            return
        # Half the rate while caches warm up: the queues of cold caches must not be measured.
        slow_s = 0.0 if isinstance(self.scenario.recorded, Trace) else self.scenario.warm_s / 2
        at_s = session.at_s + min(session.at_s, slow_s)
        if at_s >= self.scenario.warm_s + self.scenario.measured_s + self.scenario.tail_s:
            return
        entry = clients.randrange(self.scenario.entries)

        def begin() -> None:
            self.submit(entry, session, 0)
            self._begin_next(sessions, began, clients)

        self.world.call(began + at_s, begin)

    def submit(self, entry: int, session: Session, turn: int) -> None:
        """The client of ``session`` asks its prompt number ``turn`` now, and then the following ones."""
        if session.turns[turn].num_tokens >= self.most_tokens:
            self._too_long_s.append(self.world.now)
        else:
            self._try(entry, session, turn, None)

    def _try(self, entry: int, session: Session, turn: int, before: Record | None) -> None:
        """before: the client's last try of this prompt, which was refused or failed."""

        def on_over(record: Record) -> None:
            now = self.world.now
            if record.failure and record.is_retryable:
                pause_s = max(record.retry_after_s or AGAIN_S, LEAST_AGAIN_S)
                self.world.call(now + pause_s, lambda: self._try(entry, session, turn, record))
            elif not record.failure and turn + 1 < len(session.prompts):
                self.world.call(now + session.think_s[turn], lambda: self.submit(entry, session, turn + 1))

        asked_s = 0.0
        if before is not None:
            before.came_again, asked_s = True, before.asked_s
        self.records.append(self.serving.submit(entry, session.prompts[turn], on_over, asked_s=asked_s))

    # --- measures --------------------------------------------------------------------------------------------------

    def _digest_bytes(self) -> float:
        """Bytes of digests that an entry node received so far."""
        entries = self.scenario.entries
        gossip, lazy, repair = (float(self.world.received[plane][:entries].mean()) for plane in (GOSSIP, LAZY, REPAIR))
        if entries < self.scenario.num_peers:
            known = sum(len(self.near[entry]) for entry in range(entries)) / entries
            repair *= (self.scenario.num_peers / self.num_cells - 1) / max(known, 1)
        return gossip + lazy + repair

    def outcome(self) -> Outcome:
        window = self.window
        num_too_long = sum(window.from_s <= at_s < window.until_s for at_s in self._too_long_s)
        return outcome_of(self.records, window, num_too_long)


def _machines(scenario: Scenario, seed: int) -> tuple[EngineSpec, ...]:
    machines, rates = random.Random(f"machines {seed}"), random.Random(f"rates {seed}")
    drawn = [draw_spec(machines, scenario.unevenness) for _ in range(scenario.num_peers)]
    wrong = scenario.wrong_rates
    return tuple(
        replace(
            spec,
            cache_blocks=max(round(spec.cache_blocks * scenario.cache_share), 1),
            told_rate=rates.choice((wrong, 1 / wrong)),
        )
        for spec in drawn
    )


@lru_cache(maxsize=8)
def _rate_at(
    load: float, specs: tuple[EngineSpec, ...], workload: str, recorded: Recorded | None, zipf: float, seed: int
) -> float:
    return rate_at(load, specs, lambda rate: _sessions(workload, recorded, rate, zipf, seed))


def _sessions(
    workload: str, recorded: Recorded | None, rate: float | None, zipf: float, seed: int
) -> Iterator[Session]:
    rng = random.Random(f"prompts {seed}")
    if recorded is not None:
        return recorded.sessions(rate, rng)
    assert rate is not None
    return GENERATORS[workload](rate, zipf, rng)


def cells_for(num_peers: int) -> int:
    """Number of equal cells after each too large one has split."""
    num_cells = 1
    while num_peers > num_cells * CellConfig().max_cell_nodes:
        num_cells *= 2
    return num_cells


def _config(scenario: Scenario) -> OverlayConfig:
    config = OverlayConfig()
    if scenario.digest_age_s is not None:
        age_s = scenario.digest_age_s
        digest = DigestConfig(
            delta_interval_s=age_s,
            delta_burst=1,
            delta_delay_s=min(config.digest.delta_delay_s, age_s),
            delta_min_gap_s=min(config.digest.delta_min_gap_s, age_s),
            heartbeat_s=max(config.digest.heartbeat_s, age_s),
        )
        config = replace(config, digest=digest)
    if scenario.load_age_s is not None:
        config = replace(config, vitals=replace(config.vitals, vitals_interval_s=scenario.load_age_s))
    return replace(config, max_peers=max(config.max_peers, scenario.num_peers))
