"""The limits of API keys, with the time as an argument."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from mycelia.node.serve.api_keys import ApiKey, Limits
from mycelia.node.serve.http.limits import DAY_S, KeyLimits


@dataclass
class World:
    limits: Limits
    now: float = 0.0
    used: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.key = ApiKey("alice", bytes(32), self.limits)
        other = ApiKey("bob", bytes([1]) * 32, self.limits)
        self.gate = KeyLimits(
            [self.key, other], lambda name: self.used.get(name, 0), lambda: self.now, lambda: self.now
        )

    def enter(self) -> int:
        """0: let through; otherwise the time after which to try again."""
        refused = self.gate.enter(self.key)
        return refused.retry_s if refused else 0


def test_a_minutes_requests_may_come_at_once_and_then_at_their_rate() -> None:
    world = World(Limits(requests_per_minute=3))
    assert [world.enter() for _ in range(4)] == [0, 0, 0, 20]
    world.now = 19.9
    assert world.enter() == 1
    world.now = 20.1
    assert [world.enter(), world.enter()] == [0, 20]
    world.now = 10_000
    assert [world.enter() for _ in range(4)] == [0, 0, 0, 20]


def test_requests_at_once_end_and_others_are_not_concerned() -> None:
    world = World(Limits(concurrent=2))
    assert [world.enter() for _ in range(3)] == [0, 0, 1]
    assert world.gate.enter(ApiKey("bob", bytes(32), world.limits)) is None
    world.gate.leave(world.key)
    assert [world.enter(), world.enter()] == [0, 1]


def test_the_days_tokens_are_used_up_until_midnight() -> None:
    world = World(Limits(tokens_per_day=100), now=3 * DAY_S + 60)
    world.used["alice"] = 99
    assert world.enter() == 0
    world.used["alice"] = 100
    assert world.enter() == DAY_S - 60
    refused = world.gate.enter(world.key)
    assert refused is not None and "100 tokens of 100" in refused.message and "23 h 59 min" in refused.message


def test_a_refused_request_takes_nothing() -> None:
    world = World(Limits(requests_per_minute=60, concurrent=1))
    assert world.enter() == 0
    for _ in range(100):
        assert world.enter() == 1
    world.gate.leave(world.key)
    assert world.enter() == 0


@given(
    st.integers(1, 30),
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from(["enter", "leave", "wait"]), st.floats(0, 90)), max_size=60),
)
def test_no_order_of_requests_exceeds_a_limit(rate: int, concurrent: int, steps: list[tuple[str, float]]) -> None:
    world = World(Limits(requests_per_minute=rate, concurrent=concurrent))
    running = begun = 0
    for step, seconds in steps:
        if step == "wait":
            world.now += seconds
        elif step == "leave" and running:
            world.gate.leave(world.key)
            running -= 1
        elif step == "enter":
            retry_s = world.enter()
            running += not retry_s
            begun += not retry_s
        assert running <= concurrent
        assert begun <= rate + world.now * rate / 60 + 1e-6
