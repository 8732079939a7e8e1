"""Non-blocking reads and writes with one scheduling round at most.

trio's own streams ask the scheduler for a round after each call that did not have to wait, and try each read before
they wait, which for small messages fails every time. A node reads and writes some forty small packets for a request:
there it is the rounds that cost. POSIX only.
"""

import os

import trio

_File = trio.socket.SocketType | trio.lowlevel.FdStream


async def receive_some(readable: _File, max_bytes: int) -> bytes:
    """Waits until there is something to read; empty at the end. Raises OSError, and ClosedResourceError when this end
    is closed, also meanwhile."""
    while True:
        await trio.lowlevel.wait_readable(_descriptor(readable))
        try:
            return os.read(_descriptor(readable), max_bytes)
        except BlockingIOError:
            continue


def send_at_once(writable: _File, data: bytes | bytearray) -> bytes:
    """What of ``data`` there is no room for now. Raises OSError, and ClosedResourceError."""
    try:
        sent = os.write(_descriptor(writable), data)
    except BlockingIOError:
        sent = 0
    return bytes(data[sent:])


async def send_rest(writable: _File, data: bytes) -> None:
    """What ``send_at_once`` returned. Raises OSError, and ClosedResourceError when this end is closed, also
    meanwhile."""
    while data:
        await trio.lowlevel.wait_writable(_descriptor(writable))
        data = send_at_once(writable, data)


def _descriptor(file: _File) -> int:
    descriptor = file.fileno()
    if descriptor < 0:  # (trio would remember a task that waits for it)
        raise trio.ClosedResourceError("this end is closed")
    return descriptor
