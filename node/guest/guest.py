"""Holds a running node to its owner's limits: looks at the machine, and pauses and resumes the node."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog
import trio

from mycelia.node.guest.limits import GuestLimits
from mycelia.node.guest.machine import OthersShare, is_full_screen, is_on_battery, minute_of_day
from mycelia.node.guest.pausing import Pausing, Readings
from mycelia.node.storage.sealed import SealedFile

log = structlog.get_logger()

LOOK_S = 5.0
REPEAT_S = 300.0
"""How often peers learn again that the node is paused."""
PAUSE_FILE = SealedFile("pause.msgpack", float, "the node is not paused any more")
"""The end of the owner's pause, in Unix time, so that a restart does not end it."""

run_in_thread = trio.to_thread.run_sync


class Guest:
    """``run`` must be running. ``reason`` says why the node takes no prompts of others; empty: it takes them."""

    def __init__(
        self,
        limits: GuestLimits,
        data_dir: Path,
        month_bytes: Callable[[], int],
        on_reason: Callable[[str], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """month_bytes: the traffic of this month. on_reason: called when ``reason`` changes, and every REPEAT_S while
        there is one. The caller must hold the directory's lock."""
        self._data_dir = data_dir
        self._month_bytes = month_bytes
        self._on_reason = on_reason
        self._wall = wall
        self._pausing = Pausing(limits, PAUSE_FILE.load(data_dir) or 0.0)
        self._others = OthersShare()
        self._readings = Readings()
        self._told_at = -math.inf
        self.reason = ""

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            is_polite = self._pausing.limits.is_polite
            seen = await run_in_thread(_look, self._others) if is_polite else Readings()
            minute = minute_of_day(self._wall())
            self._readings = replace(seen, minute=minute, month_bytes=self._month_bytes())
            self._decide()
            await trio.sleep(LOOK_S)

    def set_limits(self, limits: GuestLimits) -> None:
        """Other limits from now on. Mutates."""
        self._pausing.limits = limits

    def pause(self, for_s: float | None) -> None:
        """Pause until ``resume``, or for so many seconds. Raises LocalError when that cannot be kept on disk."""
        self._set(math.inf if for_s is None else self._wall() + for_s)

    def resume(self) -> None:
        """End the owner's pause. Other reasons stay. Raises LocalError."""
        self._set(0.0)

    def _set(self, until: float) -> None:
        self._pausing.until = until
        self._decide()
        PAUSE_FILE.save(self._data_dir, until)

    def _decide(self) -> None:
        now = self._wall()
        reason = self._pausing.reason(self._readings, now)
        if reason != self.reason:
            log.info("paused", reason=reason) if reason else log.info("resumed", was=self.reason)
        elif not reason or now - self._told_at < REPEAT_S:
            return
        self.reason, self._told_at = reason, now
        self._on_reason(reason)


def _look(others: OthersShare) -> Readings:
    """What other programs do."""
    return Readings(others_share=others.measured(), is_on_battery=is_on_battery(), is_full_screen=is_full_screen())
