"""Leaving without breaking anything off: what is being answered is finished, and nothing new is taken."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
import trio

log = structlog.get_logger()

TELL_S = 5.0
"""Between two lines about what is still being answered."""


class Drain:
    """What a node works on, for others and for its own clients. One caller at a time: only ``wait`` waits."""

    def __init__(self) -> None:
        self._num_working = 0
        self._changed = trio.Event()
        self.begin: Callable[[], None] = lambda: None
        """Called once, when the node takes no new requests from now on."""

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around one piece of work that is to be finished."""
        self._num_working += 1
        try:
            yield
        finally:
            self._num_working -= 1
            if not self._num_working:
                self._changed.set()
                self._changed = trio.Event()

    async def leave(self, within_s: float) -> None:
        """Until nothing is being worked on any more or ``within_s`` seconds are over; what is left then goes on at
        other nodes."""
        self.begin()
        give_up_at = trio.current_time() + within_s
        while self._num_working and (left_s := give_up_at - trio.current_time()) > 0:
            log.info(
                "draining", requests=self._num_working, left_s=round(left_s), hint="a second signal leaves at once"
            )
            with trio.move_on_after(min(TELL_S, left_s)):
                await self._changed.wait()
        if self._num_working:
            log.info("handed_over", requests=self._num_working)
