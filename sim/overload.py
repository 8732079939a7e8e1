"""More prompts than a swarm can answer: what it answers and refuses, and whether its Retry-After is true.

Every user asks one prompt, through a node that cannot distinguish its users. A refused user goes away, or comes again
at the retry time, like ``mycelia ask --wait``, until ``PATIENCE_S`` are over. One in ``KNOCKERS`` tries early instead:
ten times as often as the retry time says, and so measures when it would first be let in. A retry time is true if that
happens after half of it to twice as long.

A try counts as accepted if it was not refused: its wait counts from that try. Prompts go on to come until it is known
of each early user when it was let in.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

from mycelia.sim.outcome import percentile
from mycelia.sim.prompts import Prompt, Session
from mycelia.sim.record import Record
from mycelia.sim.scenario import Scenario
from mycelia.sim.simulate import LEAST_AGAIN_S, Step, SwarmRun

PATIENCE_S = 30.0
KNOCKERS_PATIENCE_S = 90.0
KNOCKERS = 20
KNOCK_SHARE = 0.1
TRUE_FACTOR = 2.0


@dataclass
class User:
    entry: int
    prompt: Prompt
    asked_s: float
    knocks: bool
    patience_s: float
    """From ``asked_s``; after it the user gives up."""
    refused_s: float = 0.0
    """When the user first got a retry time, and how long it was; 0: never."""
    told_s: float = 0.0
    records: list[Record] = field(default_factory=list)

    @property
    def last(self) -> Record:
        return self.records[-1]

    @property
    def is_told_true(self) -> bool | None:
        """Whether an early user's retry time was true; None: unknown, because the user was not let in."""
        waited_s = self.last.submitted_s - self.refused_s
        is_late = waited_s > TRUE_FACTOR * self.told_s
        if not (self.knocks and self.told_s) or (self.last.is_refused and not is_late):
            return None
        return not is_late and waited_s >= self.told_s / TRUE_FACTOR


@dataclass(frozen=True)
class OverloadOutcome:
    """One run. Rates a second; waits in seconds, of accepted tries."""

    offered: float
    """Prompts that came for the first time."""
    tries: float
    """All tries, first and repeated."""
    answered: float
    answered_tokens: float
    refused_share: float
    """Share of the tries that were refused."""
    unfinished: int
    """Tries that had neither an answer nor a refusal when the run ended."""
    failed: int
    """Tries that failed for any other reason than that all nodes are busy."""
    given_up: float
    """Users a second that went without an answer."""
    num_told: int
    """Early users that were refused and whose real time is known."""
    told_true: float
    """Share of those whose retry time was true."""
    told_p50_s: float
    """Median Retry-After of all refusals."""
    num_on_time: int
    """Tries at the retry time."""
    kept: float
    """Share of those that were not refused."""
    most_waiting: int
    """Requests waiting at one engine."""
    most_in_flight: int
    """Requests in flight at one entry node."""
    ttft_p50_s: float
    ttft_p99_s: float
    total_p99_s: float


def overload(scenario: Scenario, retries: bool, policy: str, seed: int, step: Step) -> OverloadOutcome:
    """One run. retries: users come again at their retry time."""
    run = _Run(scenario, policy, seed, retries=retries)
    step("nodes start")
    run.start()
    step("requests")
    run.ask()
    return run.overload()


@dataclass
class _Run(SwarmRun):
    retries: bool = True
    users: list[User] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._kinds = random.Random(f"users {self.seed}")
        self._in_flight = Counter[int]()
        self.most_in_flight = 0

    def submit(self, entry: int, session: Session, turn: int) -> None:
        knocks = self._kinds.randrange(KNOCKERS) == 0
        patience_s = KNOCKERS_PATIENCE_S if knocks else PATIENCE_S if self.retries else 0.0
        user = User(entry, session.prompts[turn], self.world.now, knocks, patience_s)
        self.users.append(user)
        self._come(user)

    def _come(self, user: User) -> None:
        world = self.world

        def on_over(record: Record) -> None:
            self._in_flight[user.entry] -= 1
            if not record.is_refused:
                return
            if not user.told_s:
                user.refused_s, user.told_s = world.now, record.retry_after_s
            pause_s = record.retry_after_s * (KNOCK_SHARE if user.knocks else 1.0)
            at = world.now + max(pause_s, LEAST_AGAIN_S)
            if at < user.asked_s + user.patience_s:
                world.call(at, lambda: self._come(user))

        self._in_flight[user.entry] += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight[user.entry])
        record = self.serving.submit(user.entry, user.prompt, on_over)
        user.records.append(record)
        self.records.append(record)

    def _is_waiting(self) -> bool:
        return any(self.window.holds(record) and not record.is_over for record in self.records)

    def overload(self) -> OverloadOutcome:
        window, now = self.window, self.world.now
        asked = [user for user in self.users if window.from_s <= user.asked_s < window.until_s]
        tries = [record for record in self.records if window.holds(record)]
        refused = [record for record in tries if record.is_refused]
        accepted = [record for record in tries if not record.failure]  # (unfinished tries count with their wait so far)
        answered = [record for record in self.records if window.from_s <= record.done_s < window.until_s]
        lengths = {record.request_id: len(user.prompt.answer) for user in self.users for record in user.records}
        told = [user.is_told_true for user in asked if user.is_told_true is not None]
        on_time = [record for user in asked if not user.knocks for record in user.records[1:]]
        told_s = sorted(record.retry_after_s for record in refused)
        ttfts_s = sorted((record.first_token_s or now) - record.submitted_s for record in accepted)
        totals_s = sorted((record.done_s or now) - record.submitted_s for record in accepted)
        engines = [engine for engine in self.serving.engines if engine is not None]
        return OverloadOutcome(
            offered=len(asked) / window.length_s,
            tries=len(tries) / window.length_s,
            answered=len(answered) / window.length_s,
            answered_tokens=sum(lengths[record.request_id] for record in answered) / window.length_s,
            refused_share=len(refused) / max(len(tries), 1),
            unfinished=sum(1 for record in tries if not record.is_over),
            failed=sum(1 for record in tries if record.failure and not record.is_refused),
            given_up=sum(1 for user in asked if user.last.failure) / window.length_s,
            num_told=len(told),
            told_true=sum(told) / max(len(told), 1),
            told_p50_s=percentile(told_s, 0.5),
            num_on_time=len(on_time),
            kept=sum(1 for record in on_time if not record.is_refused) / max(len(on_time), 1),
            most_waiting=max(engine.most_waiting for engine in engines),
            most_in_flight=self.most_in_flight,
            ttft_p50_s=percentile(ttfts_s, 0.5),
            ttft_p99_s=percentile(ttfts_s, 0.99),
            total_p99_s=percentile(totals_s, 0.99),
        )
