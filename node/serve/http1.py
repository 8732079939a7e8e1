"""One HTTP/1.1 connection: h11 between a socket and an ASGI application, in a single task.

Servers that know more (HTTP/2, web sockets, workers) have several tasks and queues a connection, and each costs rounds
of the scheduler: behind Hypercorn a short answer took 35 of them and a millisecond more. Here the application reads and
writes the socket itself, in whichever of its tasks it calls ``receive`` and ``send``. See ``docs/performance.md``.
"""

import time
from contextlib import suppress
from email.utils import formatdate
from urllib.parse import unquote

import h11
import structlog
import trio
from starlette.types import ASGIApp, Message, Scope

from node.sockets import receive_some, send_at_once, send_rest

log = structlog.get_logger()

WRITE_DEADLINE_S = 30.0
"""A client that reads nothing for this long is dropped."""
HEAD_DEADLINE_S = 30.0
"""Between two requests, the head of the second included."""
LINGER_S = 2.0
"""How long a connection that is over still takes what the client is sending: one closed with unread bytes is reset, and
the client would lose the very answer that refused them."""
MAX_HEAD_BYTES = 65_536
"""As much again may wait behind a request that is being answered. Both give or take one read."""

_READ_BYTES = 16_384
_GONE: Message = {"type": "http.disconnect"}


class HttpConnection:
    """Call ``serve`` once."""

    def __init__(self, app: ASGIApp, stream: trio.SocketStream) -> None:
        self._app = app
        self._socket = stream.socket
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._head = b""
        """Of the response: sent together with the first of its body."""
        self._has_body = True
        self._is_gone = False
        """Nothing more can be sent, or nothing more will come."""
        self._num_ahead = 0
        """Bytes of requests after the one that is being answered."""

    async def serve(self) -> None:
        """Answer requests until the client or an error ends the connection, and close it."""
        try:
            while (request := await self._next_request()) is not None:
                await self._answer(request)
                self._take_rest()
                if self._is_gone or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    break
                self._http.start_next_cycle()
            await self._linger()
        finally:
            self._socket.close()

    # --- requests ---------------------------------------------------------------------------------------------------

    async def _next_request(self) -> h11.Request | None:
        """None: the client is gone, sends nothing or what is no request; then it was told."""
        self._num_ahead = 0
        with trio.move_on_after(HEAD_DEADLINE_S):
            try:
                event = await self._next_event()
            except h11.RemoteProtocolError as exc:
                await self._refuse(exc.error_status_hint, str(exc))
            else:
                return event if isinstance(event, h11.Request) else None
        return None

    async def _next_event(self) -> h11.Event | None:
        """Raises RemoteProtocolError. The end of the connection is an event too; None: none comes before the answer."""
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Event):
                return event
            if event is h11.PAUSED:
                return None
            if self._http.they_are_waiting_for_100_continue:
                await self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
            self._http.receive_data(await self._read())

    def _take_rest(self) -> None:
        """What of a body nobody asked for has come already: the next request is behind it."""
        with suppress(h11.RemoteProtocolError):
            while self._http.their_state is h11.SEND_BODY and isinstance(self._http.next_event(), h11.Data):
                pass

    async def _refuse(self, status: int, message: str) -> None:
        """What is no request."""
        body = f"{message}\n".encode()
        headers = [("content-type", "text/plain"), ("content-length", str(len(body))), ("connection", "close")]
        with suppress(h11.LocalProtocolError):  # (in the middle of an answer)
            head = self._http.send(h11.Response(status_code=status, headers=headers))
            await self._write((head or b"") + (self._http.send(h11.Data(data=body)) or b""))

    # --- one request ------------------------------------------------------------------------------------------------

    async def _answer(self, request: h11.Request) -> None:
        self._head = b""
        self._has_body = request.method != b"HEAD"
        try:
            await self._app(self._scope_of(request), self._receive, self._send)
        except Exception:
            # The application's own handler has told the client where it still could.
            if not self._is_answered:
                log.exception("api_connection_failed")
                await self._refuse(500, "an error inside the node; its log says more")

    @property
    def _is_answered(self) -> bool:
        return self._http.our_state not in (h11.SEND_RESPONSE, h11.SEND_BODY)

    def _scope_of(self, request: h11.Request) -> Scope:
        raw_path, _, query = request.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version.decode("ascii"),
            "scheme": "http",
            "method": request.method.decode("ascii"),
            "path": unquote(raw_path.decode("ascii")),
            "raw_path": raw_path,
            "root_path": "",
            "query_string": query,
            "headers": list(request.headers),
        }

    async def _receive(self) -> Message:
        """A piece of the body; after its end, and the answer's, the client's going away."""
        if self._is_gone or self._is_answered:
            return _GONE
        if self._http.their_state is not h11.SEND_BODY:
            await self._wait_gone()
            return _GONE
        try:
            event = await self._next_event()
        except h11.RemoteProtocolError:
            return _GONE
        match event:
            case h11.Data():
                return {"type": "http.request", "body": bytes(event.data), "more_body": True}
            case h11.EndOfMessage():
                return {"type": "http.request", "body": b"", "more_body": False}
        return _GONE

    async def _wait_gone(self) -> None:
        while not self._is_gone:
            if self._num_ahead > MAX_HEAD_BYTES:  # (it sends on and on: writing to it will tell when it is gone)
                await trio.sleep_forever()
            data = await self._read()
            self._num_ahead += len(data)
            self._http.receive_data(data)

    async def _send(self, message: Message) -> None:
        """Nothing is sent to a client that is gone, nor after the end of the answer."""
        if self._is_gone or self._is_answered:
            return
        if message["type"] == "http.response.start":
            headers = [(b"date", _date()), *message.get("headers", ())]
            self._head = self._http.send(h11.Response(status_code=message["status"], headers=headers)) or b""
            return
        data, self._head = self._head, b""
        body = message.get("body", b"")
        if body and self._has_body:
            data += self._http.send(h11.Data(data=body)) or b""
        if not message.get("more_body", False):
            data += self._http.send(h11.EndOfMessage()) or b""
        await self._write(data)

    # --- the socket -------------------------------------------------------------------------------------------------

    async def _read(self) -> bytes:
        """Empty: nothing will come any more."""
        try:
            data = await receive_some(self._socket, _READ_BYTES)
        except (OSError, trio.ClosedResourceError):
            data = b""
        self._is_gone = self._is_gone or not data
        return data

    async def _write(self, data: bytes | None) -> None:
        """One at a time: what several tasks send at once is theirs to keep apart."""
        try:
            rest = send_at_once(self._socket, data) if data else b""
            if not rest:
                return
            with trio.move_on_after(WRITE_DEADLINE_S):
                await send_rest(self._socket, rest)
                return
        except (OSError, trio.ClosedResourceError):
            pass
        self._is_gone = True
        self._socket.close()  # (whoever waits for something to read learns of it)

    async def _linger(self) -> None:
        """Until the client has ended the connection too."""
        with trio.move_on_after(LINGER_S), suppress(OSError, trio.ClosedResourceError):
            self._socket.shutdown(trio.socket.SHUT_WR)
            while await receive_some(self._socket, 65_536):
                pass


def _date() -> bytes:
    return formatdate(time.time(), usegmt=True).encode()
