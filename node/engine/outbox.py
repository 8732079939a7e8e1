"""The queue of frames for the engine's child process. A frame is written at once if the pipe has room."""

import trio

from mycelia.node.sockets import send_at_once, send_rest

_PIPE_BYTES = 65_536
"""Capacity of a pipe, and so the part of the queue that is copied per write."""


class Outbox:
    """Writes frames in order. ``put`` never waits; the task ``run`` writes the rest when the pipe is full. Callers
    bound the queue. Frames for a dead child are dropped: the reader of its output notices the death."""

    def __init__(self, pipe: trio.lowlevel.FdStream) -> None:
        self._pipe = pipe
        self._rest = bytearray()
        self._has_rest = trio.Event()

    def put(self, frame: bytes) -> None:
        if not self._rest:
            try:
                frame = send_at_once(self._pipe, frame)
            except (OSError, trio.ClosedResourceError):
                return
        if frame:
            self._rest += frame
            self._has_rest.set()

    async def run(self) -> None:
        """Write queued frames until cancelled or the child has died."""
        try:
            while True:
                await self._has_rest.wait()
                data = bytes(self._rest[:_PIPE_BYTES])
                await send_rest(self._pipe, data)
                del self._rest[: len(data)]  # (only now, so that new frames go behind it)
                if not self._rest:
                    self._has_rest = trio.Event()
        except (OSError, trio.ClosedResourceError):
            self._rest.clear()
