"""A clean end: the node finishes its answers and accepts no new requests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
import trio

from mycelia.node.signals import Signal

log = structlog.get_logger()

TELL_S = 5.0
"""Seconds between two log lines about unfinished answers."""


class Drain:
    """The work that a node has to finish, for peers and for its own clients."""

    def __init__(self) -> None:
        self._num_working = 0
        self.is_leaving = False
        self._changed = Signal()
        self.on_begin: list[Callable[[], None]] = []
        """Called once, when the node stops accepting requests."""

    @contextmanager
    def working(self) -> Iterator[None]:
        """Context of one piece of work that has to be finished."""
        self._num_working += 1
        try:
            yield
        finally:
            self._num_working -= 1
            if not self._num_working:
                self._changed.notify()

    async def leave(self, within_s: float) -> None:
        """Waits until all work is finished, at most ``within_s`` seconds. Unfinished requests then continue at other
        nodes."""
        self.is_leaving = True
        for begin in self.on_begin:
            begin()
        give_up_at = trio.current_time() + within_s
        while self._num_working and (left_s := give_up_at - trio.current_time()) > 0:
            log.info(
                "draining", requests=self._num_working, left_s=round(left_s), hint="a second signal leaves at once"
            )
            with trio.move_on_after(min(TELL_S, left_s)):
                await self._changed.wait()
        if self._num_working:
            log.info("handed_over", requests=self._num_working)
