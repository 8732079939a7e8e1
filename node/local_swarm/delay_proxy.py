"""A TCP proxy that delays: distance between nodes of one machine, where the kernel offers none.

    dialler --- proxy of a node --- the node
            one_way_s in each direction

Every byte arrives ``one_way_s`` after the proxy read it, in order, at unlimited bandwidth. What one read brought is
written in one piece. At most ``WINDOW_BYTES`` of a direction are under way; then the sender is not read any more, as
with a full TCP window. The end of one direction arrives like a byte and leaves the other one open; a connection that
breaks on one side is broken on the other.

A line may be cut: then nothing passes, in either direction, and nobody is told, until it heals. What was sent meanwhile
comes then, as with TCP. Or it may be bad, until it is mended: slower, or losing packets, which with TCP is the same:
what follows a lost packet waits until it was sent again. It may be both; one ends without the other.

Not delayed is TCP's own handshake: who dials is connected with the proxy at once. All that is said afterwards is.
"""

import math
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

READ_BYTES = 65_536
WINDOW_BYTES = 8 * 1_024 * 1_024
"""100 MB/s over 80 ms: more than the nodes' Noise can do."""

_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


IsCut = Callable[[int], bool]
"""Whether the connection from this port of loopback is cut. Asked once when it is opened, and when lines are cut."""


RETRANSMISSION_S = (0.2, 1.0)
"""Until a lost packet is sent again: TCP waits for its estimate of the round trip, 0.2 s at least."""


@dataclass
class Quality:
    """Of a line, each way."""

    one_way_s: float
    loss: float = 0.0
    """Share of what is sent that is lost at first."""
    rng: random.Random = field(default_factory=random.Random)

    def takes_s(self) -> float:
        lost_s = self.rng.uniform(*RETRANSMISSION_S) if self.rng.random() < self.loss else 0.0
        return self.one_way_s + lost_s


class Line:
    """What a connection crosses: whole, or cut for now."""

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
        """Once it is whole."""
        await self._whole.wait()


class DelayProxy:
    """Listens on a free port of loopback. Made by ``open_delay_proxy``."""

    def __init__(self, listener: trio.SocketListener, one_way_s: float) -> None:
        self._listener = listener
        self._usual = self._quality = Quality(one_way_s)
        self._target_port: int | None = None
        self._is_cut: IsCut = lambda port: False
        self._lines: dict[int, Line] = {}
        """Of the connections there are, by the dialler's port."""
        self.num_connections = 0
        """Ever."""

    @property
    def port(self) -> int:
        return int(self._listener.socket.getsockname()[1])

    def forward_to(self, port: int) -> None:
        """From now on; whoever dials before is turned away."""
        self._target_port = port

    def cut(self, is_cut: IsCut) -> None:
        """From now on, also what is opened until ``heal``."""
        self._is_cut = is_cut
        for port, line in self._lines.items():
            if is_cut(port):
                line.cut()

    def spoil(self, quality: Quality) -> None:
        """From now on until ``mend``, for all connections."""
        self._quality = quality
        for line in self._lines.values():
            line.quality = quality

    def mend(self) -> None:
        """What passes is as fast as ever again."""
        self.spoil(self._usual)

    def heal(self) -> None:
        """Everything passes again."""
        self._is_cut = lambda port: False
        for line in self._lines.values():
            line.heal()

    def line_of(self, port: int) -> Line:
        """A new one, of the connection from ``port``. Mutates."""
        line = self._lines[port] = Line(self._quality)
        if self._is_cut(port):
            line.cut()
        return line

    async def serve(self) -> None:
        """Until cancelled."""
        await trio.serve_listeners(self._connect, [self._listener])

    async def _connect(self, dialler: trio.SocketStream) -> None:
        if self._target_port is None:
            return
        self.num_connections += 1
        try:
            node = await trio.open_tcp_stream("127.0.0.1", self._target_port)
        except OSError:
            return  # (the node is gone; the dialler sees its connection end)
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
    """Both directions, until both have ended or one is broken. Closes neither stream."""
    async with trio.open_nursery() as nursery:

        async def carry(source: trio.abc.ReceiveStream, sink: trio.abc.HalfCloseableStream) -> None:
            try:
                await _carry(source, sink, line)
            except* _BROKEN:
                nursery.cancel_scope.cancel()

        nursery.start_soon(carry, one, other)
        nursery.start_soon(carry, other, one)


async def _carry(source: trio.abc.ReceiveStream, sink: trio.abc.HalfCloseableStream, line: Line) -> None:
    """One direction."""
    under_way, room = 0, trio.Event()
    send, receive = trio.open_memory_channel[tuple[float, bytes]](math.inf)  # (bounded by WINDOW_BYTES)

    async def read() -> None:
        nonlocal under_way, room
        while data := await source.receive_some(READ_BYTES):
            send.send_nowait((trio.current_time() + line.quality.takes_s(), bytes(data)))
            under_way += len(data)
            while under_way >= WINDOW_BYTES:
                room = trio.Event()
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
            room.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(write)
