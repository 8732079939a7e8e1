"""A running node is held to its owner's limits."""

from pathlib import Path

import trio
import trio.testing

from mycelia.node.guest.guest import LOOK_S, REPEAT_S, Guest
from mycelia.node.guest.limits import GuestLimits


class Told:
    """A node's data of this month, and what it is told."""

    def __init__(self) -> None:
        self.month_bytes = 0
        self.reasons: list[str] = []


def a_guest(data_dir: Path, told: Told, limits: GuestLimits = GuestLimits()) -> Guest:
    return Guest(limits, data_dir, lambda: told.month_bytes, told.reasons.append, trio.current_time)


async def test_a_pause_begins_at_once_is_repeated_and_outlives_a_restart(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    told = Told()
    guest = a_guest(tmp_path, told)
    with trio.move_on_after(LOOK_S / 2):
        await guest.run()
    assert told.reasons == []
    guest.pause(None)
    assert told.reasons == ["paused by its owner"] == [guest.reason]
    with trio.move_on_after(2 * REPEAT_S + 2 * LOOK_S):
        await guest.run()
    assert len(told.reasons) == 3

    told = Told()
    again = a_guest(tmp_path, told)
    with trio.move_on_after(LOOK_S / 2):
        await again.run()
    assert told.reasons == ["paused by its owner"]
    again.resume()
    assert told.reasons[-1] == "" == again.reason
    last = a_guest(tmp_path, told)
    with trio.move_on_after(LOOK_S / 2):
        await last.run()
    assert last.reason == ""


async def test_other_reasons_stay_when_the_owner_resumes(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    told = Told()
    guest = a_guest(tmp_path, told, GuestLimits(month_bytes=100))
    guest.pause(20)
    told.month_bytes = 100
    with trio.move_on_after(60):
        await guest.run()
    assert [reason.partition(":")[0] for reason in told.reasons][1:] == ["the data of this month is used up"]
    guest.resume()
    assert guest.reason.startswith("the data of this month")
