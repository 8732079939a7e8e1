"""The socket of one HTTP connection, with or without TLS: plain bytes, read and written by the connection's tasks.

A write that is cancelled loses nothing: what the socket had no room for goes before the bytes of the next write.
"""

import os
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from mycelia.node.serve.http.tls import NoTlsError, Tls, TlsError
from mycelia.node.sockets import receive_some, send_at_once, write_at_once

WRITE_DEADLINE_S = 30.0
"""A client that reads nothing for this long is dropped."""
LINGER_S = 2.0
"""How long an ended connection still reads what the client sends. A connection that is closed with unread bytes is
reset, and the client would lose the very answer that refused these bytes."""
READ_BYTES = 16_384


class ClientSocket:
    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext | None) -> None:
        """context: the connection is encrypted, from ``shake_hands`` on."""
        self._socket = stream.socket
        self._tls = Tls(context) if context is not None else None
        self._unsent = memoryview(b"")
        """Bytes for which the socket had no room. The task that waited for room may have been cancelled. (A copy after
        each write would take the square of the length: a client that reads slowly took most of a core.)"""
        self.gone = trio.Event()
        """Set when nothing more can be sent or received."""

    @property
    def is_gone(self) -> bool:
        return self.gone.is_set()

    @property
    def is_encrypted(self) -> bool:
        return self._tls is not None

    async def shake_hands(self, turn: Callable[[], Awaitable[None]]) -> bytes:
        """Begins the encryption, if there is to be any, and returns the first plain bytes. Gone: it failed. turn: is
        called before each piece of work. Raises NoTlsError for a client without TLS, which can read plain bytes then.
        """
        tls, plain = self._tls, b""
        while tls is not None and not (tls.is_ready or self.is_gone):
            if data := await self._read_socket():
                await turn()
                try:
                    plain = tls.received(data)
                except NoTlsError:
                    self._tls = None
                    raise
                except TlsError:
                    self._tls = None  # (the handshake's own words say why)
                self._queue(tls.to_send())
                await self.write(b"")
                if self._tls is None:
                    self.gone.set()
        return plain

    async def read(self) -> bytes:
        """Empty: nothing more will come. Loses nothing when cancelled."""
        data = b""
        while not (data or self.is_gone):
            data = await self._read_socket()
            if data and self._tls is not None:
                data = self._opened(self._tls, data)
        return data

    def _opened(self, tls: Tls, data: bytes) -> bytes:
        plain = b""
        with suppress(TlsError):
            plain = tls.received(data)
            if plain or not tls.is_over:
                return plain
        self.gone.set()
        return plain

    async def _read_socket(self) -> bytes:
        try:
            data = await receive_some(self._socket, READ_BYTES)
        except (OSError, trio.ClosedResourceError):
            data = b""
        if not data:
            self.gone.set()
        return data

    async def write(self, data: bytes | None) -> None:
        """Loses nothing when cancelled. One caller at a time: callers have to separate the writes of several tasks."""
        self._queue(self._sealed(data or b""))
        try:
            while self._unsent:
                self._unsent = self._unsent[write_at_once(self._socket, self._unsent) :]
                if self._unsent:
                    with trio.fail_after(WRITE_DEADLINE_S):
                        await trio.lowlevel.wait_writable(self._socket)
        except (OSError, trio.ClosedResourceError, trio.TooSlowError):
            self._unsent = memoryview(b"")
            self.gone.set()
            self._socket.close()  # (ends the tasks that wait for something to read)

    def _queue(self, data: bytes) -> None:
        self._unsent = memoryview(bytes(self._unsent) + data if self._unsent else data)

    def _sealed(self, data: bytes) -> bytes:
        if self._tls is None or not data:
            return data
        try:
            return self._tls.sealed(data)
        except TlsError:
            self.gone.set()
            return b""

    def write_last(self, data: bytes) -> None:
        """Sends what there is room for now."""
        if self.is_gone or (self._tls is not None and not self._tls.is_ready):
            return
        with suppress(OSError, trio.ClosedResourceError):
            with suppress(BlockingIOError):  # (closing with unread bytes would lose ``data``)
                os.read(self._socket.fileno(), READ_BYTES)
            send_at_once(self._socket, bytes(self._unsent) + self._sealed(data))

    async def linger(self) -> None:
        """Waits until the client has closed the connection too."""
        with trio.move_on_after(LINGER_S), suppress(OSError, trio.ClosedResourceError):
            if self._tls is not None and not self.is_gone:
                self._queue(self._tls.end())
                await self.write(b"")
            self._socket.shutdown(trio.socket.SHUT_WR)
            while await receive_some(self._socket, 65_536):
                pass

    def close(self) -> None:
        self._socket.close()
