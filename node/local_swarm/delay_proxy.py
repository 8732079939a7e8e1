"""A TCP proxy that delays all bytes, to simulate distance between nodes of one machine.

    dialler --- proxy of a node --- the node
            one_way_s in each direction

Every byte arrives ``one_way_s`` after the proxy read it, in order, at unlimited bandwidth. The bytes of one read are
written at once. With ``WINDOW_BYTES`` of a direction under way the proxy stops reading, as with a full TCP window. The
end of one direction is delayed like a byte and leaves the other one open. If one side breaks, so does the other.

A line can be cut: then no byte passes in either direction, and neither side is notified, until it heals. Bytes sent
meanwhile arrive then, as with TCP. A line can also be bad, until it is mended: slower, or with packet loss, after which
all later bytes wait for the retransmission, as with TCP. Cuts and bad lines are independent of each other.

TCP's own handshake is not delayed: the dialler is connected with the proxy at once.
"""

import math
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from mycelia.node.signals import Signal

READ_BYTES = 65_536
WINDOW_BYTES = 8 * 1_024 * 1_024
"""Enough for 100 MB/s over 80 ms, which is more than the nodes' Noise can encrypt."""

_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


IsCut = Callable[[int], bool]
"""Whether to cut the connection from this port of loopback. Called when it is opened and when lines are cut."""


RETRANSMISSION_S = (0.2, 1.0)
"""Range of times until a lost packet is sent again: TCP waits for its estimate of the round trip, at least 0.2 s."""


@dataclass
class Quality:
    """The delay and the loss of a line in each direction."""

    one_way_s: float
    loss: float = 0.0
    """Share of the pieces that are lost at first."""
    rng: random.Random = field(default_factory=random.Random)

    def takes_s(self) -> float:
        lost_s = self.rng.uniform(*RETRANSMISSION_S) if self.rng.random() < self.loss else 0.0
        return self.one_way_s + lost_s


class Line:
    """The path of one connection, whole or cut."""

    def __init__(self, quality: Quality) -> None:
        self.quality = quality
        self._whole = trio.Event()
        self._whole.set()

    def cut(self) -> None:
        if self._whole.is_set():
            self._whole = trio.Event()

    def heal(self) -> None:
        self._whole.set()

    async def crossed(self) -> None:
        """Waits until the line is whole."""
        await self._whole.wait()


class DelayProxy:
    """A proxy on a free port of loopback. Made by ``open_delay_proxy``."""

    def __init__(self, listener: trio.SocketListener, one_way_s: float) -> None:
        self._listener = listener
        self._usual = self._quality = Quality(one_way_s)
        self._target_port: int | None = None
        self._is_cut: IsCut = lambda port: False
        self._lines: dict[int, Line] = {}
        """Dialler's port -> the line of its open connection."""
        self.num_connections = 0
        """The number of connections since the start."""

    @property
    def port(self) -> int:
        return int(self._listener.socket.getsockname()[1])

    def forward_to(self, port: int) -> None:
        """Forwards new connections to ``port``. Connections before this call are closed."""
        self._target_port = port

    def cut(self, is_cut: IsCut) -> None:
        """Cuts lines for which ``is_cut`` is true, also those of new connections, until ``heal``."""
        self._is_cut = is_cut
        for port, line in self._lines.items():
            if is_cut(port):
                line.cut()

    def spoil(self, quality: Quality) -> None:
        """Gives all lines another quality, also those of new connections, until ``mend``."""
        self._quality = quality
        for line in self._lines.values():
            line.quality = quality

    def mend(self) -> None:
        """Gives all lines their first quality again."""
        self.spoil(self._usual)

    def heal(self) -> None:
        """Ends all cuts."""
        self._is_cut = lambda port: False
        for line in self._lines.values():
            line.heal()

    def line_of(self, port: int) -> Line:
        line = self._lines[port] = Line(self._quality)
        if self._is_cut(port):
            line.cut()
        return line

    async def serve(self) -> None:
        await trio.serve_listeners(self._connect, [self._listener])

    async def _connect(self, dialler: trio.SocketStream) -> None:
        if self._target_port is None:
            return
        self.num_connections += 1
        try:
            node = await trio.open_tcp_stream("127.0.0.1", self._target_port)
        except OSError:
            return  # (the node is gone, and the dialler's connection ends)
        port = int(dialler.socket.getpeername()[1])
        try:
            async with node:
                await relay(dialler, node, self.line_of(port))
        finally:
            del self._lines[port]


@asynccontextmanager
async def open_delay_proxy(one_way_s: float) -> AsyncIterator[DelayProxy]:
    """A proxy that serves while the block runs."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = DelayProxy(listener, one_way_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(proxy.serve)
        yield proxy
        nursery.cancel_scope.cancel()


async def relay(one: trio.abc.HalfCloseableStream, other: trio.abc.HalfCloseableStream, line: Line) -> None:
    """Copies bytes both ways until both directions have ended or one is broken. Closes neither stream."""
    async with trio.open_nursery() as nursery:

        async def carry(source: trio.abc.ReceiveStream, sink: trio.abc.HalfCloseableStream) -> None:
            try:
                await _carry(source, sink, line)
            except* _BROKEN:
                nursery.cancel_scope.cancel()

        nursery.start_soon(carry, one, other)
        nursery.start_soon(carry, other, one)


async def _carry(source: trio.abc.ReceiveStream, sink: trio.abc.HalfCloseableStream, line: Line) -> None:
    under_way, room = 0, Signal()
    send, receive = trio.open_memory_channel[tuple[float, bytes]](math.inf)  # (bounded by WINDOW_BYTES)

    async def read() -> None:
        nonlocal under_way
        while data := await source.receive_some(READ_BYTES):
            send.send_nowait((trio.current_time() + line.quality.takes_s(), bytes(data)))
            under_way += len(data)
            while under_way >= WINDOW_BYTES:
                await room.wait()
        send.send_nowait((trio.current_time() + line.quality.takes_s(), b""))

    async def write() -> None:
        nonlocal under_way
        async for due, data in receive:
            await trio.sleep_until(due)
            await line.crossed()
            if not data:
                await sink.send_eof()
                return
            await sink.send_all(data)
            under_way -= len(data)
            room.notify()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(write)
