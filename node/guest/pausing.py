"""The decision when a node takes no prompts of others. Pure: the caller measures and gives the time.

Four kinds of reasons, the first one that holds is named: the owner paused the node, the time of the day, the month's
data is used up, and, for a polite node, that the machine is in use. A reason of the last kind holds for CALM_S after it
was last seen, so that a node does not change its mind with every pause of the owner.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from mycelia.node.guest.limits import GuestLimits

BUSY_SHARE = 0.25
"""Part of the processor that other programs may take before the machine counts as busy."""
AVERAGE_S = 15.0
"""Time over which that is averaged: opening a page in a browser is no reason to pause."""
CALM_S = 60.0
MAX_PAUSE_DAYS = 366
BUSY, BATTERY, FULL_SCREEN = "other programs use the machine", "on battery", "a program fills the screen"


@dataclass(frozen=True)
class Readings:
    """What was measured of the machine."""

    minute: int = 0
    """Minutes since midnight, by the local clock."""
    others_share: float = 0.0
    """Part of all processor time that other programs took since the last look, from 0 to 1."""
    is_on_battery: bool = False
    is_full_screen: bool = False
    month_bytes: int = 0
    """Traffic of this calendar month."""


class Pausing:
    """One caller at a time. Times are seconds; ``now`` is Unix time, which a pause of the owner outlives a restart
    by."""

    def __init__(
        self, limits: GuestLimits, until: float = 0.0, local: Callable[[float], time.struct_time] = time.localtime
    ) -> None:
        """until: the end of a pause that the owner began before a restart."""
        self.limits = limits
        self._local = local
        self.until = until
        """The end of the owner's pause; infinity: until ``resume``."""
        self._level = 0.0
        self._looked_at: float | None = None
        self._seen_at: dict[str, float] = {}
        """Reason to be polite -> when it was last seen."""

    def reason(self, readings: Readings, now: float) -> str:
        """Why no prompts of others are taken now; empty: they are. Mutates."""
        if self.limits.is_polite:
            self._note_use(readings, now)
        if now < self.until:
            end = "" if math.isinf(self.until) else time.strftime(" until %d %b %H:%M", self._local(self.until))
            return f"paused by its owner{end}"
        if self.limits.hours and not any(readings.minute in hours for hours in self.limits.hours):
            return f"outside the hours {', '.join(map(str, self.limits.hours))}"
        if self.limits.month_bytes is not None and readings.month_bytes >= self.limits.month_bytes:
            return f"the data of this month is used up: {readings.month_bytes / 1e9:.1f} GB"
        return next((cause for cause, seen_at in self._seen_at.items() if now - seen_at < CALM_S), "")

    def _note_use(self, readings: Readings, now: float) -> None:
        passed_s = AVERAGE_S if self._looked_at is None else max(now - self._looked_at, 0.0)
        self._looked_at = now
        self._level += (readings.others_share - self._level) * -math.expm1(-passed_s / AVERAGE_S)
        seen = {
            BATTERY: readings.is_on_battery,
            FULL_SCREEN: readings.is_full_screen,
            BUSY: self._level > BUSY_SHARE,
        }
        for cause, is_there in seen.items():
            if is_there:
                self._seen_at[cause] = now
            elif now - self._seen_at.get(cause, now) >= CALM_S:
                del self._seen_at[cause]
