"""What a node tells systemd, by the protocol of sd_notify(3): lines in one datagram to the socket NOTIFY_SOCKET.

READY=1 when prompts are answered, WATCHDOG=1 while the event loop runs, STOPPING=1 when the node begins to leave.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

import trio

WATCHDOG_PARTS = 3
"""How many signs of life there are in the time after which systemd ends a silent service."""


def notify(*lines: str, environment: Mapping[str, str] = os.environ) -> None:
    """Sends ``lines``. Does nothing when no service manager wants them. Never waits, never raises."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.setblocking(False)
        out.sendto("\n".join(lines).encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


def watchdog_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds after which systemd ends this process if it is silent; None: it does not."""
    usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    is_meant = not pid or pid == str(os.getpid())
    return int(usec) / 1e6 if is_meant and usec.isdecimal() and int(usec) else None


async def keep_watchdog_calm() -> None:
    """Sends signs of life until cancelled: a task of the event loop, so that a loop that is stuck sends none."""
    interval_s = watchdog_s()
    while interval_s is not None:
        notify("WATCHDOG=1")
        await trio.sleep(interval_s / WATCHDOG_PARTS)
