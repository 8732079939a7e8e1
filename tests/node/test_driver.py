"""The clock of the protocol on a machine that sleeps."""

import time

import pytest
import trio
import trio.testing

from mycelia.node import driver
from mycelia.node.driver import SteadyClock


async def test_the_clock_counts_the_time_that_the_machine_slept(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """trio's does not: peers would refuse what the node dates hours ago, until it is started again."""
    slept_s = 5.0
    monkeypatch.setattr(driver, "slept_s", lambda: slept_s)
    clock = SteadyClock()
    began = clock.now()
    await trio.sleep(10)
    assert clock.now() - began == pytest.approx(10)
    slept_s += 8 * 3_600
    assert clock.now() - began == pytest.approx(10 + 8 * 3_600)
    due = clock.now() + 20
    await trio.sleep_until(clock.to_trio(due))
    assert clock.now() == pytest.approx(due)
    slept_s += 0.2  # (two clocks that are read one after the other)
    assert clock.now() == pytest.approx(due)


async def test_the_clock_does_not_follow_a_corrected_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SteadyClock()
    before = clock.now()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= clock.now() < before + 3_600


def test_a_machine_that_does_not_sleep_has_slept_for_next_to_nothing() -> None:
    """The difference of two looks, as machines may have slept before."""
    first = driver.slept_s()
    assert abs(driver.slept_s() - first) < SteadyClock.SHORTEST_SLEEP_S
