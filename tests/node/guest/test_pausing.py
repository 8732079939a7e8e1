"""When a node takes no prompts of others."""

import math
import time

from mycelia.node.guest.limits import GuestLimits, Hours
from mycelia.node.guest.pausing import AVERAGE_S, BATTERY, BUSY, CALM_S, FULL_SCREEN, Pausing, Readings

LOOK_S = 5.0


class Watched:
    """A node that is looked at every LOOK_S."""

    def __init__(self, limits: GuestLimits, until: float = 0.0) -> None:
        self.pausing = Pausing(limits, until, time.gmtime)
        self.now = 1e9

    def after(self, seconds: float, **readings: float) -> str:
        """The reason after so many seconds with these readings."""
        reason = ""
        for _ in range(max(math.ceil(seconds / LOOK_S), 1)):
            self.now += LOOK_S
            reason = self.pausing.reason(Readings(**readings), self.now)  # type: ignore[arg-type]
        return reason


def test_a_node_without_limits_heeds_its_owner_alone() -> None:
    node = Watched(GuestLimits())
    assert node.after(600, others_share=1.0, is_on_battery=True, is_full_screen=True, month_bytes=10**15) == ""
    node.pausing.until = math.inf
    assert node.after(10**5) == "paused by its owner"
    node.pausing.until = node.now + 100
    assert node.after(5).startswith("paused by its owner until 10 Sep ")
    assert node.after(100) == ""


def test_a_pause_from_before_a_restart_goes_on() -> None:
    node = Watched(GuestLimits(), until=1e9 + 60)
    assert node.after(5) and not node.after(60)


def test_a_node_that_was_lent_for_the_night_takes_nothing_at_day() -> None:
    node = Watched(GuestLimits(hours=(Hours(1320, 480), Hours(720, 780))))
    assert node.after(5, minute=600) == "outside the hours 22:00-08:00, 12:00-13:00"
    assert [node.after(5, minute=minute) for minute in (0, 720, 1320)] == ["", "", ""]


def test_a_node_stops_when_the_months_data_is_used_up() -> None:
    node = Watched(GuestLimits(month_bytes=2 * 10**9))
    assert node.after(5, month_bytes=2 * 10**9 - 1) == ""
    assert node.after(5, month_bytes=2 * 10**9) == "the data of this month is used up: 2.0 GB"


def test_a_polite_node_waits_until_the_machine_is_calm_again() -> None:
    node = Watched(GuestLimits(is_polite=True))
    assert node.after(5, is_on_battery=True) == BATTERY
    assert node.after(CALM_S - LOOK_S) == BATTERY and node.after(LOOK_S) == ""
    assert node.after(5, is_full_screen=True) == FULL_SCREEN and node.after(CALM_S + LOOK_S) == ""


def test_a_polite_node_lets_short_work_pass() -> None:
    node = Watched(GuestLimits(is_polite=True))
    node.after(60)
    assert node.after(5, others_share=0.7) == "", "a page is opened"
    node.after(60)
    assert node.after(AVERAGE_S, others_share=0.7) == BUSY
    assert node.after(3600, others_share=0.7) == BUSY
    assert node.after(CALM_S + 2 * AVERAGE_S, others_share=0.05) == ""
    assert node.after(3600, others_share=0.2) == "", "a player of music"
