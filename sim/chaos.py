"""Clients of a swarm whose nodes and lines fail in many ways, and whether each gets its answer exactly once.

A client is like ``mycelia ask --wait`` on a machine without a node: it knows many nodes and enters at one of them. When
that node is gone or leaving, or silent for longer than a connection lives, the client continues at another one with the
tokens that it has. A client that gets a retry time before the first token comes again then, at the same node, until
``DEADLINE_S``; any other failure is final. The right answer is known beforehand.

A client is on that side of a partition where it entered. No two tokens of an answer are equal, so that every lost,
repeated or misplaced token is detected.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from mycelia.proto.config import OverlayConfig
from mycelia.proto.planes.failure import LEAVING
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.faults import FaultPlan, Faults, reachable
from mycelia.sim.links import Links, mesh_of, modelled_rtt, random_graph
from mycelia.sim.machine import draw_spec
from mycelia.sim.metadata import MESH_DEGREE
from mycelia.sim.node import SimNode
from mycelia.sim.prompts import Prompt, Session
from mycelia.sim.record import Record
from mycelia.sim.scenario import DEGREE
from mycelia.sim.serving import Serving
from mycelia.sim.sessions import GENERATORS
from mycelia.sim.world import World

START_S, SETTLE_S = 5.0, 15.0
DEADLINE_S = 600.0
LEAST_RETRY_S = 0.5
REJOIN_S = 0.1
FRAME_S = 0.5
"""Seconds between two frames of tokens: real nodes send one each tenth of a second, with five times the events."""

STEP_S = 60.0
"""Virtual time of one step of a progress line."""
_MAX_CHECKED = 10
"""Nodes whose invariants are checked in each step; all at the end. Checking all in each step takes most of the time."""
_ANSWER_TOKENS = 1 << 31
"""First token of answers, above those of all prompts."""

Step = Callable[[str], None]


@dataclass(frozen=True)
class ChaosScenario:
    """A swarm, its prompts and its faults."""

    num_peers: int = 200
    loss: float = 0.1
    """Share of messages that each hop loses."""
    length_s: float = 3_600.0
    rate: float = 5.0
    """Prompts a second in total."""
    workload: str = "multi-turn"
    plan: FaultPlan = field(default_factory=FaultPlan)

    @property
    def num_steps(self) -> int:
        return 2 + math.ceil(self.length_s / STEP_S)


@dataclass
class Answer:
    """The answer to one prompt, as its client sees it."""

    prompt: Prompt
    asked_s: float
    tokens: list[int] = field(default_factory=list)
    first_s: float = 0.0
    """When the first token came, and the last one so far; 0: none."""
    last_s: float = 0.0
    gap_s: float = 0.0
    """Longest time between two frames of tokens."""
    num_moves: int = 0
    """Moves between nodes after the first token, as the entry nodes report."""
    num_rejoins: int = 0
    """Changes of the entry node because the first one was lost."""
    num_turned_away: int = 0
    """Changes of the entry node because it was leaving."""
    num_retries: int = 0
    """Returns at the retry time."""
    failure: str = ""
    is_finished: bool = False

    @property
    def is_exact(self) -> bool:
        return tuple(self.tokens) == self.prompt.answer

    @property
    def is_over(self) -> bool:
        return bool(self.failure) or self.is_finished


@dataclass(frozen=True)
class ChaosOutcome:
    answers: Sequence[Answer]
    faults: Counter[str]
    trace: str
    """Equal for equal seeds."""

    @property
    def failures(self) -> Counter[str]:
        """Reason -> prompts without an answer."""
        return Counter(answer.failure for answer in self.answers if answer.failure)


def chaos(scenario: ChaosScenario, seed: int, step: Step) -> ChaosOutcome:
    """One run. Raises LocalError for an unknown workload, and AssertionError when a node breaks an invariant."""
    run = _Run(scenario, seed)
    step("nodes start")
    run.start()
    run.ask(step)
    return ChaosOutcome(run.answers, run.faults.counts, run.world.trace())


class _Run:
    def __init__(self, scenario: ChaosScenario, seed: int) -> None:
        if scenario.workload not in GENERATORS:
            raise LocalError(f"no workload {scenario.workload}; there are {', '.join(GENERATORS)}")
        self._scenario = scenario
        rng = random.Random(f"chaos {seed}")
        num_peers = scenario.num_peers
        links = Links(modelled_rtt(num_peers, random.Random(f"homes {seed}")), seed, loss=scenario.loss)
        config = OverlayConfig()
        self.world = World(
            links,
            num_peers,
            seed,
            replace(config, max_peers=max(config.max_peers, num_peers)),
            perform_request=lambda node, effect: self._serving.perform(node, effect),
        )
        machines = random.Random(f"machines {seed}")
        self._serving = Serving(self.world, [draw_spec(machines) for _ in range(num_peers)], frame_s=FRAME_S)
        self._edges = random_graph(num_peers, min(DEGREE, num_peers - 1), rng)
        links.set_mesh(mesh_of(self._edges, num_peers, MESH_DEGREE, rng))
        faults_rng = random.Random(f"faults {seed}")
        self.faults = Faults(self.world, self._serving, self._edges, scenario.plan, faults_rng, self._on_entry_lost)
        self._clients = random.Random(f"clients {seed}")
        self._sessions = GENERATORS[scenario.workload](scenario.rate, 1.0, random.Random(f"prompts {seed}"))
        self.answers: list[Answer] = []
        self._next_token = _ANSWER_TOKENS
        self._at_entry: list[list[_Client]] = [[] for _ in range(num_peers)]
        """Clients that wait at each entry node."""

    def start(self) -> None:
        world = self.world
        for number in range(self._scenario.num_peers):
            node = world.start(number)
            world.call(world.now + world.rng.uniform(0.0, START_S), partial(self._serving.start, node))
        for one, other in self._edges:
            world.connect(one, other)
        world.run(world.now + START_S + SETTLE_S)

    def ask(self, step: Step) -> None:
        world, length_s = self.world, self._scenario.length_s
        began = world.now
        self._begin_next(began)
        self.faults.begin()
        while world.now < began + length_s:
            step(f"minute {round((world.now - began) / 60)} of {math.ceil(length_s / 60)}: {self._told()}")
            world.run(min(world.now + STEP_S, began + length_s))
            world.check_invariants(_MAX_CHECKED)
        self.faults.end()
        step("the last answers")
        while world.now < began + length_s + 2 * DEADLINE_S and not all(answer.is_over for answer in self.answers):
            world.run(world.now + 5.0)
        for answer in self.answers:
            if not answer.is_over:
                answer.failure = "no end"
        world.check_invariants()

    def _told(self) -> str:
        lost = sum(1 for answer in self.answers if answer.failure)
        return f"{len(self.answers)} prompts, {lost} lost, {self.faults.counts.total()} faults"

    def _begin_next(self, began: float) -> None:
        """Only the next session is made, because they never end."""
        session = next(self._sessions)
        if session.at_s < self._scenario.length_s:
            self.world.call(began + session.at_s, lambda: self._begin(session, began))

    def _begin(self, session: Session, began: float) -> None:
        self._ask(session, 0, began + self._scenario.length_s)
        self._begin_next(began)

    def _ask(self, session: Session, turn: int, until: float) -> None:
        world = self.world
        if world.now >= until:
            return
        prompt = session.prompts[turn]
        first, self._next_token = self._next_token, self._next_token + len(prompt.answer)
        answer = Answer(replace(prompt, answer=tuple(range(first, self._next_token))), world.now)
        self.answers.append(answer)

        def on_over() -> None:
            if answer.is_finished and turn + 1 < len(session.prompts):
                world.call(world.now + session.think_s[turn], lambda: self._ask(session, turn + 1, until))

        entry = self._clients.randrange(self._scenario.num_peers)
        _Client(answer, world, self._serving, self._at_entry, self._clients, on_over).enter(entry)

    def _on_entry_lost(self, number: int) -> None:
        for client in list(self._at_entry[number]):
            client.on_entry_lost()


class _Client:
    """Follows one answer to its end."""

    def __init__(
        self,
        answer: Answer,
        world: World,
        serving: Serving,
        at_entry: list[list["_Client"]],
        rng: random.Random,
        on_over: Callable[[], None],
    ) -> None:
        self._answer = answer
        self._world = world
        self._serving = serving
        self._at_entry = at_entry
        self._rng = rng
        self._on_over = on_over
        self._entry = 0
        self._life: SimNode | None = None
        """The life of the entry node that got the prompt: it may have restarted since."""
        self._record: Record | None = None

    def enter(self, at: int, lost: int | None = None) -> None:
        """Enters at node ``at`` if it is up, otherwise at another node reachable from there, now or soon. At ``lost``
        only if there is no other."""
        world, answer = self._world, self._answer
        up = reachable(world, at, range(len(world.nodes)))
        if not up:
            world.call(world.now + LEAST_RETRY_S, lambda: self.enter(at, lost))
            return
        up = [number for number in up if number != lost] or up
        self._entry = at if at in up else self._rng.choice(up)
        self._life = world.node(self._entry)
        self._at_entry[self._entry].append(self)
        self._record = self._serving.submit(
            self._entry, answer.prompt, self._end, self._on_tokens, num_answered=len(answer.tokens)
        )

    def on_entry_lost(self) -> None:
        """The connection with the entry node is gone. Does nothing if it belonged to an earlier life of the node."""
        life, world = self._life, self._world
        if self._record is None or (world.nodes[self._entry] is life and not world.is_frozen(self._entry)):
            return
        self._at_entry[self._entry].remove(self)
        self._serving.leave(self._record)
        self._answer.num_rejoins += 1
        self._go_elsewhere()

    def _go_elsewhere(self) -> None:
        lost, self._record = self._entry, None
        self._world.call(self._world.now + REJOIN_S, lambda: self.enter(lost, lost))

    def _on_tokens(self, tokens: Sequence[int]) -> None:
        now, answer = self._world.now, self._answer
        if answer.tokens:
            answer.gap_s = max(answer.gap_s, now - answer.last_s)
        else:
            answer.first_s = now
        answer.last_s = now
        answer.tokens += tokens

    def _end(self, record: Record) -> None:
        answer, world = self._answer, self._world
        self._at_entry[self._entry].remove(self)
        self._record = None
        answer.num_moves += record.resumed
        if record.code == LEAVING:
            answer.num_turned_away += 1
            self._go_elsewhere()
            return
        may_retry = record.retry_after_s > 0 and not answer.tokens and world.now < answer.asked_s + DEADLINE_S
        if record.failure and may_retry:
            answer.num_retries += 1
            pause_s, entry = max(record.retry_after_s, LEAST_RETRY_S), self._entry
            world.call(world.now + pause_s, lambda: self.enter(entry))
            return
        answer.failure, answer.is_finished = record.failure, not record.failure
        self._on_over()
