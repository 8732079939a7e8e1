"""What other programs do on this machine: processor time, battery, and whether one of them fills the screen.

All of it may block for some milliseconds, so it belongs in a thread. What cannot be read counts as not there.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil

ASK_DEADLINE_S = 2.0
"""For the desktop's programs."""
_GDBUS = ["gdbus", "call", "--session"]
_INHIBITED = (
    [
        *_GDBUS,
        "--dest=org.gnome.SessionManager",
        "--object-path=/org/gnome/SessionManager",
        "--method=org.gnome.SessionManager.IsInhibited",
        "8",
    ],
    [
        *_GDBUS,
        "--dest=org.freedesktop.PowerManagement",
        "--object-path=/org/freedesktop/PowerManagement/Inhibit",
        "--method=org.freedesktop.PowerManagement.Inhibit.HasInhibit",
    ],
)
"""Ask GNOME and KDE whether a program, such as a film or a game, keeps the session from becoming idle: Wayland tells no
program what others show."""
_DISPLAYS = ("WAYLAND_DISPLAY", "DISPLAY")


class OthersShare:
    """The part of the processor that programs other than this one and its children take."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._last = self._times()

    def measured(self) -> float:
        """The share since the last call, from 0 to 1. Mutates."""
        before, self._last = self._last, self._times()
        (all_before, busy_before, own_before), (all_now, busy_now, own_now) = before, self._last
        # (an engine that has ended takes its time with it)
        others = (busy_now - busy_before) - max(own_now - own_before, 0.0)
        return min(max(others / max(all_now - all_before, 1e-9), 0.0), 1.0)

    def _times(self) -> tuple[float, float, float]:
        """All processor time, that of all programs, and that of this one, in seconds."""
        times = psutil.cpu_times()._asdict()
        guests = times.get("guest", 0.0) + times.get("guest_nice", 0.0)  # (which user and nice contain)
        total = sum(times.values()) - guests
        return total, total - times["idle"] - times.get("iowait", 0.0) - times.get("steal", 0.0), self._own_s()

    def _own_s(self) -> float:
        own_s = 0.0
        for process in [self._own, *self._own.children(recursive=True)]:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue  # (it has just ended)
            own_s += times.user + times.system
        return own_s


def is_on_battery() -> bool:
    battery = None
    with suppress(OSError, ValueError):  # (what the system's files say of it is of many kinds)
        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return battery is not None and battery.power_plugged is False


def is_full_screen() -> bool:
    """Whether a program fills the screen, as far as the desktop tells."""
    if sys.platform == "darwin":
        return keeps_display_on(_said(["pmset", "-g", "assertions"]))
    environment = _desktop()
    if environment.get("WAYLAND_DISPLAY"):
        return any("true" in _said(question, environment) for question in _INHIBITED)
    if environment.get("DISPLAY"):
        window = active_window(_said(["xprop", "-root", "_NET_ACTIVE_WINDOW"], environment))
        state = _said(["xprop", "-id", window, "_NET_WM_STATE"], environment) if window else ""
        return "_NET_WM_STATE_FULLSCREEN" in state
    return False


def _desktop() -> dict[str, str]:
    """The environment of the user's desktop. A service that started before the user logged in does not have it, but the
    user's service manager does."""
    own = dict(os.environ)
    if any(own.get(name) for name in _DISPLAYS) or "INVOCATION_ID" not in own or os.geteuid() == 0:
        return own
    lines = _said(["systemctl", "--user", "show-environment"]).splitlines()
    return own | {name: value for name, _, value in (line.partition("=") for line in lines) if name in _SHARED}


_SHARED = {*_DISPLAYS, "XAUTHORITY", "DBUS_SESSION_BUS_ADDRESS"}


def active_window(said: str) -> str:
    """The id in what xprop says of the root window; empty: none is active."""
    found = re.search(r"window id # (0x[0-9a-f]+)", said)
    return "" if found is None or int(found[1], 16) == 0 else found[1]


def keeps_display_on(said: str) -> bool:
    """Whether a program keeps the display of a Mac on, as players of films do."""
    return re.search(r"^\s*PreventUserIdleDisplaySleep\s+1$", said, re.MULTILINE) is not None


def minute_of_day(now: float) -> int:
    """Minutes since midnight, by the local clock."""
    local = time.localtime(now)
    return 60 * local.tm_hour + local.tm_min


def _said(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """The output of a program; empty if there is none."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_DEADLINE_S,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
