"""Frames for the engine's child process, in order, written at once where its pipe has room."""

import trio

from mycelia.node.sockets import send_at_once, send_rest

_PIPE_BYTES = 65_536
"""What a pipe holds; what it has no room for is copied with each write."""


class Outbox:
    """``put`` never waits; ``run`` must be running for what the pipe has no room for. What is put is bounded by whoever
    puts it. Frames for a child that has died are dropped: its reader learns of that."""

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
        """Until cancelled, or the child has died."""
        try:
            while True:
                await self._has_rest.wait()
                data = bytes(self._rest[:_PIPE_BYTES])
                await send_rest(self._pipe, data)
                del self._rest[: len(data)]  # (only now: what comes meanwhile goes behind it)
                if not self._rest:
                    self._has_rest = trio.Event()
        except (OSError, trio.ClosedResourceError):
            self._rest.clear()
