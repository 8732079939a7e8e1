"""A supervisor that keeps one failing task from ending the node: with the right bytes a peer makes libp2p raise almost
anything."""

from collections.abc import Awaitable, Callable
from typing import TypeVarTuple

import structlog
import trio

log = structlog.get_logger()

RESTART_PAUSE_S = 1.0

Args = TypeVarTuple("Args")


async def supervised(task: Callable[[*Args], Awaitable[None]], *args: *Args) -> None:
    """Runs ``task`` until it returns, and again after a pause whenever it fails."""
    while True:
        try:
            await task(*args)
            return
        except Exception:
            log.exception("task failed", task=task.__qualname__)
        await trio.sleep(RESTART_PAUSE_S)
