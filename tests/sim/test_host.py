"""Engines that share a machine: computing ones slow each other, all work is done, dropped work frees the machine."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.sim.host import Host


@dataclass
class Clock:
    now: float = 0.0
    done: dict[str, float] = field(default_factory=dict)
    _heap: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _number: int = 0

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._heap, (time, self._number, action))

    def run(self, until: float = 1e9) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = until

    def note(self, name: str) -> Callable[[float], None]:
        def done(now: float) -> None:
            assert now == pytest.approx(self.now)
            self.done[name] = now

        return done


def test_alone_at_full_speed_together_at_the_measured_one() -> None:
    clock = Clock()
    host = Host([1.0, 0.5], clock.at)
    host.begin("a", 2.0, clock.note("a"), 0.0)
    clock.run(1.0)
    host.begin("b", 1.0, clock.note("b"), 1.0)
    clock.run()
    # From 1 s on both need a second of their own, at half speed.
    assert clock.done == {"a": pytest.approx(3.0), "b": pytest.approx(3.0)}


def test_two_pieces_of_one_engine_slow_nobody() -> None:
    clock = Clock()
    host = Host([1.0, 0.5], clock.at)
    host.begin("a", 2.0, clock.note("prefill"), 0.0)
    host.begin("a", 1.0, clock.note("decode"), 0.0)
    clock.run()
    assert clock.done == {"decode": pytest.approx(1.0), "prefill": pytest.approx(2.0)}


def test_more_engines_than_were_measured_share_what_was() -> None:
    host = Host([1.0, 1.0], Clock().at)
    for number in range(4):
        host.begin(number, 1.0, lambda now: None, 0.0)
    assert host.speed() == pytest.approx(0.5)


def test_what_is_dropped_is_not_done_and_frees_the_machine() -> None:
    clock = Clock()
    host = Host([1.0, 0.5], clock.at)
    gone = host.begin("a", 10.0, clock.note("a"), 0.0)
    kept = host.begin("b", 2.0, clock.note("b"), 0.0)
    clock.run(2.0)
    assert host.left_s(kept, 2.0) == pytest.approx(1.0)
    host.drop(gone, 2.0)
    host.drop(gone, 2.0)
    clock.run()
    assert clock.done == {"b": pytest.approx(3.0)}
    assert host.left_s(kept, 3.0) == 0.0


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0.01, 5), st.floats(0, 5)), min_size=1, max_size=20))
def test_no_work_is_lost_or_won(pieces: list[tuple[int, float, float]]) -> None:
    """On a machine of one core the last piece is done after the sum of all pieces, plus the pauses."""
    clock = Clock()
    host = Host([1.0, 1 / 2, 1 / 3, 1 / 4], clock.at)

    def begin(number: int, seconds: float) -> None:
        host.begin(number, seconds, clock.note(str(number)), clock.now)

    for number, (_, seconds, at) in enumerate(pieces):
        clock.at(at, partial(begin, number, seconds))
    # (as many owners as pieces: beyond four the speeds go on as 1 / n)
    busy_until = 0.0
    for _, seconds, at in sorted(pieces, key=lambda piece: piece[2]):
        busy_until = max(busy_until, at) + seconds
    clock.run()
    assert len(clock.done) == len(pieces)
    assert max(clock.done.values()) == pytest.approx(busy_until)


@pytest.mark.parametrize("speeds", [[], [1.0, 0.0]])
def test_bad_speeds(speeds: list[float]) -> None:
    with pytest.raises(ValueError, match="speeds"):
        Host(speeds, Clock().at)
