"""A signal between tasks: something has changed, look again."""

import trio


class Signal:
    """Wakes every task that waits for the next change of some state. It remembers no earlier change.

    So that no task misses a change, it takes ``next`` before it looks at the state and waits for that event after it.
    Where no checkpoint lies between the look and ``wait``, no other task can run, and the order does not matter::

        while not ready():
            await signal.wait()
    """

    def __init__(self) -> None:
        self._next: trio.Event | None = None
        """None: no task has asked for it."""

    def notify(self) -> None:
        """Call it after each change of the state."""
        if self._next is not None:
            self._next.set()
            self._next = None

    @property
    def next(self) -> trio.Event:
        """The event that the next ``notify`` sets."""
        if self._next is None:
            self._next = trio.Event()
        return self._next

    async def wait(self) -> None:
        """Returns after the next ``notify``."""
        await self.next.wait()
