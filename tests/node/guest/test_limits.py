"""Hours of the day as people write them."""

import pytest

from mycelia.node.guest.limits import Hours, read_hours
from mycelia.proto.wire.errors import LocalError


def test_hours_may_go_over_midnight() -> None:
    night, day = read_hours("22:00-08:00"), read_hours(" 9:30 - 17:00")
    assert (night, str(night)) == (Hours(1320, 480), "22:00-08:00")
    assert [minute in night for minute in (1319, 1320, 0, 479, 480)] == [False, True, True, True, False]
    assert [minute in day for minute in (569, 570, 1019, 1020)] == [False, True, True, False]
    assert 1439 in read_hours("12:00-24:00") and 719 not in read_hours("12:00-24:00")


@pytest.mark.parametrize("text", ["", "22-8", "22:00", "22:00-", "25:00-8:00", "8:60-9:00", "a:b-c:d"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(LocalError, match="are no hours such as"):
        read_hours(text)


@pytest.mark.parametrize("text", ["8:00-8:00", "00:00-24:00"])
def test_the_whole_day_needs_no_hours(text: str) -> None:
    with pytest.raises(LocalError, match="leave it out for the whole day"):
        read_hours(text)
