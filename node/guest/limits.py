"""The limits that the owner of a machine sets, and the texts in which they are given."""

import re
from dataclasses import dataclass

from mycelia.proto.wire.errors import LocalError

DAY_MINUTES = 24 * 60
_TIME = re.compile(r"(\d{1,2}):(\d{2})")


@dataclass(frozen=True)
class Hours:
    """A part of each day, in minutes since midnight. It goes over midnight if the end is before the start."""

    start: int
    end: int

    def __contains__(self, minute: int) -> bool:
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def __str__(self) -> str:
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in (self.start, self.end))


def read_hours(text: str) -> Hours:
    """Hours such as 22:00-08:00. Raises LocalError."""
    start, separator, end = text.strip().partition("-")
    minutes = [_minute(part.strip()) for part in (start, end)]
    if not separator or None in minutes:
        raise LocalError(f"{text!r} are no hours such as 22:00-08:00")
    if minutes[0] == minutes[1]:
        raise LocalError(f"{text!r} has no beginning and no end; leave it out for the whole day")
    first, last = minutes
    assert first is not None and last is not None
    return Hours(first, last)


def _minute(text: str) -> int | None:
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    minute = 60 * int(found[1]) + int(found[2])
    return minute % DAY_MINUTES if int(found[2]) < 60 and minute <= DAY_MINUTES else None


@dataclass(frozen=True)
class GuestLimits:
    """When prompts of others are taken. None, empty and False: no limit."""

    month_bytes: int | None = None
    """Traffic with peers outside the local network in a calendar month, both ways together."""
    hours: tuple[Hours, ...] = ()
    """When prompts of others are taken, by the local clock; empty: always."""
    is_polite: bool = False
    """Take none while other programs use the machine, on battery, or while a program fills the screen."""
