"""Non-blocking reads and writes with at most one scheduling round.

trio's own streams take a scheduling round after each call that did not have to wait, and try each read before they
wait, which always fails for small messages. A node reads and writes about forty small packets per request, so these
rounds dominate the cost. POSIX only.
"""

import os

import trio

_File = trio.socket.SocketType | trio.lowlevel.FdStream


async def receive_some(readable: _File, max_bytes: int) -> bytes:
    """Waits for data; empty at the end. Raises OSError, and ClosedResourceError when this end is or gets closed."""
    while True:
        await trio.lowlevel.wait_readable(_descriptor(readable))
        try:
            return os.read(_descriptor(readable), max_bytes)
        except BlockingIOError:
            continue


def write_at_once(writable: _File, data: bytes | bytearray | memoryview) -> int:
    """Returns the number of bytes for which there is room now. Raises OSError, and ClosedResourceError."""
    try:
        return os.write(_descriptor(writable), data)
    except BlockingIOError:
        return 0


def send_at_once(writable: _File, data: bytes | bytearray) -> bytes:
    """Returns the part of ``data`` for which there is no room now. Raises OSError, and ClosedResourceError."""
    return bytes(data[write_at_once(writable, data) :])


async def send_rest(writable: _File, data: bytes) -> None:
    """Sends what ``send_at_once`` returned. Raises OSError, and ClosedResourceError when this end is or gets closed."""
    rest = memoryview(data)  # (a copy after each write would take the square of the length)
    while rest:
        await trio.lowlevel.wait_writable(_descriptor(writable))
        rest = rest[write_at_once(writable, rest) :]


def _descriptor(file: _File) -> int:
    descriptor = file.fileno()
    if descriptor < 0:  # (trio would keep a task that waits for it)
        raise trio.ClosedResourceError("this end is closed")
    return descriptor
