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


def send_at_once(writable: _File, data: bytes | bytearray) -> bytes:
    """Returns the part of ``data`` for which there is no room now. Raises OSError, and ClosedResourceError."""
    try:
        sent = os.write(_descriptor(writable), data)
    except BlockingIOError:
        sent = 0
    return bytes(data[sent:])


async def send_rest(writable: _File, data: bytes) -> None:
    """Sends what ``send_at_once`` returned. Raises OSError, and ClosedResourceError when this end is or gets closed."""
    while data:
        await trio.lowlevel.wait_writable(_descriptor(writable))
        data = send_at_once(writable, data)


def _descriptor(file: _File) -> int:
    descriptor = file.fileno()
    if descriptor < 0:  # (trio would keep a task that waits for it)
        raise trio.ClosedResourceError("this end is closed")
    return descriptor
