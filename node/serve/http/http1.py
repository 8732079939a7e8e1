"""One HTTP/1.1 connection: h11 between a socket and an ASGI application, in a single task.

Servers that know more (HTTP/2, web sockets, workers) run several tasks and queues for each connection, and offer no
rule for which connection has to go when all places are taken. Here the application reads and writes the socket itself,
in the task that calls ``receive`` and ``send``: the first event comes 0.3 to 0.5 ms sooner than behind Hypercorn, and
``places.py`` can rank connections. Why: ``docs/decisions/http-loop.md``.
"""

import time
from contextlib import suppress
from email.utils import formatdate
from functools import lru_cache
from urllib.parse import unquote

import h11
import structlog
import trio
from starlette.types import ASGIApp, Message, Scope

from mycelia.node.serve.http.places import PLACE, HttpPlace
from mycelia.node.sockets import receive_some, send_at_once

log = structlog.get_logger()

WRITE_DEADLINE_S = 30.0
"""A client that reads nothing for this long is dropped."""
HEAD_DEADLINE_S = 30.0
"""Between two requests, the head of the second included."""
LINGER_S = 2.0
"""How long a connection that is over still takes what the client is sending: one closed with unread bytes is reset, and
the client would lose the very answer that refused them."""
MAX_HEAD_BYTES = 65_536
"""As much may wait behind a request that is being answered. Both give or take one read."""

MAX_REST_PIECES = 64
"""Pieces that are taken of a body that nobody asked for: one of ten thousand chunks would stop everything else."""

_READ_BYTES = 16_384
_GONE: Message = {"type": "http.disconnect"}


class HttpConnection:
    """Call ``serve`` once."""

    def __init__(self, app: ASGIApp, stream: trio.SocketStream, place: HttpPlace) -> None:
        self._app = app
        self._socket = stream.socket
        self._place = place
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._head = b""
        """The head of the response, sent together with the first of its body."""
        self._has_body = True
        self._unsent = b""
        """What h11 counts as sent and the socket had no room for. The task that waited for that may have been
        cancelled: it goes before everything else."""
        self._gone = trio.Event()
        """Nothing more can be sent, or nothing more will come."""

    async def serve(self) -> None:
        """Answer requests until the client or an error ends the connection, and close it."""
        try:
            while (request := await self._next_request()) is not None:
                await self._answer(request)
                await self._write(b"")
                self._take_rest()
                self._place.rest()
                if self._is_gone or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    break
                self._http.start_next_cycle()
                if self._http.trailing_data[0]:  # (the next request need not be waited for: others have their turn)
                    await trio.lowlevel.checkpoint()
            await self._linger()
        finally:
            self._socket.close()

    @property
    def _is_gone(self) -> bool:
        return self._gone.is_set()

    # --- requests ---------------------------------------------------------------------------------------------------

    async def _next_request(self) -> h11.Request | None:
        """None: the client is gone, sends nothing or what is no request; then it was told."""
        self._has_body = True
        with trio.move_on_after(HEAD_DEADLINE_S):
            try:
                event = await self._next_event()
            except h11.RemoteProtocolError as exc:
                await self._refuse(exc.error_status_hint, str(exc))
                return None
            if not isinstance(event, h11.Request):
                return None
            if event.http_version not in (b"1.0", b"1.1"):
                await self._refuse(505, "this is HTTP/1.1")
                return None
            names = {name for name, _ in event.headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                await self._refuse(400, "the body has two lengths")  # (a proxy in front might believe the other one)
                return None
            return event
        return None

    async def _next_event(self) -> h11.Event:
        """Raises RemoteProtocolError. The end of the connection is an event too."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
            self._http.receive_data(await self._read())
        assert isinstance(event, h11.Event), "it pauses only behind a request"
        return event

    def _take_rest(self) -> None:
        """What of a body nobody asked for has come already: the next request is behind it."""
        with suppress(h11.RemoteProtocolError):
            for _ in range(MAX_REST_PIECES):
                if self._http.their_state is not h11.SEND_BODY or not isinstance(self._http.next_event(), h11.Data):
                    return

    async def _refuse(self, status: int, message: str) -> None:
        """Instead of an answer, if none has begun; the last thing that is said."""
        body = f"{message}\n".encode()
        headers = [("content-type", "text/plain"), ("content-length", str(len(body))), ("connection", "close")]
        with suppress(h11.LocalProtocolError):  # (one has)
            data = self._http.send(h11.Response(status_code=status, headers=headers)) or b""
            if self._has_body:
                data += self._http.send(h11.Data(data=body)) or b""
            await self._write(data)

    # --- one request ------------------------------------------------------------------------------------------------

    async def _answer(self, request: h11.Request) -> None:
        self._head = b""
        self._has_body = request.method != b"HEAD"
        failure = None
        try:
            await self._app(self._scope_of(request), self._receive, self._send)
        except Exception as exc:  # noqa: BLE001  the edge of the application
            failure = exc
        # (if the application's own handler has told the client, it has told the log too)
        if self._http.our_state is h11.ERROR or not (self._is_answered or self._is_gone):
            log.error("api_answer_broke", exc_info=failure)
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
            PLACE: self._place,
        }

    async def _receive(self) -> Message:
        """A piece of the body; after its end, and the answer's, the client's going away. One that has only ended its
        own direction counts as gone too."""
        if self._is_gone or self._is_answered:
            return _GONE
        if self._http.their_state is not h11.SEND_BODY:
            await self._wait_gone()
            return _GONE
        try:
            event = await self._next_event()
        except h11.RemoteProtocolError:
            return _GONE
        if isinstance(event, h11.Data):
            return {"type": "http.request", "body": bytes(event.data), "more_body": True}
        assert isinstance(event, h11.EndOfMessage)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _wait_gone(self) -> None:
        num_ahead = len(self._http.trailing_data[0])
        while not self._is_gone:
            if num_ahead > MAX_HEAD_BYTES:  # (it sends on and on: what is written to it will tell when it is gone)
                await self._gone.wait()
                return
            data = await self._read()
            num_ahead += len(data)
            self._http.receive_data(data)

    async def _send(self, message: Message) -> None:
        """Nothing is sent to a client that is gone, nor after the end of the answer."""
        if self._is_gone or self._is_answered:
            return
        if message["type"] == "http.response.start":
            headers = [(b"date", _date()), *message.get("headers", ())]
            if message["status"] >= 400:
                self._take_rest()
                if self._http.their_state is h11.SEND_BODY:  # (nobody will read the rest of it)
                    headers.append((b"connection", b"close"))
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
        if not data:
            self._gone.set()
        return data

    async def _write(self, data: bytes | None) -> None:
        """Being cancelled loses nothing. One caller at a time: what several tasks send at once is theirs to keep
        apart."""
        self._unsent += data or b""
        try:
            while self._unsent:
                self._unsent = send_at_once(self._socket, self._unsent)
                if self._unsent:
                    with trio.fail_after(WRITE_DEADLINE_S):
                        await trio.lowlevel.wait_writable(self._socket)
        except (OSError, trio.ClosedResourceError, trio.TooSlowError):
            self._unsent = b""
            self._gone.set()
            self._socket.close()  # (whoever waits for something to read learns of it)

    async def _linger(self) -> None:
        """Waits until the client has ended the connection too."""
        with trio.move_on_after(LINGER_S), suppress(OSError, trio.ClosedResourceError):
            self._socket.shutdown(trio.socket.SHUT_WR)
            while await receive_some(self._socket, 65_536):
                pass


def _date() -> bytes:
    return _spelled_date(int(time.time()))


@lru_cache(maxsize=1)
def _spelled_date(at_s: int) -> bytes:
    return formatdate(at_s, usegmt=True).encode()
