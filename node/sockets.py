"""Non-blocking reads and writes with one scheduling round at most.

trio's own streams ask the scheduler for a round after each call that did not have to wait, and try each read before
they wait, which for small messages fails every time. A node reads and writes some forty small packets for a request:
there it is the rounds that cost. POSIX only.
"""

import os

import trio


async def receive_some(readable: trio.socket.SocketType | trio.lowlevel.FdStream, max_bytes: int) -> bytes:
    """Waits until there is something to read; empty at the end. Raises OSError, and ClosedResourceError when the
    socket or pipe is closed meanwhile."""
    while True:
        await trio.lowlevel.wait_readable(readable.fileno())
        try:
            return os.read(readable.fileno(), max_bytes)
        except BlockingIOError:
            continue


def send_at_once(socket: trio.socket.SocketType, data: bytes | bytearray) -> bytes:
    """What of ``data`` the socket has no room for now. Raises OSError."""
    try:
        sent = os.write(socket.fileno(), data)
    except BlockingIOError:
        sent = 0
    return bytes(data[sent:])


async def send_rest(socket: trio.socket.SocketType, data: bytes) -> None:
    """What ``send_at_once`` returned. Raises OSError, and ClosedResourceError when the socket is closed meanwhile."""
    while data:
        await trio.lowlevel.wait_writable(socket.fileno())
        data = send_at_once(socket, data)
